"""Boxes and labels of FKD's authors, converted exactly or counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fkd_files import some_probs
from hypothesis import given, settings
from hypothesis import strategies as st

from ferkd.crops import random_boxes
from ferkd.store.fkd.convert import boxes_of, coords_of, kind_of, labels_of, uncertain
from ferkd.store.fkd.files import DamagedLabels
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError


@given(st.integers(1, 65_535), st.integers(1, 65_535), st.integers(0, 2**32), st.sampled_from("sh"))
@settings(deadline=None)
def test_boxes_come_back_exactly_or_are_counted(height, width, seed, precision):
    """Mistake 1: relative boxes; exact in single precision, and in half up to 2048 pixels."""
    boxes = random_boxes([height], [width], crops=40, seed=seed % 2**31, ids=["x"])[0][0]
    dtype = {"s": np.float32, "h": np.float16}[precision]
    back = boxes_of(coords_of(boxes, height, width, dtype), height, width)
    if precision == "s" or max(height, width) <= 2048:
        assert (back == boxes).all()
        assert precision == "s" or not uncertain(boxes, height, width).any()
    wrong = (back != boxes).any(1)
    assert uncertain(boxes, height, width)[wrong].all()
    assert ((back[:, :2] >= 0) & (back[:, 2:] >= 1)).all()
    assert (back[:, :2] + back[:, 2:] <= [height, width]).all()


def test_a_large_photograph_in_half_precision_is_mostly_uncertain():
    """4288 x 2848, for which label-store figures say that 55 % of the boxes are wrong."""
    boxes = random_boxes([2848], [4288], crops=2000, seed=0, ids=["x"])[0][0]
    back = boxes_of(coords_of(boxes, 2848, 4288, np.float16), 2848, 4288)
    wrong = (back != boxes).any(1).mean()
    assert 0.4 < wrong < 0.7 and wrong < uncertain(boxes, 2848, 4288).mean() < 1


def test_truncation_would_move_boxes_where_rounding_does_not():
    """Mistake 1: 29 / 224 in single precision, times 224, is 28.99999982 or so."""
    boxes = random_boxes([224], [224], crops=500, seed=0, ids=["x"])[0][0]
    coords = coords_of(boxes, 224, 224, np.float32)
    cut_off = (coords.astype(np.float64) * 224).astype(int)
    assert (cut_off != boxes).any(1).mean() > 0.8
    assert (boxes_of(coords, 224, 224) == boxes).all()


def test_an_image_of_another_size_is_told_and_can_be_accepted():
    coords = np.array([[10 / 300, 0, 101 / 300, 1]], np.float32)
    with pytest.raises(DamagedLabels, match=r"crop 0 .* not made of whole pixels .* of 200x64"):
        boxes_of(coords, 200, 64)
    # 10 / 300 of 200 is 6.67, 101 / 300 of it 67.33
    assert boxes_of(coords, 200, 64, resized=True).tolist() == [[7, 0, 67, 64]]


def test_boxes_outside_of_the_image_are_clamped_by_one_pixel_or_refused():
    def box(top, height):
        return boxes_of(np.array([[top / 50, 0, height / 50, 1]], np.float32), 50, 8).tolist()

    assert box(20, 31) == [[20, 0, 30, 8]]
    assert box(50, 1) == [[49, 0, 1, 8]] and box(3, 0) == [[3, 0, 1, 8]]
    with pytest.raises(DamagedLabels, match=r"crop 0, \[20, 0, 32, 8\], reaches outside"):
        box(20, 32)
    for outside in (-1, 51, math.nan):
        with pytest.raises(DamagedLabels, match=r"does not lie in 0 \.\. 1"):
            box(outside, 10)


# Labels -----------------------------------------------------------------------------------------


def close(a, b, tolerance=1e-6):
    assert torch.allclose(a, torch.tensor(b), atol=tolerance), (a, b)


def test_every_kind_by_hand():
    """C = 5. Top-2 of .6 .3 leaves .1 to 3 classes; smoothing .6 leaves .4 to 4; hard leaves 0."""
    top = labels_of(np.array([[[4, 1], [0.6, 0.3]]], np.float32), "top-k", 5)
    close(top.dense()[0], [0.1 / 3, 0.3, 0.1 / 3, 0.1 / 3, 0.6])
    close(top.dense(tail="renorm")[0], [0, 1 / 3, 0, 0, 2 / 3])
    smooth = labels_of(np.array([[4, 0.6]], np.float32), "smoothing", 5)
    close(smooth.dense()[0], [0.1, 0.1, 0.1, 0.1, 0.6])
    hard = labels_of(np.array([3]), "hard", 5)
    assert hard.dense().tolist() == [[0, 0, 0, 1, 0]]
    given = [0.125, 0.5, 0.0, 0.25, 0.125]
    full = labels_of(np.array([given], np.float16), "full", 5)
    close(full.dense()[0], given)
    for labels in (top, smooth, hard):
        with pytest.raises(InputError, match=r"temperature 2\.0 asks for the tail"):
            labels.dense(2.0)
    close(full.dense(2.0)[0], [p**0.5 / sum(q**0.5 for q in given) for p in given])


def test_a_top_k_that_rounding_lifts_above_one_stays_itself():
    """Mistake 4: half precision makes .97656 + .01999 + ... exceed 1; nothing else may change."""
    probs = np.array([0.9766, 0.012, 0.00801, 0.0024, 0.0011], np.float16)
    assert float(probs.astype(float).sum()) > 1
    label = labels_of(np.stack([np.arange(5, dtype=np.float16), probs])[None], "top-k", 1000)
    assert label.max_prob()[0] == pytest.approx(float(probs[0]), abs=1e-6)
    record = RecordFormat.choose(5, 1000, tail="mass")
    records = record.encode(label)
    assert record.decode(records).dense()[0, 0] == pytest.approx(0.9766, abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[[0, 5], [0.6, 0.3]]], "5 is not one of 5 classes"),
        ([[[0, -1], [0.6, 0.3]]], "-1 is not one of"),
        ([[[0, 1.5], [0.6, 0.3]]], "1.5 is not one of"),
        ([[[2, 2], [0.6, 0.3]]], "a class stands twice"),
        ([[[0, 1], [0.6, 0.5]]], "crop 0 has probabilities from 0.5 that sum to 1.1"),
        ([[[0, 1], [0.6, -0.1]]], "probabilities from -0.1"),
        ([[[0, 1], [math.nan, 0.3]]], "not finite"),
        ([[[0, 1], [0.1, 0.1]]], "no class of probability 1/5"),
    ],
)
def test_what_is_no_label_is_named(labels, message):
    with pytest.raises(DamagedLabels, match=message):
        labels_of(np.array(labels, np.float32), "top-k", 5)


def test_full_labels_that_are_not_probabilities_are_named():
    """Relatives of FKD store logits; a softmax of probabilities, or the reverse, is no label."""
    with pytest.raises(DamagedLabels, match=r"sum to 0\.5"):
        labels_of(np.array([[0.25, 0.25, 0.0]], np.float32), "full", 3)


def test_kinds_are_told_by_shape_or_asked_for():
    assert kind_of((9, 2, 5), "auto", 2) == "top-k" and kind_of((9,), "auto", None) == "hard"
    assert kind_of((9, 2), "auto", 10) == "smoothing" and kind_of((9, 10), "auto", 10) == "full"
    assert kind_of((9, 7), "auto", None) == "full"
    # [0, 1] is class 0 for sure, or the first of two classes for impossible.
    with pytest.raises(InputError, match="may be smoothing or full; say which"):
        kind_of((9, 2), "auto", 2)
    assert kind_of((9, 2), "full", 2) == "full" and kind_of((9, 2), "smoothing", 2) == "smoothing"
    for shape, kind in (((9, 3, 5), "auto"), ((9, 7), "auto"), ((9,), "full")):
        with pytest.raises(InputError, match="are not of kind"):
            kind_of(shape, kind, 10)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 99), st.sampled_from(["u8", "f16"]))
def test_records_with_a_mass_alone_give_back_labels_and_no_more(classes, k, seed, values):
    probs = some_probs(4, classes, seed).astype(np.float32)
    k = min(k, classes)
    order = np.argsort(-probs, 1)[:, :k]
    given = np.stack([order, np.take_along_axis(probs, order, 1)], 1)
    labels = labels_of(given, "top-k", classes)
    record = RecordFormat.choose(k, classes, values, tail="mass")
    records = record.encode(labels)
    back = record.decode(records, np.ones(4, bool))
    assert (back.dense() - labels.dense()).abs().max() < {"u8": 0.06, "f16": 2e-3}[values]
    assert back.true_log_prob is None
    others = torch.tensor(
        [int(np.setdiff1d(range(classes), o)[0]) if k < classes else 0 for o in order]
    )
    if k < classes:  # the mean of the tail: what is known of a class outside of the top k
        mean = back.tail[:, 0].exp() / (classes - k)
        assert torch.allclose(back.prob_of(others), mean)
        with pytest.raises(InputError, match="imported labels do not"):
            back.dense(4.0)
    else:
        assert record == RecordFormat.choose(k, classes, values)


def test_sizes_of_records_with_a_mass_alone_and_what_does_not_fill_the_others():
    assert RecordFormat.choose(5, 1000, tail="mass").dtype.itemsize == 15
    assert RecordFormat.choose(5, 1000).dtype.itemsize == 18
    labels = labels_of(np.array([[0, 0.5]], np.float32), "smoothing", 10)
    with pytest.raises(ValueError, match="tail is not known do not fill a 'tempered' record"):
        RecordFormat.choose(1, 10).encode(labels)
