"""A student that learns from a store which a second process is writing meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from ferkd.labelling.run import label
from ferkd.loading.growing import ranges
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore
from ferkd.store.partial import Growing
from ferkd.system.errors import InputError
from ferkd.training import train, train_together
from ferkd.training.partial import open_partial
from ferkd.training.recipe import Recipe, make_recipe

IMAGES, PART, CROPS = 12, 2, 6


class Colours(torch.nn.Module):
    """A teacher without weights: a crop's class is its brightest channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * images.mean((2, 3))


def label_slowly(photos: Path, out: Path, told: Connection) -> None:
    """Label, and wait until told to go on before each part and at the end."""
    torch.set_num_threads(1)
    written = -1

    def progress(now) -> None:
        nonlocal written
        if now.parts > written:
            written = now.parts
            told.recv()

    teacher = Teacher(Colours(), Inputs(image_size=16), spec="colours", device="cpu")
    options = {"part_images": PART, "workers": 1, "check_agreement": False}
    label(photos, teacher, out, crops=CROPS, top_k=2, progress=progress, **options)


class Writer:
    """The second process; ``write`` lets it finish more parts."""

    def __init__(self, photos: Path, out: Path) -> None:
        context = multiprocessing.get_context("fork")  # so that the imports are paid once
        self.out = out
        theirs, self.told = context.Pipe(duplex=False)
        self.process = context.Process(target=label_slowly, args=(photos, out, theirs))
        self.process.start()

    def write(self, parts: int) -> None:
        """Go on until ``parts`` more are there; after the last one until the store is finished."""
        there = len(list(self.out.glob("parts/*.npz")))
        last = there + parts == IMAGES // PART
        for _ in range(parts + last):
            self.told.send(None)
        deadline = time.monotonic() + 60
        while not last and len(list(self.out.glob("parts/*.npz"))) < there + parts:
            assert time.monotonic() < deadline and self.process.is_alive()
            time.sleep(0.01)
        if last:
            self.process.join(60)
            assert self.process.exitcode == 0


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = tmp_path / "photos" / "bgr"[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 160, (24, 30, 3))
        pixels[:, :, i % 3] += 90
        cv2.imwrite(str(path), pixels.astype(np.uint8))
    return tmp_path / "photos"


@pytest.fixture
def writer(photos, tmp_path):
    if sys.platform != "linux":
        pytest.skip("forks the second process")
    process = Writer(photos, tmp_path / "labels")
    yield process
    process.process.kill()
    process.process.join()


def recipe(photos: Path, store: Path | str, steps: int = 12, **changes) -> Recipe:
    data = {"images": str(photos), "store": str(store), "image_size": 16, "partial": True}
    return make_recipe(
        {
            "method": "ferkd",
            "data": {**data, "batch_size": 8, "crops_per_image": 2, "workers": 0},
            "student": {
                "name": "timm/resnet10t",
                "model_args": {"channels": [8, 8, 8, 8], "stem_width": 4},
            },
            "schedule": {"steps": steps},
            "regions": {"thresholds": [0.1, 0.1, 1.0]},
            "checkpoint_seconds": 1e-9,
            "log_steps": 1,
            **changes,
        }
    )


