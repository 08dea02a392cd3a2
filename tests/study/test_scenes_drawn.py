"""The demo's scenes: reproducible bytes, true boxes, fair splits, and nothing half-written."""

from __future__ import annotations

import builtins
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ferkd.study.scenes import drawn as module
from ferkd.study.scenes.drawn import (
    CLASS_NAMES,
    SceneSettings,
    digit_ink,
    draw_scene,
    load_digits,
    read_boxes,
    read_sources,
    split_sources,
    torn_piece,
    write_scenes,
)
from ferkd.system.errors import InputError

pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn (extra demo)")

TINY = SceneSettings(train_per_class=3, val_per_class=2, seed=5)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(out, TINY)
    return out


def test_same_settings_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_scenes(tmp_path / "again", TINY)
    assert contents(written) == contents(again.train.parent)
    other = write_scenes(tmp_path / "other", TINY.model_copy(update={"seed": 6}))
    first = "train/0/00000.jpg"
    assert contents(written)[first] != contents(other.train.parent)[first]


def test_every_class_has_its_count_and_every_file_is_a_jpeg_of_stated_size(written: Path) -> None:
    for split, per_class in (("train", 3), ("val", 2)):
        assert sorted(p.name for p in (written / split).iterdir() if p.is_dir()) == [*CLASS_NAMES]
        for name in CLASS_NAMES:
            assert len(list((written / split / name).iterdir())) == per_class
    for data in (data for path, data in contents(written).items() if path.endswith(".jpg")):
        assert data[:3] == b"\xff\xd8\xff"  # the JPEG signature
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None and all(96 <= side <= 128 for side in image.shape[:2])


def test_boxes_name_every_image_and_lie_inside_it(written: Path) -> None:
    for split in ("train", "val"):
        boxes = read_boxes(written / split)
        assert sorted(boxes) == sorted(p for p in contents(written / split) if p.endswith(".jpg"))
        for key, (top, left, height, width) in boxes.items():
            image = cv2.imread(str(written / split / key))
            assert image is not None
            assert 0 <= top < top + height <= image.shape[0]
            assert 0 <= left < left + width <= image.shape[1]


def test_sources_show_their_class_and_no_source_is_in_both_splits(written: Path) -> None:
    labels = load_digits()[1]
    sources = {split: read_sources(written / split) for split in ("train", "val")}
    for entries in sources.values():
        assert all(str(labels[source]) == key[0] for key, source in entries.items())
    assert not set(sources["train"].values()) & set(sources["val"].values())


@pytest.mark.parametrize("share", [0.0001, 0.25, 0.9999])
def test_split_sources_is_a_partition_with_every_class_on_both_sides(share: float) -> None:
    labels = load_digits()[1]
    train, val = split_sources(labels, SceneSettings(val_sources=share))
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels[val]) == set(range(10))
    held = sum(min(max(round(n * share), 1), n - 1) for n in np.bincount(labels))
    assert len(val) == held


@hypothesis_settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), digit=st.integers(0, 1796))
def test_the_box_is_the_tight_box_of_the_ink_inside_the_central_square(
    seed: int, digit: int
) -> None:
    greys, _ = load_digits()
    scene = draw_scene(np.random.default_rng(seed), greys[digit], greys[:20], SceneSettings())
    rows, columns = np.nonzero(scene.ink)
    top, left, height, width = scene.box
    assert (top, left) == (rows.min(), columns.min())
    assert (top + height, left + width) == (rows.max() + 1, columns.max() + 1)
    scene_h, scene_w = scene.image.shape[:2]
    square = min(scene_h, scene_w)
    assert (scene_h - square) // 2 <= top and top + height <= (scene_h + square) // 2 + 1
    assert (scene_w - square) // 2 <= left and left + width <= (scene_w + square) // 2 + 1


@pytest.mark.parametrize("distractors", [(0, 0, 0), (3, 3, 3)])
def test_the_ink_is_seen_in_the_picture_exactly_where_the_box_says(
    monkeypatch: pytest.MonkeyPatch, distractors: tuple[int, int, int]
) -> None:
    """The same scene with invisible ink differs from the scene in the box and nowhere else."""
    greys, _ = load_digits()
    settings = SceneSettings(noise=0, distractors=distractors)
    full = draw_scene(np.random.default_rng(3), greys[7], greys[:20], settings)
    paint = module._paint

    def without_the_digit(image, alpha, *rest):  # type: ignore[no-untyped-def]
        if alpha.shape != full.box[2:]:
            paint(image, alpha, *rest)

    monkeypatch.setattr(module, "_paint", without_the_digit)
    bare = draw_scene(np.random.default_rng(3), greys[7], greys[:20], settings)
    change = np.abs(full.image.astype(int) - bare.image).max(axis=2)
    top, left, height, width = full.box
    outside = change.copy()
    outside[top : top + height, left : left + width] = 0
    assert outside.max() == 0
    for edge in (change[top], change[top + height - 1]):
        assert edge.max() > 0
    for edge in (change[:, left], change[:, left + width - 1]):
        assert edge.max() > 0
    # Where the ink covers, it is darker than the ground by about the stated contrast or more.
    grounds, inks = bare.image @ module._LUMA, full.image @ module._LUMA
    difference = np.average(grounds - inks, weights=full.ink == 1)
    assert difference > settings.contrast - 10


def test_the_ink_has_the_asked_side() -> None:
    greys, _ = load_digits()
    rng = np.random.default_rng(0)
    sides = [max(digit_ink(rng, grey, 40).shape) for grey in greys[:200]]
    assert abs(np.median(sides) - 40) <= 2
    assert max(sides) <= 1.4 * 40  # faint serifs may stick out


def test_a_torn_piece_never_holds_half_of_its_digit() -> None:
    greys, _ = load_digits()
    rng = np.random.default_rng(0)
    for grey in greys[:100]:
        whole = digit_ink(rng, grey, 40)
        piece = torn_piece(rng, whole)
        assert 0.1 * whole.sum() < piece.sum() <= 0.45 * whole.sum()


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"not an empty folder.*name a new folder"):
        write_scenes(tmp_path, TINY)
    with pytest.raises(InputError, match="not an empty folder"):
        write_scenes(tmp_path / "mine.txt", TINY)
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    settings = SceneSettings(train_per_class=1, val_per_class=1)
    (tmp_path / "empty").mkdir()
    scenes = write_scenes(tmp_path / "empty", settings)
    assert len(read_boxes(scenes.train)) == len(read_boxes(scenes.val)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_interrupted_run_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw, drawn = module.draw_scene, []

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        drawn.append(1)
        if len(drawn) == 35:  # train is complete, val has begun
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(module, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "out", TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", [None, "{half", "[]", '{"0/1.jpg": {"box": [1, 2, 3]}}', '{"a": {}}']
)
def test_a_folder_without_true_boxes_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(InputError, match=r"boxes\.json cannot be read"):
        read_boxes(tmp_path)


def test_a_missing_scikit_learn_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_import = builtins.__import__

    def without_sklearn(name, *arguments, **keywords):  # type: ignore[no-untyped-def]
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(InputError, match=r"ferkd\[demo\]"):
        write_scenes(tmp_path / "out", TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"size": (128, 96)}, "low <= high"),
        ({"object_side": (0.3, 0.8)}, "high <= 0.7"),
        ({"distractors": (1, -1, 0)}, "must not be negative"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_settings_state_their_rules(wrong: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        SceneSettings(**wrong)  # type: ignore[arg-type]
