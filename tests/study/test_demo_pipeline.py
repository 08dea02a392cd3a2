"""The demo end to end: every step real, only the sizes small."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferkd.study.demo import data as demo_data
from ferkd.study.demo import run as demo_run
from ferkd.study.demo.run import run_demo
from ferkd.study.demo.sizes import Sizes
from ferkd.study.scenes.drawn import SceneSettings, read_boxes, write_scenes
from ferkd.system.errors import InputError

TINY = Sizes(
    image_size=32,
    teacher="timm/resnet10t",
    teacher_args={"channels": [8, 8, 8, 8], "stem_width": 4},
    teacher_epochs=2,
    student="timm/resnet10t",
    student_args={"channels": [8, 8, 8, 8], "stem_width": 4},
    student_epochs=2,
    crops=4,
    crops_per_image=2,
    batch_size=16,
)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    few = SceneSettings(train_per_class=6, val_per_class=3)
    monkeypatch.setattr(demo_data, "write_scenes", lambda out: write_scenes(out, few))


def run(out: Path, **options):
    lines: list[str] = []
    demo = run_demo(out, sizes=TINY, say=lines.append, **options)
    assert all(name in demo.table for name in ("hard", "fkd", "ferkd"))
    return demo.result, lines


def test_the_whole_pipeline_on_the_embedded_scenes(tmp_path):
    result, lines = run(tmp_path / "demo", seeds=2)
    assert set(result["methods"]) == {"hard", "fkd", "ferkd"}
    steps = {row["steps"] for row in result["methods"].values()}
    assert steps == {8}  # 60 images, 2 epochs, 16 crops a step: ceil(120 / 16)
    for row in result["methods"].values():
        assert 0 <= row["top1"] <= 1 and row["top1_mean"] == row["top1"] and row["top1_std"] >= 0
    assert sum(result["regions"].values()) == pytest.approx(1)
    assert 0 <= result["auroc"] <= 1 and result["seconds"] > 0
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "ferkd" in page and "<svg" in page and "AUROC" in page and "data:image/jpeg" in page
    assert json.loads((tmp_path / "demo/result.json").read_text())["auroc"] == result["auroc"]
    shown = json.loads((Path(__file__).parents[2] / "docs/results/demo.json").read_text())
    assert shown.keys() - {"command", "machine", "date"} == result.keys()
    assert shown["methods"]["hard"].keys() == result["methods"]["hard"].keys()
    assert any(line.startswith("students/ferkd-1: regions: thresholds") for line in lines)

    # A finished demo is continued at once; another one is not made in its place unasked.
    again, _ = run(tmp_path / "demo", seeds=2, resume=True)
    assert again["methods"] == result["methods"]
    with pytest.raises(InputError, match="holds a demo already"):
        run(tmp_path / "demo")
    with pytest.raises(InputError, match="other settings"):
        run(tmp_path / "demo", resume=True, held_out=0.5)


def test_shares_of_the_object_are_of_the_right_images(tmp_path):
    from ferkd.store import LabelStore
    from ferkd.study.demo.summary import shares_of_object

    run(tmp_path / "demo")
    store = LabelStore(tmp_path / "demo/labels")
    boxes = read_boxes(tmp_path / "demo/data/train")
    shares = shares_of_object(store, boxes)
    row, crop = 7, 2
    top, left, height, width = store.boxes(row, crop)
    t, le, h, w = boxes[store.ids[row]]
    inside = max(0, min(top + height, t + h) - max(top, t)) * max(
        0, min(left + width, le + w) - max(left, le)
    )
    assert shares[row, crop] == pytest.approx(inside / (h * w))


def photos(root: Path, folders: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            cv2.imwrite(str(root / folder / f"{i}.jpg"), pixels)
    return root


def test_a_folder_of_classes_is_split_by_id(tmp_path):
    images = photos(tmp_path / "mine", ["cat", "dog"])
    result, _ = run(tmp_path / "demo", images=images, held_out=0.4)
    split = {
        side: {str(p.relative_to(tmp_path / "demo/data" / side)) for p in folder.rglob("*.jpg")}
        for side in ("train", "val")
        for folder in [tmp_path / "demo/data" / side]
    }
    assert len(split["train"]) == 6 and len(split["val"]) == 4 and not split["train"] & split["val"]
    assert {i.split("/")[0] for i in split["val"]} == {"cat", "dog"}
    assert "auroc" not in result


def test_a_folder_with_its_own_split_is_used_as_it_is(tmp_path):
    images = photos(tmp_path / "mine", ["train/a", "train/b", "val/a", "val/b"])
    run(tmp_path / "demo", images=images)
    assert not (tmp_path / "demo/data").exists()


@pytest.mark.parametrize("split", [True, False])
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, command_line, split):
    """From the folder that the demo was run in, with its paths as they were typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_run, "FOLDER", TINY)
    names = ["train/a b", "train/c", "val/a b", "val/c"] if split else ["a b", "c"]
    photos(tmp_path / "my photos", names)
    arguments = ["demo", "--images", "my photos", "--out", "first look", "--seeds", 2]
    status, _, said = command_line(*arguments)
    assert status == 0, said
    # The same progress as train shows, where there is no terminal: a line a task at least.
    titles = ["teacher", "labelling", "students"]
    for title in titles:
        assert re.search(rf"^{title}: (\d+)/\1 (images|steps|runs)", said, re.MULTILINE), title
    page = html.unescape((tmp_path / "first look/report.html").read_text())
    commands = re.search(r"How to reproduce.*?<code>(.*?)</code>", page, re.DOTALL)[1].splitlines()
    assert [shlex.split(c)[:2] for c in commands] == [
        ["ferkd", name] for name in ("demo", "inspect", "train")
    ]
    for command in commands:
        status, _, said = command_line(*shlex.split(command)[1:])
        assert status == 0, (command, said)
    results = [
        json.loads((tmp_path / folder / "result.json").read_text())["methods"]["hard"]["top1"]
        for folder in ("first look", "first look-again")
    ]
    assert results[0] == results[1]
    # The students are a suite like any other: compare tells the same of them.
    status, suite, said = command_line("compare", "first look/runs", "--json")
    assert status == 0, said
    told = json.loads((tmp_path / "first look/result.json").read_text())["methods"]
    rows = json.loads(suite)["methods"]
    assert {m: row["top1_mean"] for m, row in rows.items()} == {
        m: row["top1_mean"] for m, row in told.items()
    }


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="seeds is 0"):
        run(tmp_path / "demo", seeds=0)
    images = photos(tmp_path / "mine", ["cat", "dog"])
    with pytest.raises(InputError, match="held-out 1"):
        run(tmp_path / "demo", images=images, held_out=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/result.json").write_text("precious")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match="not a demo's folder"):
            run(tmp_path / "other", **options)
    assert (tmp_path / "other/result.json").read_text() == "precious"