def test_a_student_follows_the_store_and_continues_as_it_would_have_gone(photos, writer, tmp_path):
    """4 images to begin with, 8 from step 3, all 12 once the store is finished.

    A copy of the run at step 6, in the midst of a pass over what it had seen, is continued later.
    """
    writer.write(2)
    run, copy = tmp_path / "run", tmp_path / "copy"

    def progress(line: dict) -> None:
        if line["kind"] != "train":
            return
        if line["step"] == 3:
            writer.write(2)
        elif line["step"] == 7:
            shutil.copytree(run, copy)
            (copy / ".lock").unlink(missing_ok=True)
            writer.write(2)

    wanted = recipe(photos, tmp_path / "labels")
    result = train(wanted, run, progress=progress)
    seen = [
        {"from_step": 0, "images": 4, "parts": "0-1"},  # a pass is one step, of 4 images
        {"from_step": 3, "images": 8, "parts": "0-3"},  # two steps
        {"from_step": 7, "images": 12, "parts": "0-5"},
    ]
    assert result["partial"] == seen and result["steps"] == 12
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["parts"]) for line in lines if line["kind"] == "labels"]
    assert told == [(1, "0-1"), (4, "0-3"), (8, "0-5")]
    again = train(wanted, copy, resume=True)
    assert again["partial"] == seen
    weights = [safetensors.torch.load_file(at / "weights.safetensors") for at in (run, copy)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_pass_shows_what_was_labelled_by_then_and_new_crops_each_time(
    photos, writer, tmp_path
):
    writer.write(2)
    loader = open_partial(recipe(photos, tmp_path / "labels")).loader
    growing = Growing(tmp_path / "labels", ids_of(photos))
    shown: list[list[tuple[str, int]]] = []
    for step in range(5):
        for batch in loader.batches(step, step + 1):
            ids = growing.snapshot(loader.stretches[-1].parts, tmp_path / f"s{step}").ids
            pairs = zip(batch.rows.tolist(), batch.crops.tolist(), strict=True)
            shown.append([(ids[row], crop) for row, crop in pairs])
        if step == 1:
            writer.write(1)
    ids = sorted(ids_of(photos))
    passes = [shown[0], shown[1], shown[2] + shown[3]]
    first, second, third = ({name for name, _ in one} for one in passes)
    assert first == second == set(ids[:4])
    # Six images in two steps of four: the pass is filled up with two of the next.
    assert third == set(ids[:6]) and len(passes[2]) == 16
    for name in ids[:4]:  # three visits of two: all six crops
        crops = [
            crop
            for one in (shown[0], shown[1], shown[2] + shown[3])
            for n, crop in one
            if n == name
        ]
        assert sorted(crops[:6]) == list(range(CROPS))


def test_a_snapshot_is_the_same_before_and_after_the_store_was_finished(photos, writer, tmp_path):
    writer.write(3)
    growing = Growing(tmp_path / "labels", ids_of(photos))
    assert growing.done() == (0, 1, 2) and not growing.finished
    before = growing.snapshot([0, 2], tmp_path / "before")
    writer.write(3)
    assert growing.done() == tuple(range(6)) and growing.finished
    after = growing.snapshot([0, 2], tmp_path / "after")
    assert before.manifest == after.manifest
    whole, ids = LabelStore(tmp_path / "labels"), sorted(ids_of(photos))
    assert list(before.ids) == [*ids[0:2], *ids[4:6]]
    rows = np.array([0, 1, 4, 5])[:, None]
    here = before.records(np.arange(4)[:, None], np.arange(CROPS))
    assert (here == whole.records(rows, np.arange(CROPS))).all()


def test_what_cannot_be_trained_on_is_said(photos, writer, tmp_path):
    labels = tmp_path / "labels"
    deadline = time.monotonic() + 60
    while not (labels / "settings.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(InputError, match=r"no image of the labels' finished parts.*start again"):
        open_partial(recipe(photos, labels))
    writer.write(1)
    shutil.copytree(photos, tmp_path / "more")
    shutil.copy(photos / "b/00.png", tmp_path / "more/b/99.png")
    with pytest.raises(InputError, match="other images than these 13"):
        open_partial(recipe(tmp_path / "more", labels))
    with pytest.raises(InputError, match=r"data\.partial is for stored labels of crops"):
        open_partial(recipe(photos, labels, method="hard"))
    with pytest.raises(InputError, match=r"is a URL.*finished parts"):
        open_partial(recipe(photos, "memory://x/labels"))
    with pytest.raises(InputError, match=r"recipe a has data\.partial"):
        one = recipe(photos, labels)
        train_together({"a": one, "b": one}, tmp_path / "together")


def ids_of(photos: Path) -> list[str]:
    return sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))


def test_ranges_of_parts():
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8" and ranges(()) == ""
