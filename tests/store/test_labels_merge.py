"""Several teachers' labels as one: the published vectors, what a tail hides, refusals."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import everything

from ferkd.crops import CUT_RULE, CropDistribution
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.merge import accuracy_weights, combine, merge
from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError

A, B = [1.0, 3.0, 0.2], [0.1, 0.5, 2.0]  # two teachers' logits of one crop
IDS = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]
CROPS, CLASSES = 3, 12


def full(*rows: list[float]) -> SoftLabels:
    return SoftLabels.from_logits(torch.tensor(rows, dtype=torch.float64))


def test_the_committee_weights_of_cv_dd():
    weights = accuracy_weights([64, 60.6, 51.6, 59.4, 56.4])
    expected = [0.322570, 0.229596, 0.093347, 0.203633, 0.150855]
    assert weights == pytest.approx(expected, abs=1e-6)
    for wrong in ([], [0.64, 0.61], [101, 50], [-1, 50], [math.nan, 50]):
        with pytest.raises(InputError, match="in percent"):
            accuracy_weights(wrong)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("probs", [0.111051, 0.499284, 0.389665]), ("logits", [0.165197, 0.548474, 0.286329])],
)
def test_both_rules_on_all_classes(rule, expected):
    probs = combine([full(A), full(B)], [1, 1], rule).dense()[0]
    assert probs.tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10**6), st.lists(st.floats(0.1, 5), min_size=2, max_size=4))
def test_full_labels_are_combined_exactly(seed, weights):
    logits = 4 * torch.randn(
        len(weights), 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    share = torch.tensor(weights, dtype=torch.float64)[:, None, None] / sum(weights)
    targets = torch.tensor([0, 3, -1, 6, 2])
    members = [SoftLabels.from_logits(member, targets) for member in logits]
    for rule, expected in (
        ("probs", (logits.softmax(2) * share).sum(0)),
        ("logits", (logits * share).sum(0).softmax(1)),
    ):
        whole = combine(members, weights, rule, targets)
        assert torch.allclose(whole.dense().double(), expected, atol=1e-6)
        for temperature in (2.0, 4.0):
            tempered = (expected.log() / temperature).softmax(1)
            assert torch.allclose(whole.dense(temperature).double(), tempered, atol=1e-6)
        true = expected.gather(1, targets.clamp_min(0)[:, None])[:, 0]
        assert torch.isnan(whole.true_log_prob).tolist() == [False, False, True, False, False]
        known = targets >= 0
        assert torch.allclose(whole.true_log_prob.exp().double()[known], true[known], atol=1e-6)


def test_a_class_outside_one_top_k_counts_with_the_mean_of_its_tail():
    """By hand: five classes; the first teacher keeps 0 and 1, the second 0 and 2."""
    first = full(np.log([0.5, 0.2, 0.1, 0.1, 0.1]).tolist()).top(2)
    second = full(np.log([0.4, 0.06, 0.5, 0.02, 0.02]).tolist()).top(2)
    probs = combine([first, second], [3, 1], "probs").dense()[0]
    # The second's tail is 0.1 over three classes.
    assert probs.tolist() == pytest.approx(
        [
            0.75 * 0.5 + 0.25 * 0.4,
            0.75 * 0.2 + 0.25 * 0.1 / 3,
            0.75 * 0.1 + 0.25 * 0.5,
            0.75 * 0.1 + 0.25 * 0.1 / 3,
            0.75 * 0.1 + 0.25 * 0.1 / 3,
        ],
        abs=1e-6,
    )
    logits = combine([first, second], [3, 1], "logits").dense()[0]
    other = 0.1 / 3
    products = [
        0.5**0.75 * 0.4**0.25,
        0.2**0.75 * other**0.25,
        0.1**0.75 * 0.5**0.25,
        0.1**0.75 * other**0.25,
        0.1**0.75 * other**0.25,
    ]
    assert logits.tolist() == pytest.approx([p / sum(products) for p in products], abs=1e-6)


def test_the_true_class_is_known_outside_a_top_k():
    """The record of the second teacher holds class 1 = 0.08 beside its top 2; tail 0.02 is left."""
    targets = torch.tensor([1])
    first = SoftLabels.from_logits(torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]).log(), targets, 2)
    second = SoftLabels.from_logits(
        torch.tensor([[0.4, 0.08, 0.5, 0.015, 0.005]]).log(), targets, 2
    )
    whole = combine([first, second], [1, 1], "probs", targets)
    expected = [0.45, 0.14, 0.3, 0.055, 0.055]
    assert whole.dense()[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert whole.true_log_prob.exp().tolist() == pytest.approx([0.14], abs=1e-6)
    unknown = combine([first.top(2), second], [1, 1], "probs", torch.tensor([-1]))
    assert torch.isnan(unknown.true_log_prob).all()


@pytest.mark.parametrize("rule", ["probs", "logits"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_teacher_twice_is_that_teacher_tails_included(rule, k):
    logits = 3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    label = SoftLabels.from_logits(logits, k=k)
    whole = combine([label, label], [1, 2], rule)
    for temperature in (1.0, 2.0, 3.0, 4.0):
        assert torch.allclose(whole.dense(temperature), label.dense(temperature), atol=1e-5)


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["probs", "logits"]),
)
def test_any_combination_is_a_distribution(seed, k, other_k, rule):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 9, (6,), generator=generator)
    members = [
        SoftLabels.from_logits(5 * torch.randn(6, 9, generator=generator), targets, n)
        for n in (k, other_k)
    ]
    whole = combine(members, [1, 3], rule, targets)
    stored = torch.isfinite(whole.log_probs)
    assert torch.allclose((whole.log_probs.exp() * stored).sum(1) + whole.tail[:, 0].exp(),
                          torch.ones(6), atol=1e-6)  # fmt: skip
    for temperature in (1.0, 2.0, 4.0):
        dense = whole.dense(temperature)
        assert (dense >= -1e-6).all() and torch.allclose(dense.sum(1), torch.ones(6), atol=1e-5)
    for row in range(6):
        classes = whole.classes[row][stored[row]].tolist()
        assert len(classes) == len(set(classes)) >= max(k, other_k)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_even_tails_are_combined_exactly_at_any_temperature(temperature):
    """By hand: both tails are even, so the mean of a tail is each of its classes."""
    one, two = [0.5] + [0.1] * 5, [0.8] + [0.04] * 5
    members = [full(np.log(p).tolist()).top(1) for p in (one, two)]
    for rule, expected in (
        ("probs", [0.65] + [0.07] * 5),
        ("logits", [0.4**0.5] + [0.004**0.5] * 5),
    ):
        tempered = [p ** (1 / temperature) for p in expected]
        got = combine(members, [1, 1], rule).dense(temperature)[0]
        assert got.tolist() == pytest.approx([p / sum(tempered) for p in tempered], abs=1e-6)


def test_a_true_class_that_is_or_exceeds_the_tail():
    """It is all of a tail of one class; rounded to more than its tail, it is nearly all of it."""
    targets = torch.tensor([2])
    one = SoftLabels.from_logits(torch.tensor([[0.6, 0.3, 0.1]]).log(), targets, 2)
    two = SoftLabels.from_logits(torch.tensor([[0.2, 0.1, 0.7]]).log(), targets, 2)
    whole = combine([one, two], [1, 1], "probs", targets)
    assert whole.dense()[0].tolist() == pytest.approx([0.4, 0.2, 0.4], abs=1e-6)
    rounded = replace(
        SoftLabels.from_logits(torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log(), targets, 2),
        true_log_prob=torch.tensor([0.12]).log(),  # the tail is 0.1
    )
    whole = combine([rounded, rounded], [1, 1], "probs", targets)
    assert whole.dense()[0].tolist() == pytest.approx([0.6, 0.3, 0.098, 0.002], abs=1e-6)
    assert torch.isfinite(whole.dense(4.0)).all()


def logits_of(teacher: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(teacher)
    return 3 * torch.randn(len(IDS) * CROPS, CLASSES, generator=generator)


def write_store(path: Path, teacher: int, *, k=4, values="f32", skip=(), **changes) -> LabelStore:
    """A store of IDS; ``changes``: ids, targets, fingerprint, box, mirrored, ..."""
    ids = changes.get("ids", IDS)
    classes = changes.get("classes", CLASSES)
    tail, rule = changes.get("tail", "tempered"), changes.get("rule", CUT_RULE)
    settings = manifests.Settings(
        record=manifests.Record(**vars(RecordFormat.choose(k, classes, values, tail))),
        crops=manifests.Crops(count=CROPS, distribution=CropDistribution(), seed=0, rule=rule),
        images=manifests.Images(decoder=f"decoder {teacher}", exif=True, listing=listing(ids)),
        teacher={"spec": f"teacher {teacher}"},
        class_names=changes.get("names", ()),
        targets=True,
        part_images=2,
        software=f"software {teacher}",
    )
    targets = np.array(changes.get("targets", [0, 1, -1, 3, 11]))
    labels = SoftLabels.from_logits(
        logits_of(teacher)[:, :classes], torch.from_numpy(np.repeat(targets, CROPS)), k
    )
    rng = np.random.default_rng(0)
    boxes = rng.integers(1, 150, (len(IDS) * CROPS, 4))
    flips = rng.random(len(IDS) * CROPS) < 0.5
    boxes[0] = changes.get("box", boxes[0])
    flips[-1] ^= changes.get("mirrored", False)
    with StoreWriter(path, settings, len(ids)) as writer:
        for part in writer.missing():
            rows = [i for i in writer.part_range(part) if ids[i] not in skip]
            flat = np.array([r * CROPS + c for r in rows for c in range(CROPS)], int)
            table = np.zeros(len(rows), IMAGE)
            table["target"], table["height"], table["width"] = targets[rows], 300, 400
            table["fingerprint"] = [changes.get("fingerprint", 7) + r for r in rows]
            records = settings.record.format.encode(labels[torch.from_numpy(flat)])
            of_crops = boxes[flat].reshape(-1, CROPS, 4), flips[flat].reshape(-1, CROPS)
            skipped = [
                manifests.Skipped(id=ids[i], reason="broken")
                for i in writer.part_range(part)
                if ids[i] in skip
            ]
            records = records.reshape(-1, CROPS)
            writer.write(part, [ids[i] for i in rows], table, *of_crops, records, skipped)
        return writer.finish()


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_full_stores_merge_exactly(tmp_path, rule):
    stores = [write_store(tmp_path / str(t), t, k=None) for t in (1, 2)]
    whole = merge(stores, tmp_path / "m", rule=rule, weights=[1, 3])
    one, two = logits_of(1), logits_of(2)
    if rule == "probs":
        expected = 0.25 * one.softmax(1) + 0.75 * two.softmax(1)
    else:
        expected = (0.25 * one + 0.75 * two).softmax(1)
    assert whole.record == RecordFormat(CLASSES, CLASSES, "f32")
    assert torch.allclose(everything(whole).dense(), expected, atol=1e-6)
    top = merge(stores, tmp_path / "t", rule=rule, weights=[1, 3], top_k=2)
    order = expected.argsort(1, descending=True)[:, :2]
    assert torch.equal(everything(top).classes, order)
    assert torch.allclose(everything(top).log_probs.exp(), expected.gather(1, order), atol=1e-6)
    for temperature in (2.0, 4.0):  # the tail of a full label's top-k is exact
        tempered = (expected.log() / temperature).softmax(1).gather(1, order)
        got = everything(top).dense(temperature).gather(1, order)
        assert torch.allclose(got, tempered, atol=1e-5)


def test_a_merged_store_is_the_combination_of_its_members(tmp_path, monkeypatch):
    stores = [write_store(tmp_path / "1", 1, k=4), write_store(tmp_path / "2", 2, k=3)]
    targets = torch.from_numpy(np.repeat(stores[0].targets, CROPS).astype(np.int64))
    monkeypatch.setattr("ferkd.store.derive._CELLS", 7 * CROPS)  # an image at a time
    seen = []
    whole = merge(stores, tmp_path / "m", progress=lambda *now: seen.append(now))
    expected = combine([everything(s) for s in stores], [1, 1], "probs", targets).top(4)
    assert torch.allclose(everything(whole).dense(), expected.dense(), atol=1e-5)
    known = targets >= 0
    assert torch.allclose(
        everything(whole).true_log_prob[known], expected.true_log_prob[known], atol=1e-5
    )
    assert (whole.images == stores[0].images).all() and list(whole.ids) == IDS
    rows, crops = np.arange(5)[:, None], np.arange(CROPS)
    assert (whole.boxes(rows, crops) == stores[0].boxes(rows, crops)).all()
    assert (whole.flips(rows, crops) == stores[0].flips(rows, crops)).all()
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_merge_says_what_it_was_made_of(tmp_path):
    stores = [
        write_store(tmp_path / str(t), t, names=n) for t, n in ((1, ()), (2, tuple("abcdefghijkl")))
    ]
    whole = merge([s.path for s in stores], tmp_path / "m", weights=[3, 1])
    written = json.loads((whole.path / "manifest.json").read_text())
    made = written["signals"]["labels"]["settings"]
    assert made["teacher"]["spec"] == "merge of teacher 1, teacher 2"
    assert made["teacher"]["rule"] == "probs"
    members = made["teacher"]["members"]
    assert [m["weight"] for m in members] == [0.75, 0.25]
    assert [m["teacher"] for m in members] == [{"spec": "teacher 1"}, {"spec": "teacher 2"}]
    assert [m["software"] for m in members] == ["software 1", "software 2"]
    for member, store in zip(members, stores, strict=True):
        data = (store.path / "manifest.json").read_bytes()
        assert member["manifest_sha256"] == hashlib.sha256(data).hexdigest()
    assert written["geometry"]["settings"]["images"]["decoder"] == "decoder 1; decoder 2"
    assert whole.class_names == tuple("abcdefghijkl")


def test_stores_of_other_crops_are_refused_by_the_first_difference(tmp_path):
    first = write_store(tmp_path / "1", 1, names=tuple("abcdefghijkl"))
    cases = {
        r"classes: 11, not 12": {"classes": 11, "targets": [0] * 5},
        r"class 3: 'x', not 'd'": {"names": tuple("abcxefghijkl")},
        r"image 4 is b/6.jpg, not b/5.jpg": {"ids": [*IDS[:4], "b/6.jpg"]},
        r"it has 4 images, not 5": {"skip": ["b/5.jpg"]},
        r"image 1 is b/3.jpg, not a/2.jpg": {"skip": ["a/2.jpg"]},
        r"the fingerprint of a/1.jpg is 8, not 7": {"fingerprint": 8},
        r"the target of b/3.jpg is 2, not -1": {"targets": [0, 1, 2, 3, 11]},
        r"the resize rule: 'other', not 'opencv": {"rule": "other"},
        r"crop 0 of a/1.jpg is \[1, 2, 3, 4\], not \[": {"box": [1, 2, 3, 4]},
        r"crop 2 of b/5.jpg is .* or mirrored": {"mirrored": True},
    }
    for number, (message, changes) in enumerate(cases.items()):
        other = write_store(tmp_path / f"other {number}", 2, **changes)
        with pytest.raises(InputError, match=message):
            merge([first, other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_imported_labels_merge_with_others(tmp_path):
    """They know their tail's mass alone; what is not known is not made up."""
    ours = write_store(tmp_path / "ours", 1, k=3)
    theirs = write_store(tmp_path / "theirs", 2, k=4, tail="mass", rule="imported: FKD")
    whole = merge([ours, theirs], tmp_path / "m")
    assert whole.settings.crops.rule == "imported: FKD" and whole.record.tail == "mass"
    parts = [everything(s) for s in (ours, theirs)]
    targets = torch.from_numpy(np.repeat(ours.targets, CROPS).astype(np.int64))
    expected = combine(parts, [1, 1], "probs", targets).top(4)
    assert torch.allclose(everything(whole).dense(), expected.dense(), atol=1e-5)
    with pytest.raises(InputError, match="temperature 2"):
        everything(whole).dense(2.0)
    full = write_store(tmp_path / "full", 3, k=None)
    known = merge([full, theirs], tmp_path / "known", top_k=4)  # all classes, so a tail to sum up
    assert known.record.tail == "tempered"
    dense = combine([everything(full), everything(theirs)], [1, 1], "probs").dense(2.0)
    stored = everything(known).classes
    assert torch.allclose(
        everything(known).dense(2.0).gather(1, stored), dense.gather(1, stored), atol=1e-5
    )


