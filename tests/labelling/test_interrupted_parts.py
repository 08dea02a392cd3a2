"""What is labelled of a part outlives Ctrl-C, and the store's bytes do not show it."""

from __future__ import annotations

import logging
import os
import signal

import numpy as np
import pytest

from ferkd.labelling import parts as kept_parts
from ferkd.labelling.run import label
from ferkd.models.teacher import load_teacher
from ferkd.system.errors import InputError

TEACHER = "timm/test_resnet?random=0&num_classes=3&image_size=32"
# 12 images x 5 crops in batches of 7: batches end within images.
OPTIONS = {"crops": 5, "batch_size": 7, "workers": 1, "top_k": 2}
MAP = {"kind": "map", "batch_size": 2, "workers": 1, "top_k": 2}


@pytest.fixture
def photos(tiny_images):
    root = tiny_images({"a": 5, "b": 4, "c": 4})
    (root / "a" / "0002.jpg").write_bytes(b"")  # left out, in the middle of the part
    return root


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(TEACHER)


def files(store):
    return {path.name: path.read_bytes() for path in store.iterdir()}


def interrupt_after(crops):
    def progress(now):
        if now.crops >= crops:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def batches_of(teacher, monkeypatch):
    """The number of images of each forward pass from here on."""
    sizes, forward = [], teacher.module.forward

    def counting(images):
        sizes.append(len(images))
        return forward(images)

    monkeypatch.setattr(teacher.module, "forward", counting)
    return sizes


@pytest.mark.parametrize("options", [OPTIONS, MAP])
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_part_continues_to_the_same_bytes(
    photos, teacher, tmp_path, monkeypatch, caplog, options, after
):
    options = {**options, "max_unreadable": 0.2}
    whole = label(photos, teacher, tmp_path / "whole", **options)
    unit = options["batch_size"] * (whole.crops_per_image if options is MAP else 1)
    sizes = batches_of(teacher, monkeypatch)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        label(
            *(photos, teacher, tmp_path / "store"),
            **options,
            progress=interrupt_after(after * unit),
        )
    assert "are kept in" in caplog.text and "continue with --resume" in caplog.text
    done = len(sizes)
    store = label(photos, teacher, tmp_path / "store", **options, resume=True)
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    assert [s.id for s in store.manifest.skipped] == ["a/0002.jpg"]
    if options["batch_size"] == 7:
        assert sum(sizes) == 12 * 5 and done == after  # nothing was shown twice


def test_a_kill_costs_no_more_than_was_not_written_down(photos, teacher, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(now):
        if now.crops >= 21:
            monkeypatch.setattr("ferkd.labelling.run.keep", lambda *_: None)  # no last words
            raise Killed

    options = {**OPTIONS, "max_unreadable": 0.2}
    label(photos, teacher, tmp_path / "whole", **options)
    monkeypatch.setattr("ferkd.labelling.run._KEEP_SECONDS", 0.0)
    sizes = batches_of(teacher, monkeypatch)
    with pytest.raises(Killed):
        label(photos, teacher, tmp_path / "store", **options, progress=kill)
    assert sizes == [7, 7, 7]
    monkeypatch.setattr("ferkd.labelling.run.keep", kept_parts.keep)
    label(photos, teacher, tmp_path / "store", **options, resume=True)
    assert sum(sizes) == 60 + 7  # the batch that was not written down again
    assert files(tmp_path / "store") == files(tmp_path / "whole")


@pytest.fixture
def begun(photos, teacher, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        label(
            *(photos, teacher, tmp_path / "store"),
            **OPTIONS,
            max_unreadable=0.2,
            progress=interrupt_after(7),
        )
    return tmp_path / "store" / "parts" / "000000.begun.npz"


def again(photos, teacher, begun, **options):
    return label(
        *(photos, teacher, begun.parents[1]), **OPTIONS, max_unreadable=0.2, resume=True, **options
    )


def test_a_damaged_beginning_is_labelled_again(photos, teacher, tmp_path, begun, caplog):
    begun.write_bytes(begun.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        again(photos, teacher, begun)
    assert "is damaged" in caplog.text
    label(photos, teacher, tmp_path / "whole", **OPTIONS, max_unreadable=0.2)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_an_image_changed_in_the_middle_of_its_crops_is_refused_until_rechecked(
    photos, teacher, begun
):
    with np.load(begun) as kept:
        assert len(kept["records"]) == 7  # all of the first image and 2 crops of the second
    (photos / "a/0001.jpg").write_bytes((photos / "a/0003.jpg").read_bytes())
    with pytest.raises(InputError, match=r"a/0001.jpg has changed since some of its crops"):
        again(photos, teacher, begun)
    assert len(again(photos, teacher, begun, recheck=True)) == 12
