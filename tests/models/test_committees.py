"""Several teachers at once: each at its own size, the mean of their probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets import small_convnet
from pictures import write_noise

from ferkd.crops import cut
from ferkd.images import decode, open_images
from ferkd.labelling.run import label
from ferkd.models.committee import Committee, load_committee, split_spec
from ferkd.models.teacher import Inputs, Teacher
from ferkd.system.errors import InputError


def teacher(seed: int, size: int = 16, classes: int = 3, **options) -> Teacher:
    module = small_convnet(seed, classes)
    return Teacher(module, Inputs(image_size=size), spec=f"teacher {seed}", **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_noise(tmp_path / "images", {f"class {i % 3}/{i}.png": (60, 50) for i in range(4)})


@pytest.mark.parametrize("sizes", [(16, 24), (24, 16), (16, 16)])
def test_each_teacher_sees_its_own_cut_of_the_same_box(folder, tmp_path, sizes):
    """Never a resize of what another one saw: crops are cut from the photograph each time."""
    one, two = teacher(1, sizes[0]), teacher(2, sizes[1])
    committee = Committee([one, two], [3, 1])
    store = label(folder, committee, tmp_path / "s", crops=3, values="f32", batch_size=5)
    source = open_images(folder)
    for row in range(4):
        pixels = decode(source.read(row))
        for crop in range(3):
            answers = []
            for member in (one, two):
                seen = cut(
                    pixels, store.boxes(row, crop), bool(store.flips(row, crop)), member.image_size
                )
                answers.append(member(torch.from_numpy(seen).permute(2, 0, 1)[None]).softmax(1))
            expected = 0.75 * answers[0] + 0.25 * answers[1]
            assert torch.allclose(store.labels(row, crop).dense(), expected, atol=1e-5)
    recorded = store.settings.teacher
    assert recorded["spec"] == "teacher 1@0.75,teacher 2@0.25" and recorded["rule"] == "probs"
    assert [m["weight"] for m in recorded["members"]] == [0.75, 0.25]
    assert [m["teacher"] for m in recorded["members"]] == [one.describe(), two.describe()]


def test_every_member_must_have_the_folders_classes(folder, tmp_path):
    names = [f"class {i}" for i in (0, 1, 9)]
    committee = Committee([teacher(1), teacher(2, class_names=names)])
    with pytest.raises(InputError, match="class 2 is 'class 9' for teacher teacher 2"):
        label(folder, committee, tmp_path / "s", crops=1)
    label(folder, committee, tmp_path / "s", crops=1, targets=False)


def test_one_teacher_is_itself(folder, tmp_path):
    alone = label(folder, teacher(1), tmp_path / "alone", crops=2)
    committee = label(folder, Committee([teacher(1)]), tmp_path / "committee", crops=2)
    for file in alone.path.iterdir():
        assert file.read_bytes() == (committee.path / file.name).read_bytes()


def test_specs_are_split_at_commas_that_name_a_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "a,b").mkdir()
    cases = {
        "timm/a": [("timm/a", 1)],
        "timm/a,hf/o/b": [("timm/a", 1), ("hf/o/b", 1)],
        "timm/a@2,module:name@0.5": [("timm/a", 2), ("module:name", 0.5)],
        "timm/a?mean=0.5,0.5,0.5@3,run@2": [("timm/a?mean=0.5,0.5,0.5", 3), ("run", 2)],
        "a,b": [("a,b", 1)],
        "timm/a?checkpoint=x@y.pt": [("timm/a?checkpoint=x@y.pt", 1)],
        "timm/a,run?std=1": [("timm/a", 1), ("run?std=1", 1)],
    }
    for spec, members in cases.items():
        assert split_spec(spec) == members


def test_a_spec_of_two_teachers_labels(folder, tmp_path):
    name = "timm/resnet10t?random={}&num_classes=3&image_size={}"
    store = label(folder, f"{name.format(0, 32)},{name.format(1, 48)}@0.5", tmp_path / "s", crops=1)
    members = store.settings.teacher["members"]
    assert [m["teacher"]["image_size"] for m in members] == [32, 48]
    assert [m["weight"] for m in members] == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(InputError, match="image_size 32 for 2 teachers"):
        load_committee(f"{name.format(0, 32)},{name.format(1, 48)}", image_size=32)


def test_teachers_that_do_not_fit_together_are_refused():
    with pytest.raises(InputError, match="teacher 2 has 4 classes, but teacher 1 has 3"):
        Committee([teacher(1), teacher(2, classes=4)])
    assert Committee([teacher(1), teacher(2, class_names=tuple("abc"))]).class_names == tuple("abc")
    for weights in ([1], [1, 0], [1, float("nan")]):
        with pytest.raises(InputError, match="give each a weight above 0"):
            Committee([teacher(1), teacher(2)], weights)