def test_skipped_images_stay_listed(tmp_path):
    stores = [write_store(tmp_path / str(t), t, skip=["a/2.jpg", "b/5.jpg"]) for t in (1, 2)]
    whole = merge(stores, tmp_path / "m")
    assert list(whole.ids) == ["a/1.jpg", "b/3.jpg", "b/4.jpg"]
    assert whole.manifest.skipped == stores[0].manifest.skipped


def test_wrong_options_are_named(tmp_path):
    stores = [write_store(tmp_path / str(t), t) for t in (1, 2)]
    for message, options in {
        "give one number above 0 for each": {"weights": [1]},
        "weights .*0.0": {"weights": [1, 0]},
        "top_k is 5; the stores hold at most 4": {"top_k": 5},
        "rule 'mean' is not one of probs, logits": {"rule": "mean"},
    }.items():
        with pytest.raises(InputError, match=message):
            merge(stores, tmp_path / "m", **options)
    with pytest.raises(InputError, match="1 store to merge"):
        merge(stores[:1], tmp_path / "m")
    before = (stores[1].path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="is itself one of the stores to read"):
        merge(stores, stores[1].path, overwrite=True)
    assert (stores[1].path / "manifest.json").read_bytes() == before
    assert not (tmp_path / "m").exists()


def test_an_interrupted_merge_is_continued_to_the_same_bytes(tmp_path):
    stores = [write_store(tmp_path / str(t), t) for t in (1, 2)]
    whole = merge(stores, tmp_path / "whole")

    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(stores, tmp_path / "killed", progress=die)
    with pytest.raises(InputError, match="other settings"):
        merge(stores, tmp_path / "killed", weights=[1, 2], resume=True)
    continued = merge(stores, tmp_path / "killed", resume=True)
    for file in whole.path.iterdir():
        assert file.read_bytes() == (continued.path / file.name).read_bytes()
