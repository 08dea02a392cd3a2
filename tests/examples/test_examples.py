"""The examples in others' trainers: which rows and crops they train on, stopped and resumed.

Each is started twice by its command: it is killed while it writes the state after its second epoch,
and goes on from the one before, in the middle of that epoch. All that it was given, of both starts
and of all processes, is then what the loader alone gives, and the processes hold the same weights.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import brightness
from pictures import write_noise

from ferkd import Regions, SoftLabelLoader
from ferkd.labelling.run import label

ROOT = Path(__file__).parents[2]
IMAGES, CROPS, SIZE = 16, 8, 32
EPOCHS, BATCH, M, STEPS = 3, 8, 2, 4  # 4 batches an epoch of 4 images, 2 crops of each
STOP = 2 * STEPS  # killed while it writes its fourth state, so it goes on from the third

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
EXAMPLES = {
    "plain_torch": (None, (), ()),
    "torchrun_ddp": (None, TORCHRUN, ()),
    "timm_components": ("timm", TORCHRUN, ()),
    "lightning_ddp": ("lightning", TORCHRUN, ("--devices", "2")),
    "hf_trainer": ("transformers", TORCHRUN, ()),
    "accelerate_loop": ("accelerate", TORCHRUN, ()),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    sizes = {f"{'ab'[i % 2]}/{i:02}.jpg": (40 + i, 56 - i) for i in range(IMAGES)}
    photos = write_noise(root / "photos", sizes)
    label(photos, brightness(SIZE), root / "labels", crops=CROPS)
    return photos, root / "labels"


def start(example: str, data, out: Path, log: Path, stop: int) -> None:
    """Run an example by its command; it fails where it is stopped, and only there."""
    _, launcher, options = EXAMPLES[example]
    photos, labels = data
    command = [sys.executable, *launcher, str(ROOT / "tests/examples/recorded.py")]
    command += [str(log), str(stop), str(ROOT / "examples" / f"{example}.py")]
    command += [str(photos), str(labels), "--out", str(out), "--model", "test_resnet"]
    command += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--image-size", "32"]
    command += ["--save-every", "1", *options]
    # Of the environment only what a shell has: tests before this one leave settings behind.
    kept = ("PATH", "HOME", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode == 0) == (stop > EPOCHS * STEPS), done.stderr[-3000:]


def noted(log: Path, rank: int, what: str = "") -> list:
    return [json.loads(line) for line in Path(f"{log}.{rank}{what}").read_text().splitlines()]


def expected(data, rank: int, ranks: int) -> list[list]:
    """What a process should be given over all epochs, from batches addressed by their step."""
    loader = SoftLabelLoader(
        *data, batch_size=BATCH, crops_per_image=M, image_size=8, regions=Regions()
    )
    part = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    return [
        [*divmod(step, STEPS), batch.rows[part].tolist(), batch.crops[part].tolist()]
        for step, batch in enumerate(loader.batches(0, EPOCHS * STEPS))
    ]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_stopped_and_resumed_trains_on_every_batch_once(example, data, tmp_path):
    needs, launcher, _ = EXAMPLES[example]
    if needs is not None:
        pytest.importorskip(needs)
    ranks = 2 if launcher else 1
    out = tmp_path / "out"
    start(example, data, out, tmp_path / "stopped", STOP)
    start(example, data, out, tmp_path / "resumed", 99)
    seen = []
    for rank in range(ranks):
        before, after = (noted(tmp_path / name, rank) for name in ("stopped", "resumed"))
        epoch, number = after[0][:2]
        assert (epoch, number) == (1, 2)  # in the middle
        assert [*before[: epoch * STEPS + number], *after] == expected(data, rank, ranks)
        seen.append(
            {
                (e, n, r, c)
                for e, n, rows, crops in [*before[: STEPS + 2], *after]
                for r, c in zip(rows, crops, strict=True)
            }
        )
    if ranks == 2:
        assert not seen[0] & seen[1]
        weights = [noted(tmp_path / "resumed", rank, ".weights") for rank in range(2)]
        assert weights[0] == weights[1] and len(set(weights[0])) == len(weights[0]) >= 3
    crops = [
        {(r, c) for part in seen for e, _, r, c in part if e == epoch} for epoch in range(EPOCHS)
    ]
    assert [len(found) for found in crops] == [IMAGES * M] * EPOCHS
    # 2 of an image's 8 crops an epoch, but for those that its regions discard.
    assert all(len(a & b) < IMAGES * M / 2 for a, b in itertools.combinations(crops, 2))


def test_a_stopped_loop_ends_with_the_weights_of_one_that_was_not(data, tmp_path):
    start("plain_torch", data, tmp_path / "whole", tmp_path / "log", 99)
    start("plain_torch", data, tmp_path / "halves", tmp_path / "log", STOP)
    start("plain_torch", data, tmp_path / "halves", tmp_path / "log", 99)
    ours, theirs = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True)
        for name in ("halves", "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_page(example):
    assert len((ROOT / "examples" / f"{example}.py").read_text().splitlines()) <= 100
