"""Labelling on top of a store: the same crops for another teacher, more crops for the same one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nets import small_convnet
from pictures import write_noise
from stores import bytes_of, everything

from ferkd.crops import CropDistribution
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore
from ferkd.store.merge import merge
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"class {i % 3}/{i}.png": (20 + i, 40 - i) for i in range(9)}
    return write_noise(tmp_path / "images", sizes)


class Counting(Teacher):
    """A small network that counts the crops it is shown."""

    def __init__(self, seed: int = 0, size: int = 16) -> None:
        module = small_convnet(seed)
        self.crops = 0
        super().__init__(module, Inputs(image_size=size), spec=f"teacher {seed}")
        self.crops = 0  # less the black image of the try-out

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.crops += len(images)
        return super().__call__(images)


OPTIONS = {"part_images": 4, "batch_size": 5, "values": "f32", "top_k": 2}


def same_crops(a: LabelStore, b: LabelStore) -> bool:
    rows, crops = np.arange(len(a))[:, None], np.arange(min(a.crops_per_image, b.crops_per_image))
    boxes = (a.boxes(rows, crops) == b.boxes(rows, crops)).all()
    return bool(boxes and (a.flips(rows, crops) == b.flips(rows, crops)).all())


def with_other_crops(store: LabelStore, out: Path, change: str) -> LabelStore:
    """The store with each box halved or mirrored: crops that no seed draws, as imported ones."""
    with StoreWriter(out, store.settings, len(store)) as writer:
        for part in writer.missing():
            rows = np.array(writer.part_range(part))
            where = rows[:, None], np.arange(store.crops_per_image)
            boxes, flips = store.boxes(*where), store.flips(*where)
            if change == "halved":
                boxes[..., 2:] = np.maximum(boxes[..., 2:] // 2, 1)
            else:
                flips = ~flips
            ids = [store.ids[int(r)] for r in rows]
            writer.write(part, ids, store.images[rows], boxes, flips, store.records(*where), [])
        return writer.finish()


def test_another_teacher_labels_the_crops_of_a_store(folder, tmp_path):
    """It cuts them at its own size and gives what labelling with the same seed gives."""
    first = label(
        folder,
        Counting(0),
        tmp_path / "a",
        crops=4,
        seed=3,
        distribution=CropDistribution(scale=(0.5, 1), flip=1.0),
        **OPTIONS,
    )
    second = label(folder, Counting(1, size=20), tmp_path / "b", boxes_from=first.path, **OPTIONS)
    fresh = label(
        folder,
        Counting(1, size=20),
        tmp_path / "c",
        crops=4,
        seed=3,
        distribution=CropDistribution(scale=(0.5, 1), flip=1.0),
        **OPTIONS,
    )
    assert same_crops(first, second) and second.settings.crops == first.settings.crops
    assert bytes_of(second.path)["labels-00000.npy"] == bytes_of(fresh.path)["labels-00000.npy"]
    manifest = (first.path / "manifest.json").read_bytes()
    assert second.settings.teacher["boxes_from"] == {
        "teacher": "teacher 0",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    assert second.settings.teacher["spec"] == "teacher 1"
    merged = merge([first, second], tmp_path / "m")
    expected = (everything(first).dense() + everything(second).dense()) / 2
    assert torch.allclose(everything(merged).dense(), expected, atol=1e-5)  # 3 classes: 1 in a tail


@pytest.mark.parametrize("change", ["halved", "mirrored"])
def test_crops_come_from_the_store_and_not_from_its_seed(folder, tmp_path, change):
    drawn = label(folder, Counting(0), tmp_path / "drawn", crops=4, **OPTIONS)
    given = with_other_crops(drawn, tmp_path / "given", change)
    assert not same_crops(drawn, given)
    second = label(folder, Counting(1), tmp_path / "b", boxes_from=given, **OPTIONS)
    assert same_crops(given, second)
    with pytest.raises(InputError, match=r"the crops of class 0/0.png in .* are not those"):
        label(folder, Counting(0), tmp_path / "c", add_to=given, crops=6, **OPTIONS)


def test_crops_asked_for_beside_boxes_from_must_be_the_stores(folder, tmp_path):
    first = label(folder, Counting(0), tmp_path / "a", crops=4, seed=3, **OPTIONS)
    for message, options in {
        "count of the crops is 5, but boxes_from .* count 4": {"crops": 5},
        "seed of the crops is 0, but boxes_from .* seed 3": {"seed": 0},
        "distribution": {"distribution": CropDistribution(flip=0.0)},
        "exif is False": {"exif": False},
        "both given": {"add_to": first},
    }.items():
        with pytest.raises(InputError, match=message):
            label(folder, Counting(1), tmp_path / "b", boxes_from=first, **OPTIONS, **options)
    assert not (tmp_path / "b").exists()
    label(folder, Counting(1), tmp_path / "b", boxes_from=first, crops=4, seed=3, **OPTIONS)


@pytest.mark.parametrize("mode", ["boxes_from", "add_to"])
def test_other_images_are_refused(folder, tmp_path, mode):
    first = label(folder, Counting(0), tmp_path / "a", crops=2, **OPTIONS)

    def again(**changes) -> None:
        crops = {"crops": 3} if mode == "add_to" else {}
        label(folder, Counting(0), tmp_path / "b", **{mode: first}, **crops, **OPTIONS, **changes)

    image = folder / "class 1/4.png"
    data = image.read_bytes()
    image.rename(folder / "class 1/40.png")
    with pytest.raises(InputError, match=r"it lacks class 1/4.png"):
        again()
    image.write_bytes(data)
    with pytest.raises(InputError, match=r"only it has class 1/40.png"):
        again()
    (folder / "class 1/40.png").unlink()
    assert not (tmp_path / "b").exists()
    cv2.imwrite(str(image), np.zeros((24, 36, 3), np.uint8))  # as large as it was
    with pytest.raises(InputError, match=r"class 1/4.png is not the file that was labelled"):
        again()
    image.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"class 1/4.png cannot be read .* but was labelled"):
        again(resume=True)
    image.write_bytes(data)
    again(resume=True)


def test_an_image_decoded_to_another_size_is_refused(folder, tmp_path, monkeypatch):
    first = label(folder, Counting(0), tmp_path / "a", crops=2, **OPTIONS)
    monkeypatch.setattr(
        "ferkd.labelling.labeller.decode", lambda data, exif: np.zeros((10, 10, 3), np.uint8)
    )
    with pytest.raises(InputError, match=r"class 0/0.png is 10x10 pixels, but .* at 20x40"):
        label(folder, Counting(0), tmp_path / "b", boxes_from=first, **OPTIONS)


@pytest.mark.parametrize("mode", ["boxes_from", "add_to"])
def test_what_the_store_left_out_is_left_out_again(folder, tmp_path, mode):
    image = folder / "class 1/4.png"
    data = image.read_bytes()
    image.write_bytes(b"no image")
    first = label(folder, Counting(0), tmp_path / "a", crops=2, max_unreadable=0.5, **OPTIONS)
    image.write_bytes(data)  # readable now, but then the two would hold different images
    crops = {"crops": 3} if mode == "add_to" else {}
    second = label(folder, Counting(0), tmp_path / "b", **{mode: first}, **crops, **OPTIONS)
    assert list(second.ids) == list(first.ids) and len(second) == 8
    assert second.manifest.skipped == first.manifest.skipped


def test_adding_crops_shows_the_teacher_only_the_new_ones(folder, tmp_path):
    first = label(folder, Counting(), tmp_path / "five", crops=5, **OPTIONS)
    before = bytes_of(first.path)
    teacher, seen = Counting(), []
    more = label(
        folder,
        teacher,
        tmp_path / "eight",
        crops=8,
        add_to=first.path,
        progress=seen.append,
        **OPTIONS,
    )
    assert teacher.crops == 9 * 3
    assert [p.crops for p in seen][-1] == 27
    fresh = label(folder, Counting(), tmp_path / "fresh", crops=8, **OPTIONS)
    assert more.settings == fresh.settings
    assert same_crops(more, fresh) and more.crops_per_image == 8
    assert torch.equal(everything(more).classes, everything(fresh).classes)
    assert torch.allclose(everything(more).log_probs, everything(fresh).log_probs, atol=1e-5)
    rows = np.arange(9)[:, None]
    old = first.records(rows, np.arange(5))
    assert (more.records(rows, np.arange(5)) == old).all()  # taken over to the bit
    assert bytes_of(first.path) == before


def test_interrupted_adding_is_continued_to_the_same_bytes(folder, tmp_path):
    first = label(folder, Counting(), tmp_path / "a", crops=2, **OPTIONS)
    options = {"crops": 3, "add_to": first, **OPTIONS}
    whole = label(folder, Counting(), tmp_path / "whole", **options)

    def die(now) -> None:
        if now.done > 4:  # in the second part
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(folder, Counting(), tmp_path / "killed", progress=die, **options)
    teacher = Counting()
    label(folder, teacher, tmp_path / "killed", resume=True, **options)
    assert teacher.crops == 5  # the first part of four images was there
    assert bytes_of(tmp_path / "killed") == bytes_of(whole.path)


def test_crops_are_added_under_the_same_settings_only(folder, tmp_path):
    first = label(folder, Counting(), tmp_path / "a", crops=4, seed=3, **OPTIONS)
    for message, changes in {
        r"crops is 4, but .* holds 4 per image": {"crops": 4},
        r"crops is 4, but": {"crops": None},
        r"record\.k was 2, now 1": {"top_k": 1},
        r"crops\.seed was 3, now 0": {"seed": 0},
        r"teacher\.batch_size was 5, now 6": {"batch_size": 6},
        r"crops\.distribution\.flip was 0\.5, now 0\.0": {
            "distribution": CropDistribution(flip=0.0)
        },
    }.items():
        options = {"crops": 6, **OPTIONS, **changes}
        with pytest.raises(InputError, match=message):
            label(folder, Counting(), tmp_path / "b", add_to=first, **options)
    with pytest.raises(InputError, match=r"teacher\.fingerprint was"):
        label(folder, Counting(1), tmp_path / "b", add_to=first, crops=6, **OPTIONS)
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="is itself one of the stores to read"):
        label(folder, Counting(), first.path, add_to=first, crops=6, overwrite=True, **OPTIONS)


def test_a_store_on_anothers_boxes_can_be_added_to_and_names_both_releases(
    folder, tmp_path, monkeypatch
):
    first = label(folder, Counting(0), tmp_path / "a", crops=2, **OPTIONS)
    second = label(folder, Counting(1), tmp_path / "b", boxes_from=first, **OPTIONS)
    monkeypatch.setattr("ferkd.labelling.passes.__version__", "9.9")
    more = label(folder, Counting(1), tmp_path / "c", add_to=second, crops=3, **OPTIONS)
    assert more.settings.teacher == second.settings.teacher
    software = more.settings.software
    assert software.startswith("ferkd 9.9, torch ")
    assert software.endswith(f"; crops 0 to 1: {first.settings.software}")


def test_an_open_image_source_will_do(folder, tmp_path):
    source = open_images(folder)
    first = label(source, Counting(0), tmp_path / "a", crops=2, **OPTIONS)
    second = label(source, Counting(1), tmp_path / "b", boxes_from=first, **OPTIONS)
    assert same_crops(first, second)
