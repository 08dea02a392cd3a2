"""From scores, regions and boxes to the data of the report's sections."""

from __future__ import annotations

import base64
import dataclasses
import json
import math

import cv2
import numpy as np
import pytest

from ferkd.study.report import (
    CropThumb,
    confidence_panel,
    crop_thumb,
    gallery_item,
    jpeg_uri,
    mining_panel,
    pick_crops,
)
from ferkd.study.report.model import JPEG_URI


def test_confidence_counts_by_region_and_reliability_by_hand():
    scores = np.array([[0.10, 0.30, 0.30], [0.35, 0.90, 1.00]])
    regions = np.array([[0, 1, 1], [1, 2, 0]])
    correct = np.array([[False, True, False], [False, True, True]])
    panel = confidence_panel(
        scores, regions, thresholds=(0.2, 0.5, 0.95), correct=correct, classes=4, bins=5
    )
    assert [list(row) for row in panel.counts] == [
        [1, 0, 0, 0, 1],
        [0, 3, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    assert panel.chance == 0.25 and panel.edges == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1))
    r = panel.reliability
    assert r is not None  # three bins hold crops: 1 (0 right), 3 (1 right), 2 (2 right)
    assert r.at == pytest.approx((0.1, 0.95 / 3, 0.95)) and r.rate == pytest.approx((0, 1 / 3, 1))
    assert all(low <= rate <= high for low, rate, high in zip(r.low, r.rate, r.high, strict=True))
    assert confidence_panel(scores, regions, thresholds=None).reliability is None


def test_mining_by_hand():
    scores = [0.1, 0.2, 0.4, 0.9, 0.8, 0.5]
    shares = [0.0, 0.6, 0.2, 1.0, 0.8, math.nan]  # the last image has no known object
    panel = mining_panel(scores, shares, [0, 1, 1, 2, 2, 2], bins=4)
    # Holding: 0.2, 0.9, 0.8; not: 0.1, 0.4. Pairs won: 1 + 2 + 2 of 6.
    assert panel.auroc == pytest.approx(5 / 6) and panel.positives == pytest.approx(3 / 5)
    discarded, hard, important = panel.regions
    assert (discarded.crops, discarded.mean, discarded.holding) == (1, 0.0, 0.0)
    assert hard.mean == pytest.approx(0.4) and hard.quartiles == pytest.approx((0.3, 0.4, 0.5))
    assert (hard.holding, important.holding) == (0.5, 1.0)
    assert important.histogram == (0, 0, 0, 2)


def test_a_region_without_crops_and_a_class_without_members_are_not_available():
    panel = mining_panel([0.5, 0.6], [1.0, 1.0], [2, 2])
    assert math.isnan(panel.auroc) and panel.false_rate == ()
    assert panel.regions[0].crops == 0 and math.isnan(panel.regions[0].mean)
    empty = mining_panel([], [], [])
    assert math.isnan(empty.positives)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="3 scores for 2 region codes"):
        confidence_panel([0.1, 0.2, 0.3], [0, 1], thresholds=None)
    with pytest.raises(ValueError, match="1 scores, 2 shares, 1 region codes"):
        mining_panel([0.1], [0.1, 0.2], [0])
    with pytest.raises(ValueError, match="2 boxes, 1 flips"):
        gallery_item(np.zeros((9, 9, 3), np.uint8), [[0, 0, 1, 1]] * 2, [0], [1], [0.5], name="x")


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith(JPEG_URI)
    data = np.frombuffer(base64.b64decode(uri.removeprefix(JPEG_URI)), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def halves() -> np.ndarray:
    """400 x 200, left half red, right half blue."""
    image = np.zeros((200, 400, 3), np.uint8)
    image[:, :200, 0], image[:, 200:, 2] = 255, 255
    return image


def test_thumbnails_keep_colours_and_aspect_and_never_grow():
    small = decoded(jpeg_uri(halves(), longest=100))
    assert small.shape == (50, 100, 3)
    assert small[25, 10, 0] > 240 > 15 > small[25, 10, 2] and small[25, 90, 2] > 240
    assert decoded(jpeg_uri(halves(), longest=4000)).shape == (200, 400, 3)


def test_a_crop_thumbnail_is_mirrored_like_the_crop():
    plain = crop_thumb(halves(), [0, 100, 200, 200], False, 2, 0.9, name="x", size=64)
    mirrored = crop_thumb(halves(), [0, 100, 200, 200], True, 2, 0.9, name="x", size=64)
    left, right = decoded(plain.image), decoded(mirrored.image)
    assert left.shape == (64, 64, 3)
    assert left[32, 5, 0] > 200 > left[32, 5, 2] and right[32, 5, 2] > 200 > right[32, 5, 0]


def test_the_drawn_crops_take_the_regions_in_turn():
    assert pick_crops([2, 2, 2, 0, 2, 1, 2], 4) == [0, 1, 3, 5]
    assert pick_crops([2, 2], 9) == [0, 1] and pick_crops([], 3) == []
    boxes = [[0, 0, 10 + i, 20] for i in range(7)]
    item = gallery_item(
        halves(),
        boxes,
        [True] * 7,
        [2, 2, 2, 0, 2, 1, 2],
        np.linspace(0.1, 0.7, 7),
        name="a/b.jpg",
        top=[[(f"class {i}", 0.5)] for i in range(7)],
        limit=4,
    )
    assert [c.box[2] for c in item.crops] == [10, 11, 13, 15]
    assert item.crops[2].top == (("class 3", 0.5),) and item.crops[2].score == pytest.approx(0.4)
    json.dumps(dataclasses.asdict(item))


def test_a_picture_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match="not an embedded image"):
        CropThumb("x", "https://example.org/x.jpg", gallery_item_crop())


def gallery_item_crop():
    image = halves()
    return crop_thumb(image, [0, 0, 9, 9], False, 0, 0.1, name="x").crop
