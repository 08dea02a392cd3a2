"""FerKD's regions and calibration, against the table of the paper worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import write_store

from ferkd.calibration.regions import (
    Region,
    Regions,
    blend,
    calibrate,
    check_thresholds,
    classify,
    classify_scores,
    image_quantiles,
    keep_every_image,
    keep_some,
    mine,
    score_of,
    scores_of,
)
from ferkd.calibration.reliability import reliability
from ferkd.store import SoftLabels
from ferkd.system.errors import InputError

D, H, K = Region.DISCARDED, Region.HARD, Region.IMPORTANT


def test_boundaries_are_as_in_the_papers_table():
    """s < L or s > T discarded; L <= s < M hard; M <= s <= T important."""
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.91])
    for kind in (np.float64, np.float32):  # stored scores are float32; 0.2 of both is one score
        regions = classify_scores(scores.astype(kind), 0.2, 0.5, 0.9)
        assert regions.tolist() == [D, H, H, K, K, K, D]


def test_equal_thresholds_leave_one_score():
    scores = np.array([0.4, 0.5, 0.6])
    assert classify_scores(scores, 0.5, 0.5, 0.5).tolist() == [D, K, D]
    assert classify_scores(scores, 0.0, 0.0, 1.0).tolist() == [K, K, K]


@pytest.mark.parametrize(
    "bad",
    [
        (0.5, 0.4, 0.9),
        (0.1, 0.95, 0.9),
        (-0.1, 0.2, 0.9),
        (0.1, 0.2, 1.1),
        (math.nan, 0.2, 1),
    ],
)
def test_thresholds_out_of_order_are_refused(bad):
    with pytest.raises(InputError, match="out of order; they must satisfy 0 <= low <= middle"):
        check_thresholds(*bad)
    with pytest.raises(ValueError, match=r"out of order|finite number"):
        Regions(thresholds=bad)


def test_scores_by_largest_and_by_true_probability():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log()
    labels = SoftLabels.from_logits(logits, torch.tensor([1, -1]), k=1)
    targets = torch.tensor([1, -1])
    assert torch.allclose(score_of(labels, targets, "max_prob"), torch.tensor([0.7, 0.7]))
    true = score_of(labels, targets, "true_prob")
    assert true[0] == pytest.approx(0.2) and math.isnan(true[1])
    regions = classify(labels, targets, low=0.1, middle=0.5, top=0.9, score="true_prob")
    assert regions.tolist() == [
        H,
        K,
    ]  # without ground truth the crop keeps its soft label
    regions = classify(labels, targets, low=0.1, middle=0.5, top=0.9)
    assert regions.tolist() == [K, K]


def test_quantiles_within_an_image_by_hand():
    """Ranks of 4 scores: (0 + .5)/4 ...; two equal ones share the mean of their places."""
    q = image_quantiles(np.array([[0.3, 0.1, 0.9, 0.5], [0.2, 0.2, 0.8, 0.2]]))
    assert q[0].tolist() == [0.375, 0.125, 0.875, 0.625]
    assert q[1].tolist() == [0.375, 0.375, 0.875, 0.375]


def test_an_image_with_nothing_left_counts_as_hard():
    regions = np.array([[D, D], [D, K], [H, D]], np.int8)
    assert keep_every_image(regions).tolist() == [[H, H], [D, K], [H, D]]
    assert keep_every_image(regions, Region.IMPORTANT).tolist() == [[K, K], [D, K], [H, D]]


def test_calibration_by_hand():
    """Hard row: .8 on the truth, .2 / 3 on each other class; the rest untouched."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4).log()
    labels = SoftLabels.from_logits(logits, k=2)
    regions = torch.tensor([H, K, H, D], dtype=torch.int8)
    out = calibrate(labels, torch.tensor([2, 2, -1, 2]), regions, epsilon=0.2).dense()
    assert torch.allclose(out[0], torch.tensor([0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3]))
    for untouched in (1, 2, 3):
        assert torch.allclose(out[untouched], torch.tensor([0.4, 0.3, 0.15, 0.15]))


