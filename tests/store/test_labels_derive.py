"""Smaller stores without labelling again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_noise
from stores import bytes_of, everything

from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore
from ferkd.store.derive import subset
from ferkd.system.errors import InputError

CLASSES = 12


class Histogram(torch.nn.Module):
    """Logits from an image's mean colours alone, with a wide range: exact in any batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.nn.Parameter(torch.randn(3, CLASSES, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.double().mean((2, 3)).float()
        return 5 * (means[:, :, None] * self.weights).sum(1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine images in three classes, two of them unreadable."""
    sizes = {f"class {i % 3}/{i}.png": (24, 30 + i) for i in range(9)}
    root = write_noise(tmp_path / "images", sizes)
    (root / "class 0/3.png").write_text("no image")
    (root / "class 2/8.png").write_text("no image")
    return root


def labelled(folder: Path, out: Path, **options) -> LabelStore:
    teacher = Teacher(Histogram(), Inputs(image_size=16), spec="test")
    given = {"crops": 6, "part_images": 4, "batch_size": 5, "max_unreadable": 0.5, **options}
    return label(folder, teacher, out, targets=False, **given)


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_fewer_crops_are_the_bytes_of_labelling_fewer(folder, tmp_path, top_k):
    store = labelled(folder, tmp_path / "six", top_k=top_k)
    small = subset(store, tmp_path / "two", crops=2)
    labelled(folder, tmp_path / "fresh", top_k=top_k, crops=2)
    assert bytes_of(small.path) == bytes_of(tmp_path / "fresh")
    assert len(small) == 7 and small.crops_per_image == 2
    assert [s.id for s in small.manifest.skipped] == ["class 0/3.png", "class 2/8.png"]


def test_files_are_split_where_labelling_splits_them(folder, tmp_path, monkeypatch):
    """Skipped images have their place in a part: 4, 4 and 1 images offered; 3, 4 and 0 kept."""
    monkeypatch.setattr("ferkd.store.arrays.FILE_BYTES", 1)
    store = labelled(folder, tmp_path / "s")
    assert [file.rows for file in store.manifest.signals["labels"].files] == [3, 4, 0]
    small = subset(store, tmp_path / "small", crops=3)
    assert [file.rows for file in small.manifest.signals["labels"].files] == [3, 4, 0]
    labelled(folder, tmp_path / "fresh", crops=3)
    assert bytes_of(small.path) == bytes_of(tmp_path / "fresh")


@pytest.mark.parametrize("start", [None, 8])
def test_fewer_classes_move_into_the_tail(folder, tmp_path, start, monkeypatch):
    monkeypatch.setattr("ferkd.store.derive._CELLS", 50)  # less than an image at a time
    store = labelled(folder, tmp_path / "s", top_k=start, values="f32")
    small = subset(store, tmp_path / "small", top_k=3)
    fresh = labelled(folder, tmp_path / "fresh", top_k=3, values="f32")
    before = small.settings.teacher.pop("encoded_before")
    assert before == [store.settings.record.model_dump()]
    assert small.settings == fresh.settings and small.record.values == "f32"
    got, expected = everything(small), everything(fresh)
    assert torch.equal(got.classes, expected.classes)
    assert torch.allclose(got.log_probs, expected.log_probs, atol=1e-5)
    assert torch.allclose(got.tail, expected.tail, atol=1e-4)
    rows, crops = np.arange(7)[:, None], np.arange(6)
    assert (small.boxes(rows, crops) == fresh.boxes(rows, crops)).all()
    assert (small.boxes(rows, crops) == fresh.boxes(rows, crops)).all()
    assert (small.flips(rows, crops) == fresh.flips(rows, crops)).all()


@pytest.mark.parametrize(("values", "step"), [("u8", 2 * 10**0.5 / 48), ("f16", 2**-7)])
def test_values_that_are_stored_anew_keep_their_bytes(folder, tmp_path, values, step):
    """Only the tail, which grew, is rounded a second time: by one step of a gap of up to 10."""
    store = labelled(folder, tmp_path / "s", top_k=8, values=values)
    small = subset(store, tmp_path / "small", top_k=3)
    fresh = labelled(folder, tmp_path / "fresh", top_k=3, values=values)
    rows, crops = np.arange(7)[:, None], np.arange(6)
    got, expected = small.records(rows, crops), fresh.records(rows, crops)
    for name in ("classes", "gaps"):
        assert (got[name] == expected[name]).all()
    assert (small.boxes(rows, crops) == fresh.boxes(rows, crops)).all()
    assert (small.flips(rows, crops) == fresh.flips(rows, crops)).all()
    off = (everything(small).tail - everything(fresh).tail).abs()
    assert 0 < off.max() <= step * 1.1 and off.median() < step / 4


def test_the_true_class_is_kept_though_its_slot_is_not(folder, tmp_path):
    teacher = Teacher(torch.nn.Sequential(Histogram(), torch.nn.Linear(CLASSES, 3)),
                      Inputs(image_size=16), spec="test")  # fmt: skip
    options = {"crops": 4, "values": "f32", "max_unreadable": 0.5}
    whole = label(folder, teacher, tmp_path / "whole", top_k=None, **options)
    small = subset(whole, tmp_path / "small", top_k=1)
    targets = torch.from_numpy(np.repeat(whole.targets, 4).astype(np.int64))
    expected = everything(whole).prob_of(targets)
    assert torch.allclose(everything(small).true_log_prob.exp(), expected, atol=1e-6)
    assert (everything(small).classes[:, 0] != targets).any()


def test_coarser_numbers(folder, tmp_path):
    store = labelled(folder, tmp_path / "s", values="f32")
    small = subset(store, tmp_path / "small", values="u8")
    labelled(folder, tmp_path / "fresh", values="u8")
    for name in ("labels-00000.npy", "images.npy", "ids.npy"):
        assert (small.path / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    twice = subset(small, tmp_path / "twice", top_k=2)
    before = [(r["k"], r["values"]) for r in twice.settings.teacher["encoded_before"]]
    assert before == [(5, "f32"), (5, "u8")]
    with pytest.raises(InputError, match="values 'f16' is finer than the 'u8'"):
        subset(small, tmp_path / "finer", values="f16")


def test_a_copy_is_the_same_bytes_and_one_image_at_a_time_too(folder, tmp_path):
    store = labelled(folder, tmp_path / "s")
    seen = []
    subset(store.path, tmp_path / "copy", progress=lambda *now: seen.append(now))
    assert bytes_of(tmp_path / "copy") == bytes_of(store.path)
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_what_the_store_does_not_hold_is_refused(folder, tmp_path):
    store = labelled(folder, tmp_path / "s")
    for message, options in {
        r"crops is 7; .* holds 6: give 1 to 6; add crops with ferkd label --add-to": {"crops": 7},
        "crops is 0; .* give 1 to 6$": {"crops": 0},
        "top_k is 6; .* holds 5": {"top_k": 6},
        "values is 'u4'": {"values": "u4"},
    }.items():
        with pytest.raises(InputError, match=message):
            subset(store, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_store_is_never_written_over_itself(folder, tmp_path, monkeypatch):
    store = labelled(folder, tmp_path / "s")
    before = bytes_of(store.path)
    monkeypatch.chdir(tmp_path)
    for out in (store.path, "s", tmp_path / "images" / ".." / "s"):
        with pytest.raises(InputError, match="is itself one of the stores to read"):
            subset(store, out, crops=2, overwrite=True)
    assert bytes_of(store.path) == before


def test_existing_outputs_are_refused_replaced_or_continued(folder, tmp_path):
    store = labelled(folder, tmp_path / "s")
    subset(store, tmp_path / "out", crops=2)
    with pytest.raises(InputError, match="holds a label store already"):
        subset(store, tmp_path / "out", crops=3)
    subset(store, tmp_path / "out", crops=3, overwrite=True)

    def die(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subset(store, tmp_path / "killed", crops=3, progress=die)
    subset(store, tmp_path / "killed", crops=3, resume=True)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "out")
