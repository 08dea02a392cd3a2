"""Batches of whole images, cut where they are sent: what they hold is what workers would cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nets import brightness

from ferkd.calibration.regions import Regions
from ferkd.images import PixelCache, open_images
from ferkd.labelling.run import label
from ferkd.loading.crop_sources import FreshCrops
from ferkd.loading.loader import Loader, SoftLabelLoader
from ferkd.loading.mixing import SelfMix
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

SIZE, CROPS = 16, 6


def write(path: Path, height: int, width: int, seed: int) -> None:
    """A smooth picture, so that copies of any size show the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Small photographs, and large ones that are decoded small."""
    root = tmp_path_factory.mktemp("images")
    for i in range(11):
        large = 6 if i % 3 == 0 else 1
        write(root / "ab"[i % 2] / f"{i:02}.jpg", (30 + i) * large, (40 - i) * large, i)
    return root


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory) -> LabelStore:
    return label(folder, brightness(SIZE), tmp_path_factory.mktemp("s") / "s", crops=CROPS)


def stored(folder, store, **options) -> SoftLabelLoader:
    settings = {"batch_size": 12, "crops_per_image": 3, "image_size": SIZE, **options}
    return SoftLabelLoader(folder, store, regions=Regions(), **settings)


def fresh(folder, **options) -> Loader:
    source = open_images(folder)
    settings = {"batch_size": 8, "crops_per_image": 2, "image_size": SIZE, "seed": 4, **options}
    return Loader(source, FreshCrops(source, seed=4), **settings)


def assert_same(ours, theirs, levels):
    """Two batches, the crops within so many of 255 levels on average."""
    assert ours.raw is None and len(ours) == len(theirs)
    assert ours.images.is_contiguous(memory_format=torch.channels_last)
    difference = (ours.images.int() - theirs.images.int()).abs().float()
    assert difference.mean((1, 2, 3)).max() <= levels
    for name in ("targets", "rows", "crops"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.regions is None) == (theirs.regions is None)
    if ours.regions is not None:
        assert torch.equal(ours.regions, theirs.regions)
    assert ours.unreadable == theirs.unreadable
    if ours.labels is not None:
        assert torch.equal(ours.labels.dense(), theirs.labels.dense())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("scaled", "levels"), [(False, 0.5), (True, 3.0)])
def test_stored_crops_are_those_that_workers_cut(folder, store, workers, scaled, levels):
    options = {"workers": workers, "scaled_decoding": scaled}
    there = list(stored(folder, store, cut_on="device", **options).batches(2, 6))
    assert all(len(b) == 12 and b.images.numel() == 0 and len(b.raw) == 12 for b in there)
    here = list(stored(folder, store, scaled_decoding=scaled).batches(2, 6))
    for ours, theirs in zip(there, here, strict=True):
        rows, crops = theirs.rows.numpy(), theirs.crops.numpy()
        assert (ours.raw.boxes.view(12, 4).numpy() == store.boxes(rows, crops)).all()
        assert (ours.raw.flips.view(12).numpy() == store.flips(rows, crops)).all()
        assert_same(ours.cut(), theirs, levels)
    kept = sum(b.raw.pixels.numel() for b in there)
    shown = store.images[torch.cat([b.rows[::3] for b in there]).numpy()]
    whole = int((shown["height"].astype(int) * shown["width"] * 3).sum())
    assert kept == whole if not scaled else kept < whole / 2


def test_fresh_crops_and_those_of_a_cache_too(folder):
    source = open_images(folder)
    here = list(fresh(folder, scaled_decoding=False).batches(0, 6))
    for options, levels in (
        ({"scaled_decoding": False}, 0.5),
        ({"cache": PixelCache(source, "ram")}, 0.5),
        ({"cache": PixelCache(source, "ram", max_side=60)}, 3.0),
    ):
        there = fresh(folder, cut_on="device", **options)
        for ours, theirs in zip(there.batches(0, 6), here, strict=True):
            assert_same(ours.cut(), theirs, levels)


def test_the_crops_side_may_differ_from_step_to_step(folder):
    there = fresh(folder, cut_on="device", size_at=lambda step: (8, 12)[step])
    assert [b.cut().images.shape for b in there.batches(0, 2)] == [(8, 3, 8, 8), (8, 3, 12, 12)]


def test_cutting_twice_is_cutting_once(folder):
    batch = next(fresh(folder, cut_on="device").batches(0, 1)).cut()
    assert batch.cut() is batch


def test_stand_ins_are_the_same(folder, tmp_path):
    """One file is no image, another ends in the middle, which only decoding tells."""
    for i in range(250):
        write(tmp_path / "ab"[i % 2] / f"{i:03}.jpg", 20, 24, i % 7)
    (tmp_path / "a" / "002.jpg").write_bytes(b"no image")
    cut_off = tmp_path / "b" / "005.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[:-40])
    here, there = fresh(tmp_path), fresh(tmp_path, cut_on="device", workers=1)
    for ours, theirs in zip(there.batches(0, 63), here.batches(0, 63), strict=True):
        assert_same(ours.cut(), theirs, 0.5)
    assert list(here.unreadable) == list(there.unreadable) and len(here.unreadable) == 2


def test_refusals_are_the_same(folder, store, tmp_path):
    messages = []
    for cut_on in ("workers", "device"):
        root = tmp_path / cut_on / "images"
        for path in folder.rglob("*.jpg"):
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            (root / path.parent.name / path.name).write_bytes(path.read_bytes())
        batches = stored(root, store, cut_on=cut_on)
        (root / "a" / "04.jpg").write_bytes(b"")
        with pytest.raises(InputError) as error:
            list(batches)
        messages.append(str(error.value).replace(str(root), ""))
    assert messages[0] == messages[1] and "04.jpg" in messages[0]


def test_what_cannot_be_is_refused(folder, store):
    with pytest.raises(InputError, match="cut_on is 'gpu'; use workers or device"):
        fresh(folder, cut_on="gpu")
    with pytest.raises(InputError, match="mix selfmix needs the crops, which cut_on device leaves"):
        stored(folder, store, cut_on="device", mix=SelfMix())