def test_calibrated_labels_are_tempered_exactly():
    labels = SoftLabels.from_logits(torch.zeros(1, 5), k=3)
    out = calibrate(labels, torch.tensor([4]), torch.tensor([H]), 0.2).dense(2.0)[0]
    total = math.sqrt(0.8) + 4 * math.sqrt(0.05)
    assert out[4] == pytest.approx(math.sqrt(0.8) / total, abs=1e-6)
    assert out[0] == pytest.approx(math.sqrt(0.05) / total, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9), st.data())
def test_calibration_of_any_batch(rows, classes, k, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    labels = SoftLabels.from_logits(torch.from_numpy(rng.normal(0, 3, (rows, classes))), k=k)
    targets = torch.from_numpy(rng.integers(-1, classes, rows))
    regions = torch.from_numpy(rng.integers(0, 3, rows).astype(np.int8))
    before, after = labels.dense(), calibrate(labels, targets, regions, 0.1).dense()
    changed = (regions == H) & (targets >= 0)
    assert torch.allclose(after[~changed], before[~changed])
    assert torch.allclose(after.sum(1), torch.ones(rows), atol=1e-5)
    if changed.any():
        assert (after[changed].argmax(1) == targets[changed]).all()


def test_blend_by_hand():
    """p = .4 .3 .2 .1, half of it; h = .7 on class 2 and .1 elsewhere."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4).log()
    targets = torch.tensor([2, 2, -1, 2])
    weights = torch.tensor([0.5, 1.0, 0.5, math.nan])
    for k in (4, 2):
        labels = SoftLabels.from_logits(logits, targets, k=k).with_truth(targets)
        out = blend(labels, targets, weights, epsilon=0.3)
        assert torch.allclose(out.dense()[0], torch.tensor([0.25, 0.2, 0.45, 0.1]))
        for untouched in (1, 2, 3):
            assert torch.equal(out.dense()[untouched], labels.dense()[untouched])
        assert out.prob_of(targets)[0] == pytest.approx(0.45)


def test_blend_gives_a_truth_outside_the_stored_classes_its_share_of_the_tail():
    """Top-1 of .6 .2 .2: the tail is .2 a class; .5 * .2 + .5 * .9 = .55 on class 2."""
    labels = SoftLabels.from_logits(torch.tensor([[0.6, 0.2, 0.2]]).log(), k=1)
    out = blend(labels, torch.tensor([2]), torch.tensor([0.5]), epsilon=0.1)
    assert torch.allclose(out.dense()[0], torch.tensor([0.325, 0.125, 0.55]))


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9), st.data())
def test_blend_equals_the_dense_formula(rows, classes, k, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    epsilon = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    targets = torch.from_numpy(rng.integers(-1, classes, rows))
    logits = torch.from_numpy(rng.normal(0, 3, (rows, classes)))
    labels = SoftLabels.from_logits(logits, targets, k=k)
    if data.draw(st.booleans()):
        labels = labels.with_truth(targets)
    weights = torch.from_numpy(rng.choice([0.0, 1.0, math.nan, 0.25, rng.random()], rows)).float()
    out = blend(labels, targets, weights, epsilon)
    hard = SoftLabels.hard(targets.clamp_min(0), classes, epsilon).dense()
    kept = torch.where((targets >= 0) & ~weights.isnan(), weights, 1.0)[:, None]
    assert torch.allclose(out.dense(), kept * labels.dense() + (1 - kept) * hard, atol=1e-6)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_blend_is_tempered_exactly_where_the_tail_is_even(temperature):
    """Seven classes of .05 after one of .65, top 2 kept: the tail is even, so nothing is lost."""
    probs = torch.tensor([[0.65] + [0.05] * 7])
    targets = torch.tensor([5])
    labels = SoftLabels.from_logits(probs.log(), targets, k=2).with_truth(targets)
    out = blend(labels, targets, torch.tensor([0.7]), 0.14).dense(temperature)
    mixed = 0.7 * probs + 0.3 * torch.tensor([[0.02] * 5 + [0.86] + [0.02] * 2])
    exact = mixed ** (1 / temperature)
    assert torch.allclose(out, exact / exact.sum(), atol=1e-6)


def test_blend_at_another_temperature_is_near_for_an_uneven_tail():
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 3, (20, 50)))
    targets = torch.from_numpy(rng.integers(0, 50, 20))
    labels = SoftLabels.from_logits(logits, targets, k=5).with_truth(targets)
    weights = torch.full((20,), 0.6)
    out = blend(labels, targets, weights, 0.1).dense(2.0)
    hard = SoftLabels.hard(targets, 50, 0.1).dense().double()
    exact = (0.6 * logits.softmax(1) + 0.4 * hard).sqrt()
    exact = exact / exact.sum(1, keepdim=True)
    stored = labels.classes[:, :5]
    error = (out.gather(1, stored) - exact.gather(1, stored).float()).abs()
    assert error.max() < 0.01  # a tail guessed to be even errs by more, see the next line
    even = (0.4 * hard + 0.6 * labels.dense().double()).sqrt()
    even = even / even.sum(1, keepdim=True)
    assert (even - exact).gather(1, stored).abs().max() > error.max()


def test_mixed_labels_cannot_be_blended():
    labels = SoftLabels.hard(torch.tensor([0]), 3)
    mixed = labels.mixed(labels, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="calibrate before mixing"):
        blend(mixed, torch.tensor([0]), torch.tensor([0.5]))


def test_mining_blends_by_the_curve_of_the_store(tmp_path):
    store = write_store(tmp_path / "labels", crops=8, ids=tuple(f"a/{i}.jpg" for i in range(12)))
    settings = Regions(calibration="blend", thresholds="none", epsilon=0.2)
    mining = mine(store, settings)
    assert (mining.regions == K).all() and mining.weights is not None
    scores, correct = scores_of(store)
    known = store.targets >= 0
    curve = reliability(scores[known], correct[known])
    rows, crops = np.array([1, 3, 4]), np.array([[0, 5], [2, 2], [7, 1]])
    expected = np.interp(scores[rows[:, None], crops], curve.s, curve.rate)
    assert np.abs(mining.weights[rows[:, None], crops] / 255 - expected).max() <= 0.5 / 255 + 1e-6
    labels = store.labels(rows[:, None], crops)
    targets = torch.from_numpy(store.targets[rows].astype(np.int64)).repeat_interleave(2)
    out = mining.calibrate(labels, targets, rows, crops)
    weights = torch.from_numpy(mining.weights[rows[:, None], crops].reshape(-1)).float() / 255
    kept = torch.where(targets >= 0, weights, 1.0)[:, None]
    hard = SoftLabels.hard(targets.clamp_min(0), 6, 0.2).dense()
    assert torch.allclose(out.dense(), kept * labels.dense() + (1 - kept) * hard, atol=1e-6)
    assert "calibration blend, epsilon 0.2, mean weight of the soft labels 0." in mining.describe()


def test_no_hard_label_is_surer_than_the_teacher_is_right(tmp_path):
    """epsilon 1 - r, r not below chance 1/6: w p + (1 - w) h with h_y = r, the rest shared."""
    store = write_store(tmp_path / "labels", crops=8, ids=tuple(f"a/{i}.jpg" for i in range(12)))
    mining = mine(store, Regions(calibration="blend", thresholds="none", epsilon="reliability"))
    assert mining.weights is not None
    rows, crops = np.array([1, 4]), np.tile(np.arange(8), (2, 1))
    labels = store.labels(rows[:, None], crops)
    targets = torch.from_numpy(np.repeat(store.targets[rows].astype(np.int64), 8))
    out = mining.calibrate(labels, targets, rows, crops).dense()
    weights = mining.weights[rows].reshape(-1) / 255
    assert (weights < 1 / 6).any() and (weights > 1 / 6).any()
    for i, (w, p) in enumerate(zip(weights, labels.dense().numpy(), strict=True)):
        r = max(w, 1 / 6)
        hard = np.full(6, (1 - r) / 5)
        hard[targets[i]] = r
        assert out[i].numpy() == pytest.approx(w * p + (1 - w) * hard, abs=1e-6)
    with pytest.raises(ValueError, match="epsilon reliability needs calibration blend"):
        Regions(epsilon="reliability")


def test_blend_does_not_read_the_middle_threshold(tmp_path):
    store = write_store(tmp_path / "labels", crops=8)
    mining = mine(store, Regions(calibration="blend", thresholds=(0.4, 0.9, 0.95)))
    scores, _ = scores_of(store)
    assert mining.thresholds == (0.4, 0.4, 0.95)
    empty = ((scores < 0.4) | (scores > 0.95)).all(1)
    outside = (scores < 0.4) | (scores > 0.95)
    assert (mining.regions[~empty] == np.where(outside, D, K)[~empty]).all()
    assert mining.evidence is not None and mining.evidence.reason == "fixed thresholds"


def test_steps_are_the_papers_rule_for_a_whole_store(tmp_path):
    store = write_store(tmp_path / "labels", crops=8)
    mining = mine(store, Regions(thresholds=(0.3, 0.6, 0.95), epsilon=0.2))
    assert mining.weights is None and "calibration steps" in mining.describe()
    rows, crops = np.arange(len(store)), np.tile(np.arange(8), (len(store), 1))
    labels = store.labels(rows[:, None], crops)
    targets = torch.from_numpy(np.repeat(store.targets.astype(np.int64), 8))
    out = mining.calibrate(labels, targets, rows, crops).dense()
    s = labels.max_prob()
    hard = SoftLabels.hard(targets.clamp_min(0), 6, 0.2).dense()
    replaced = (s >= 0.3) & (s < 0.6) & (targets >= 0)
    kept = ~((s < 0.3) | (s > 0.95))
    assert replaced.any() and (kept & ~replaced).any()
    assert torch.allclose(out[replaced], hard[replaced])
    assert torch.equal(out[kept & ~replaced], labels.dense()[kept & ~replaced])


def test_a_store_without_ground_truth_is_blended_with_nothing(tmp_path):
    store = write_store(tmp_path / "labels", ids=("a/1.jpg",))  # its one image has none
    mining = mine(store, Regions(calibration="blend", thresholds="none"))
    labels = store.labels(np.array([[0]]), np.arange(4))
    out = mining.calibrate(labels, torch.full((4,), -1), np.array([0]), np.arange(4)[None])
    assert torch.equal(out.dense(), labels.dense())
    assert "1 images without ground truth keep their soft labels" in mining.describe()


@pytest.mark.parametrize(("thresholds", "kept"), [((0.99, 0.99, 1.0), K), ((0.985, 0.99, 1.0), H)])
def test_an_image_without_a_crop_left_gets_a_hard_label_only_where_others_do(
    tmp_path, thresholds, kept
):
    """low = middle asks for no hard label: then the soft ones stay, else the truth is pressed."""
    store = write_store(tmp_path / "labels", crops=8)
    scores, _ = scores_of(store)
    assert (scores < thresholds[0]).all(axis=1).any()
    mining = mine(store, Regions(thresholds=thresholds))
    lost = (scores < thresholds[0]).all(axis=1)
    assert (mining.regions[lost] == kept).all() and mining.rescued == lost.sum()
    assert ("are kept whole" if kept == K else "count as hard") in mining.describe()
    rows, crops = np.flatnonzero(lost), np.tile(np.arange(8), (int(lost.sum()), 1))
    labels = store.labels(rows[:, None], crops)
    targets = torch.from_numpy(np.repeat(store.targets[rows].astype(np.int64), 8))
    out = mining.calibrate(labels, targets, rows, crops).dense()
    same = torch.isclose(out, labels.dense()).all(1)
    assert same[targets < 0].all() and (same[targets >= 0] == (kept == K)).all()


def test_shuffled_regions_are_as_many_on_other_crops(tmp_path):
    """Of 40 images of 8 crops; those that mining gave back are not discarded again."""
    store = write_store(tmp_path / "labels", crops=8, ids=tuple(f"a/{i}.jpg" for i in range(40)))
    thresholds = (0.8, 0.9, 0.97)
    found = mine(store, Regions(thresholds=thresholds))
    dealt = mine(store, Regions(thresholds=thresholds, shuffle=3))
    assert found.rescued > 0 and dealt.thresholds == found.thresholds
    for region in Region:
        assert 0 < dealt.shares[region.name.lower()] == (found.regions == region).mean()
    scores, _ = scores_of(store)
    assert scores[found.regions == D].max() > 0.97 > 0.8 > scores[found.regions == D].min()
    inside = (scores >= 0.8) & (scores <= 0.97)
    lost, all_lost = (dealt.regions == D)[inside].mean(), (dealt.regions == D).mean()
    assert not (found.regions == D)[inside].any() and abs(lost - all_lost) < 0.1
    assert "dealt to the crops at random (seed 3)" in dealt.describe()
    again, other = (mine(store, Regions(thresholds=thresholds, shuffle=s)) for s in (3, 4))
    assert (again.regions == dealt.regions).all() and (other.regions != dealt.regions).any()


def test_a_shuffle_that_takes_all_crops_of_an_image_gives_them_back(tmp_path):
    """Two crops each, half of all discarded: by chance some image loses both."""
    store = write_store(tmp_path / "labels", crops=2, ids=tuple(f"a/{i}.jpg" for i in range(60)))
    middle = float(np.median(scores_of(store)[0]))
    dealt = mine(store, Regions(thresholds=(middle, middle, 1.0), shuffle=0))
    assert dealt.rescued > 0 and (dealt.regions != D).any(axis=1).all()
    left = (dealt.regions == D).sum()
    assert left == round(dealt.shares["discarded"] * 120) - 2 * dealt.rescued


def test_a_blend_is_not_shuffled():
    with pytest.raises(ValueError, match="use calibration steps"):
        Regions(calibration="blend", shuffle=0)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Regions(shuffle=-1)


def test_the_surest_discarded_crops_come_back_where_too_few_are_left():
    """Kept already: 1, 0, 3 and 2 of 4. At least 2 asked for: one more of the first image, by
    score; an image without any is not this rule's; enough are left of the others."""
    regions = np.array([[D, D, K, D], [D, D, D, D], [K, K, D, K], [H, D, K, D]], np.int8)
    scores = np.array([[0.1, 0.4, 0.9, 0.2], [0.1, 0.2, 0.3, 0.4], [0.9, 0.9, 0.1, 0.9]])
    scores = np.concatenate([scores, [[0.6, 0.1, 0.9, 0.2]]])
    kept = keep_some(regions, scores, 2)
    assert kept.tolist() == [[D, K, K, D], [D, D, D, D], [K, K, D, K], [H, D, K, D]]
    assert keep_some(regions, scores, 9, Region.HARD).tolist() == [
        [H, H, K, H],
        [D, D, D, D],
        [K, K, H, K],
        [H, H, K, H],
    ]
    assert (keep_some(regions, scores, 1) == regions).all()


def test_a_store_keeps_as_many_crops_of_an_image_as_asked(tmp_path):
    store = write_store(tmp_path / "labels", crops=8, ids=tuple(f"a/{i}.jpg" for i in range(40)))
    thresholds = (0.9, 0.9, 1.0)
    plain = mine(store, Regions(thresholds=thresholds))
    kept = mine(store, Regions(thresholds=thresholds, keep=3))
    left = (plain.regions != D).sum(axis=1)
    assert (left < 3).any() and ((kept.regions != D).sum(axis=1) == np.maximum(left, 3)).all()
    assert kept.rescued == plain.rescued and kept.never_drawn < plain.never_drawn
    assert kept.left == pytest.approx(np.maximum(left, 3).mean())
    dealt = mine(store, Regions(thresholds=thresholds, keep=3, shuffle=0))
    assert dealt.shares["discarded"] == pytest.approx(kept.never_drawn)
    assert f"at least 3 crops of an image kept, {kept.left:.1f} left" in kept.describe()


def test_few_crops_left_are_said_with_their_number(tmp_path):
    """8 stored: 4 left are enough, fewer are said. 3 stored, all kept: not the discard's doing."""
    store = write_store(tmp_path / "labels", crops=8, ids=tuple(f"a/{i}.jpg" for i in range(40)))
    scores = np.sort(scores_of(store)[0], axis=None)
    strict, mild = float(scores[len(scores) * 7 // 10]), float(scores[len(scores) // 10])
    found = mine(store, Regions(thresholds=(strict, strict, 1.0)))
    assert found.left < 4 and found.note is not None
    crops = math.ceil(4 / (1 - found.never_drawn))
    assert f"leaves {found.left:.1f} of 8 stored crops an image" in found.note
    assert f"store {crops} crops" in found.note and "regions.keep" in found.note
    assert mine(store, Regions(thresholds=(strict, strict, 1.0), keep=4)).note is None
    assert mine(store, Regions(thresholds=(mild, mild, 1.0))).note is None
    few = write_store(tmp_path / "few", crops=3)
    assert mine(few, Regions(thresholds="none")).note is None
