"""The loader in others' loops: where a pass begins and goes on, and whose rows are whose."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import brightness
from pictures import write_noise
from torch import distributed

from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.loading.crop_sources import FreshCrops
from ferkd.loading.loader import Loader, SoftLabelLoader
from ferkd.loading.mixing import Mix, SelfMix
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

SIZE, CROPS, IMAGES = 16, 6, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    sizes = {f"{'ab'[i % 2]}/photo.{i}.jpg": (30 + i, 40 - i) for i in range(IMAGES)}
    return write_noise(tmp_path_factory.mktemp("images"), sizes)


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory) -> LabelStore:
    out = tmp_path_factory.mktemp("s") / "s"
    return label(folder, brightness(SIZE), out, crops=CROPS)


@pytest.fixture
def loader(folder, store):
    def make(**options) -> SoftLabelLoader:
        settings = {"batch_size": 8, "crops_per_image": 2, "image_size": SIZE, **options}
        return SoftLabelLoader(folder, store, **settings)

    return make


def shown(batches) -> list[tuple[int, int]]:
    """Image and crop of every row."""
    return [
        (int(row), int(crop))
        for batch in batches
        for row, crop in zip(batch.rows, batch.crops, strict=True)
    ]


def test_a_pass_begins_with_its_iteration_though_none_is_exhausted(loader):
    """Lightning and the Hugging Face Trainer take len(loader) batches and never one too many."""
    batches = loader()
    assert len(batches) == 6  # 24 images, 4 a batch
    epochs = [shown(itertools.islice(batches, 6)) for _ in range(3)]
    # 2 of 6 crops a pass: three passes show every crop of every image once.
    assert sorted(itertools.chain(*epochs)) == [(r, c) for r in range(IMAGES) for c in range(CROPS)]
    assert shown(batches.batches(6, 12)) == epochs[1]


def test_a_pass_broken_off_is_left_behind(loader):
    batches = loader()
    for batch in batches:
        assert batches.epoch == 0 and len(batch) == 8
        break
    assert shown(batches) == shown(batches.batches(6, 12))
    assert batches.epoch == 2  # the next


def test_iteration_asked_for_and_not_begun_counts_for_nothing(loader):
    batches = loader()
    iter(batches)  # as Lightning does, to see whether it can
    assert batches.epoch == 0 and shown(batches) == shown(batches.batches(0, 6))


def test_set_epoch_names_the_next_pass(loader):
    batches = loader()
    batches.set_epoch(4)
    assert batches.epoch == 4 and shown(batches) == shown(batches.batches(24, 30))
    assert batches.epoch == 5
    batches.set_epoch(0)
    first = shown(itertools.islice(batches, 2))
    batches.set_epoch(0)  # from its beginning again
    assert shown(batches)[:16] == first == shown(batches.batches(0, 2))
    with pytest.raises(InputError, match="epoch is -1; passes count from 0"):
        batches.set_epoch(-1)


@pytest.mark.parametrize("again", [False, True])
def test_a_state_continues_in_the_middle_of_a_pass(loader, again):
    whole, stopped = loader(mix=SelfMix()), loader(mix=SelfMix())
    expected = [batch.images for _ in range(3) for batch in whole]
    next(iter(stopped))
    list(itertools.islice(stopped, 4))
    state = stopped.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 4)
    resumed = loader(mix=SelfMix())
    resumed.load_state_dict(state)
    if again:
        resumed.set_epoch(1)  # a trainer says which epoch it is in
    assert resumed.state_dict() == state and len(resumed) == 6
    found = [batch.images for _ in range(2) for batch in resumed]
    assert len(found) == 8
    for ours, theirs in zip(found, expected[10:], strict=True):
        assert torch.equal(ours, theirs)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert torch.equal(next(iter(resumed)).images, expected[0])


def test_the_state_after_the_last_batch_is_the_next_pass(loader):
    batches = loader()
    list(itertools.islice(batches, 6))  # not exhausted
    assert (batches.state_dict()["epoch"], batches.state_dict()["batch"]) == (1, 0)


def test_the_state_of_a_loader_that_counts_otherwise_is_refused(loader):
    state = loader(batch_size=16).state_dict()
    with pytest.raises(InputError, match="whose batch_size is 16, this one's is 8"):
        loader().load_state_dict(state)
    assert loader(rank=1, world_size=2).state_dict() == loader().state_dict()


def test_each_pass_is_mixed_anew(loader):
    """The shares of a step are drawn from (seed, step), steps counted over all passes."""
    mix, batches = SelfMix(), loader(mix=SelfMix(), seed=3)
    for step, batch in enumerate([*batches, *batches]):
        drawn = mix.draw(
            8, SIZE, SIZE, crops_per_image=2, generator=np.random.default_rng([3, step])
        )
        assert torch.equal(batch.labels.share, drawn.shares)


@pytest.mark.parametrize("mix", [Mix(), SelfMix(), SelfMix("mixup")])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_global_batch(loader, mix, world_size):
    alone = list(loader(mix=mix, workers=2))
    parts = [list(loader(mix=mix, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(part) for part in parts} == {len(alone)}
    for whole, *slices in zip(alone, *parts, strict=True):
        assert [len(part) for part in slices] == [8 // world_size] * world_size
        assert torch.equal(torch.cat([part.images for part in slices]), whole.images)
        assert shown(slices) == shown([whole])
        dense = torch.cat([part.labels.dense() for part in slices])
        assert torch.equal(dense, whole.labels.dense())
        for part in slices:  # an image's crops together
            assert (part.rows.view(-1, 2) == part.rows.view(-1, 2)[:, :1]).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_across_images_keeps_to_the_rows_of_a_rank(loader, kind):
    parts = [next(iter(loader(mix=Mix(kind=kind), rank=r, world_size=2))) for r in range(2)]
    plain = [next(iter(loader(rank=r, world_size=2))) for r in range(2)]
    assert not torch.equal(parts[0].labels.share, parts[1].labels.share)
    for mixed, own in zip(parts, plain, strict=True):
        assert shown([mixed]) == shown([own])
        # Each partner is one of the rank's own labels.
        partners, own_labels = mixed.labels.partner.dense(), own.labels.dense()
        assert ((partners[:, None] == own_labels[None]).all(2)).any(1).all()


def test_ordinary_crops_are_shared_too(folder):
    def fresh(**options):
        source = open_images(folder)
        return Loader(
            source,
            FreshCrops(source),
            batch_size=6,
            crops_per_image=1,
            image_size=SIZE,
            **options,
        )

    whole, *parts = (
        list(fresh(**r).batches(2, 5))
        for r in ({}, *({"rank": r, "world_size": 3} for r in range(3)))
    )
    for all_of_it, *slices in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part.images for part in slices]), all_of_it.images)


def test_batches_that_the_ranks_do_not_divide_are_refused(loader):
    message = (
        "batch_size 8 with 2 crops an image shows 4 images, which 3 processes cannot share evenly; "
        "use batch_size 6 or 12"
    )
    with pytest.raises(InputError, match=message):
        loader(rank=0, world_size=3)
    with pytest.raises(InputError, match=r"8 processes cannot share evenly; use batch_size 16 \("):
        loader(rank=0, world_size=8)


def test_ranks_that_cannot_be_are_refused(loader):
    with pytest.raises(InputError, match="rank is 2 of a world_size of 2; ranks count from 0"):
        loader(rank=2, world_size=2)
    with pytest.raises(InputError, match="rank is None and world_size 2; give both or neither"):
        loader(world_size=2)


def test_several_processes_that_have_not_found_each_other_are_refused(loader, monkeypatch):
    batches = loader()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, but there is no process group"):
        next(iter(batches))
    assert len(next(iter(loader(rank=0, world_size=1)))) == 8


def test_the_ranks_of_a_process_group_are_found_though_it_is_made_later(loader, tmp_path):
    batches = loader()
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        assert batches.ranks.world_size == 1 and len(next(iter(batches))) == 8
    finally:
        distributed.destroy_process_group()


def test_a_batch_size_that_is_no_multiple_is_said(loader, caplog):
    assert loader(batch_size=7).batch_size == 8
    assert "batches have 8 crops, not 7: they show 4 whole images of 2 crops" in caplog.text
    caplog.clear()
    loader(batch_size=8)
    assert not caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of open files")
def test_worker_processes_without_files_to_open_are_refused_before_they_hang(folder, store):
    code = f"""
        import resource
        from ferkd import SoftLabelLoader
        loader = SoftLabelLoader({str(folder)!r}, {str(store.path)!r}, batch_size=8,
                                 crops_per_image=2, image_size=16, workers=1,
                                 worker_kind="processes")
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        list(loader)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
    )
    assert done.returncode == 1
    assert "32 are allowed; allow more (ulimit -n 4096), use fewer workers" in done.stderr
