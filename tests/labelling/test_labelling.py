"""The labelling pass: the teacher's answers in the store, kills, damaged images, refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import write_noise
from stores import bytes_of

from ferkd.crops import cut, random_boxes
from ferkd.images import decode, open_images
from ferkd.labelling.run import label
from ferkd.labelling.settings import default_part
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore
from ferkd.system.errors import InputError


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"class {i % 3}/é.{i}.jpg": (20 + 3 * i, 50 - i) for i in range(9)}
    return write_noise(tmp_path / "images", sizes)


def teacher(classes: int = 3, size: int = 16) -> Teacher:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, classes),
    )
    module[5].weight.data.mul_(10)
    return Teacher(module, Inputs(image_size=size), spec="test")


def test_every_record_is_the_teachers_answer_to_its_own_crop(folder, tmp_path):
    """Each crop cut alone and shown alone gives the label in the store."""
    model = teacher()
    store = label(folder, model, tmp_path / "s", crops=4, values="f32", part_images=4, batch_size=5)
    source = open_images(folder)
    assert list(store.ids) == list(source.ids) and store.targets.tolist() == source.targets.tolist()
    for row in range(len(store)):
        image = decode(source.read(row))
        assert tuple(store.images[["height", "width"]][row]) == image.shape[:2]
        drawn = random_boxes(
            [image.shape[0]], [image.shape[1]], crops=4, seed=0, ids=[store.ids[row]]
        )
        assert (store.boxes(row, np.arange(4)) == drawn[0][0]).all()
        for crop in range(4):
            pixels = cut(image, store.boxes(row, crop), bool(store.flips(row, crop)), 16)
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            expected = logits.softmax(1)
            assert torch.allclose(store.labels(row, crop).dense(), expected, atol=1e-5)


def test_a_store_does_not_depend_on_workers(folder, tmp_path):
    options = {"crops": 3, "top_k": 2, "part_images": 4, "batch_size": 7}
    label(folder, teacher(), tmp_path / "one", workers=1, **options)
    label(folder, teacher(), tmp_path / "four", workers=4, **options)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "four")


def test_a_teacher_left_in_training_mode_does_not_label_in_it(folder, tmp_path):
    model = teacher()
    label(folder, model, tmp_path / "eval", crops=2)
    model.module.train()
    label(folder, model, tmp_path / "train", crops=2)
    assert bytes_of(tmp_path / "eval") == bytes_of(tmp_path / "train")


def test_unreadable_images_are_listed_and_too_many_refused(folder, tmp_path):
    (folder / "class 0/text.jpg").write_text("hello")
    data = (folder / "class 0/é.0.jpg").read_bytes()
    (folder / "class 1/half.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"2 of 11 images \(18.2%\) are unreadable.*text.jpg"):
        label(folder, teacher(), tmp_path / "s", crops=2)
    store = label(folder, teacher(), tmp_path / "s", crops=2, max_unreadable=0.2, resume=True)
    assert len(store) == 9
    assert [s.id for s in store.manifest.skipped] == ["class 0/text.jpg", "class 1/half.jpg"]
    assert LabelStore.open(store.path).labels(np.arange(9), 1).dense().shape == (9, 3)


def test_more_than_top_k_crops_of_a_one_pixel_image(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "tiny" / name / "1.png"), np.full((1, 1, 3), 200, np.uint8))
    store = label(tmp_path / "tiny", teacher(2), tmp_path / "s", crops=3, top_k=7)
    assert store.record.full and store.boxes(0, 2).tolist() == [0, 0, 1, 1]


def test_without_ground_truth(folder, tmp_path):
    store = label(folder, teacher(classes=7), tmp_path / "s", crops=2, targets=False)
    assert (store.targets == -1).all() and store.class_names == ()


def test_wrong_inputs_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"7 classes.*3"):
        label(folder, teacher(classes=7), tmp_path / "s")
    with pytest.raises(InputError, match="crops is 0"):
        label(folder, teacher(), tmp_path / "s", crops=0)
    with pytest.raises(InputError, match=r"^batch_size is 0; it must be at least 1$"):
        label(folder, teacher(), tmp_path / "s", batch_size=0)
    assert not (tmp_path / "s").exists()
    label(folder, teacher(), tmp_path / "s", crops=2)
    with pytest.raises(InputError, match="holds a label store already"):
        label(folder, teacher(), tmp_path / "s", crops=2)
    with pytest.raises(InputError, match=r"crops\.count was 2, now 3"):
        label(folder, teacher(), tmp_path / "s", crops=3, resume=True)
    (folder / "class 0/new.jpg").write_bytes((folder / "class 0/é.0.jpg").read_bytes())
    with pytest.raises(InputError, match="files were added, removed or renamed"):
        label(folder, teacher(), tmp_path / "s", crops=2, resume=True)


def test_progress_counts_images_and_crops(folder, tmp_path):
    seen = []
    label(folder, teacher(), tmp_path / "s", crops=2, part_images=4, progress=seen.append)
    told = [(p.done, p.total, p.crops) for p in seen]
    assert told[0] == (0, 9, 0) and told[-1] == (9, 9, 18) and told == sorted(told)
    assert list(dict.fromkeys(told)) == [(0, 9, 0), (4, 9, 8), (8, 9, 16), (9, 9, 18)]
    seen.clear()
    label(folder, teacher(), tmp_path / "t", crops=2, batch_size=3, progress=seen.append)
    assert [p.crops for p in seen][:3] == [0, 3, 6]  # heard of every batch


def test_a_kill_costs_few_images_of_a_small_set_and_few_files_of_a_large_one():
    """At most 31 finished images of 3,000 are lost; 1,281,167 images are 5,005 parts of 256."""
    assert default_part(3_000) == 32 and default_part(65_536) == 32
    assert default_part(65_537) == 256 and -(-1_281_167 // default_part(1_281_167)) == 5_005
