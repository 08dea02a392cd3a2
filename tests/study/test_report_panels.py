"""From results, run directories, scores and boxes to the data of the report's sections."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferkd.study.report import (
    CropThumb,
    comparison_from_results,
    confidence_panel,
    crop_thumb,
    curves_from_runs,
    gallery_item,
    jpeg_uri,
    mining_panel,
    pick_crops,
)
from ferkd.study.report.model import JPEG_URI
from ferkd.system.errors import InputError


def write_run(path: Path, method: str | None, lines: list[dict], end: str = "\n") -> Path:
    path.mkdir()
    text = "\n".join(json.dumps(line) for line in lines) + end
    (path / "metrics.jsonl").write_text(text if lines else "")
    if method is not None:
        (path / "result.json").write_text(json.dumps({"method": method, "top1": 0.5}))
    return path


def evaluation(step: int, top1: float, seconds: float = 1.0, nll: float | None = 1.0) -> dict:
    values = {"kind": "eval", "step": step, "seconds": seconds, "top1": top1, "nll": nll}
    return values | {"epoch": step / 10, "ece": 0.1}


def test_comparison_groups_by_method_in_order_of_appearance():
    results = [
        {"method": "hard", "top1": 0.60, "nll": 1.0, "seconds": 10, "steps": 100},
        {"method": "ferkd", "top1": 0.80, "nll": 0.7, "seconds": 8, "steps": 100},
        {"method": "hard", "top1": 0.70, "nll": 1.2, "seconds": 12, "steps": 100},
    ]
    table = comparison_from_results(results)
    assert [(row.method, row.seeds) for row in table.rows] == [("hard", 2), ("ferkd", 1)]
    keys = [column.key for column in table.columns]
    hard = dict(zip(keys, table.rows[0].stats, strict=True))
    assert hard["top1"].mean == pytest.approx(0.65)
    assert hard["top1"].deviation == pytest.approx(0.1 / math.sqrt(2))  # two values 0.1 apart
    assert hard["steps"].deviation == 0
    assert math.isnan(hard["ece"].mean)  # a metric that no run has
    assert table.rows[1].stats[0].deviation is None


def test_a_metric_that_one_seed_lacks_is_not_averaged_over_the_others():
    results = [{"method": "a", "top1": 0.5}, {"method": "a", "top1": None}]
    assert math.isnan(comparison_from_results(results).rows[0].stats[0].mean)


def test_curves_are_means_over_the_steps_that_all_runs_share(tmp_path):
    first = [evaluation(10, 0.2, 1.0), evaluation(20, 0.4, 2.0), evaluation(30, 0.9, 3.0)]
    train = {"kind": "train", "step": 10, "loss": 1.0, "seconds": 1.0}
    second = [train, evaluation(10, 0.4, 2.0), evaluation(20, 0.8, 4.0)]
    runs = [
        write_run(tmp_path / "a", "fkd", first),
        write_run(tmp_path / "b", "fkd", second),
        write_run(tmp_path / "c", "hard", [evaluation(10, 0.1, nll=None)]),
    ]
    fkd, hard = curves_from_runs(runs)
    assert (fkd.method, fkd.runs, fkd.steps, fkd.seconds) == ("fkd", 2, (10, 20), (1.5, 3.0))
    assert fkd.top1.mean == pytest.approx((0.3, 0.6))
    assert (fkd.top1.low, fkd.top1.high) == ((0.2, 0.4), (0.4, 0.8))
    assert (hard.runs, hard.top1.mean) == (1, (0.1,)) and math.isnan(hard.nll.mean[0])


def test_a_resumed_run_counts_its_last_word_on_a_step(tmp_path):
    lines = [evaluation(10, 0.2), evaluation(20, 0.9), evaluation(20, 0.3)]
    (curve,) = curves_from_runs([write_run(tmp_path / "a", "fkd", lines)])
    assert curve.top1.mean == (0.2, 0.3)


def test_an_unfinished_run_is_named_by_its_directory_and_loses_its_broken_end(tmp_path):
    run = write_run(tmp_path / "ferkd-7", None, [evaluation(10, 0.2)], end='\n{"kind": "eval", "st')
    (curve,) = curves_from_runs([run])
    assert (curve.method, curve.steps) == ("ferkd-7", (10,))
    (named,) = curves_from_runs([run], {run: "mine"})
    assert named.method == "mine"


def test_runs_without_evaluations_leave_no_curve(tmp_path):
    train = {"kind": "train", "step": 1, "loss": 2.0}
    runs = [write_run(tmp_path / "a", "fkd", [train]), write_run(tmp_path / "b", "fkd", [])]
    assert curves_from_runs(runs) == ()
    runs.append(write_run(tmp_path / "c", "fkd", [evaluation(5, 0.5)]))
    assert [c.runs for c in curves_from_runs(runs)] == [1]


def test_what_is_no_run_directory_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing: no metrics\.jsonl .*ferkd train --out"):
        curves_from_runs([tmp_path / "nothing"])
    bad = write_run(tmp_path / "bad", "fkd", [evaluation(1, 0.1)])
    (bad / "metrics.jsonl").write_text('{"kind": "eval"\n{"kind": "eval"}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1: not JSON"):
        curves_from_runs([bad])
    (bad / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="line 1: a JSON object is expected, not list"):
        curves_from_runs([bad])


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
