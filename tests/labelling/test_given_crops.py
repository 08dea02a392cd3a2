"""Crops of the user's own: labelled as they are given, refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ferkd.crops import cut
from ferkd.images import decode, open_images
from ferkd.labelling.given import read_crops
from ferkd.labelling.run import label
from ferkd.labelling.verify import verify_store
from ferkd.models.teacher import Inputs, Teacher
from ferkd.system.errors import InputError

ROWS = [
    {"image": "c/1.png", "box": [0, 0, 20, 30], "flip": True},
    {"image": "c/0.png", "box": [2, 3, 5, 7]},
    {"image": "c/1.png", "box": [1, 1, 1, 1], "flip": False},
    {"image": "c/0.png", "box": [0, 0, 20, 30]},
]


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(3):
        path = tmp_path / f"images/c/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(path), pixels)
    return tmp_path / "images"


def teacher() -> Teacher:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 4))
    return Teacher(module, Inputs(image_size=8), spec="test", device="cpu")


def written(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sides = ("top", "left", "height", "width")
        columns = [
            {"image": r["image"], "flip": r.get("flip", False)}
            | dict(zip(sides, r["box"], strict=True))
            for r in rows
        ]
        pq.write_table(pa.Table.from_pylist(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_given_crops_are_labelled_as_they_are(images, tmp_path, suffix):
    file = written(tmp_path / f"crops.{suffix}", ROWS)
    model = teacher()
    store = label(
        images, model, tmp_path / "s", crops_from=file, values="f32", top_k=None, targets=False
    )
    assert list(store.ids) == ["c/0.png", "c/1.png"] and store.crops_per_image == 2
    assert store.boxes([0, 0, 1, 1], [0, 1, 0, 1]).tolist() == [
        [2, 3, 5, 7],
        [0, 0, 20, 30],
        [0, 0, 20, 30],
        [1, 1, 1, 1],
    ]
    assert store.flips([0, 0, 1, 1], [0, 1, 0, 1]).tolist() == [False, False, True, False]
    pixels = cut(decode(open_images(images).read(1)), (0, 0, 20, 30), True, 8)
    expected = model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).softmax(1)
    assert torch.allclose(store.labels(1, 0).dense(), expected, atol=1e-5)
    assert [s.id for s in store.manifest.skipped] == ["c/2.png"]
    assert store.geometry.crops.digest == read_crops(written(tmp_path / "x.json", ROWS)).digest
    assert verify_store(store.folder, images=images, teacher=model).ok


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "c/0.png", "box": [0, 0, 0, 3]}], "of 1 pixel at least"),
        ([{"image": "c/0.png", "box": [0, 0, 2.5, 3]}], "in whole pixels"),
        ([{"image": "c/0.png", "box": [0, 0, 21, 3]}], "leads outside of its 20x30"),
        ([{"image": "c/9.png", "box": [0, 0, 2, 3]}], "1 images that are not there"),
        ([{"image": "c/0.png", "box": [0, 0, 2, 3], "flip": 1}], "flip is '1'"),
        ([{"box": [0, 0, 2, 3]}], "is no crop"),
        ([{"image": "c/\ud800.png", "box": [0, 0, 2, 3]}], r"c/\\ud800.png' is no UTF-8"),
        (ROWS[:3], "1 of c/0.png, 2 of c/1.png"),
        ([], "none"),
    ],
)
def test_what_is_no_crop_is_named(images, tmp_path, rows, message):
    file = written(tmp_path / "crops.json", rows)
    with pytest.raises(InputError, match=message):
        label(images, teacher(), tmp_path / "s", crops_from=file, targets=False)


def test_a_line_of_json_ends_at_line_feeds_alone(tmp_path):
    """Names with Unicode's line separator and next-line sign, in a file with DOS line ends."""
    rows = [{"image": f"c/{name}.png", "box": [0, 0, 2, 3]} for name in ("a\u2028b", "a\x85b")]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "crops.jsonl").write_bytes(lines.encode())
    assert sorted(read_crops(tmp_path / "crops.jsonl").of) == ["c/a\x85b.png", "c/a\u2028b.png"]


def test_images_with_crops_must_be_readable_whatever_the_others_are(images, tmp_path):
    """Of the images one is not in the file; a share is of those that are."""
    file = written(tmp_path / "crops.json", ROWS)
    (images / "c/1.png").write_bytes(b"broken")
    given = {"crops_from": file, "targets": False}
    with pytest.raises(InputError, match=r"1 of 2 images \(50.0%\) are unreadable"):
        label(images, teacher(), tmp_path / "s", max_unreadable=0.49, **given)
    store = label(images, teacher(), tmp_path / "t", max_unreadable=0.5, **given)
    assert list(store.ids) == ["c/0.png"] and len(store.manifest.skipped) == 2


def test_given_crops_exclude_drawn_ones(images, tmp_path):
    with pytest.raises(InputError, match="nothing else may"):
        label(images, teacher(), tmp_path / "s", crops_from="x.json", crops=3)
