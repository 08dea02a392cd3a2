"""The images of a demo: embedded scenes, a folder with its own split, or one that is split here."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferkd.crops import image_keys
from ferkd.images import open_images
from ferkd.study.scenes.drawn import Box, read_boxes, write_scenes
from ferkd.system.errors import InputError


@dataclass(frozen=True)
class Data:
    """Two folders of class folders, and the true boxes of the training images where known."""

    train: Path
    val: Path
    boxes: dict[str, Box] | None = None


def check(images: Path, held_out: float) -> None:
    """Raise InputError where a demo of these images cannot be, before anything is written."""
    if not 0 < held_out < 1:
        raise InputError(f"--held-out {held_out}: give a share between 0 and 1")
    for folder in (images / "train", images / "val") if _has_split(images) else (images,):
        open_images(folder)


def _has_split(images: Path) -> bool:
    return (images / "train").is_dir() and (images / "val").is_dir()


def prepare(out: Path, images: Path | None, held_out: float) -> Data:
    """The images of a demo; what has to be written goes to ``out``. Raises InputError."""
    if images is None:
        if not out.is_dir():
            write_scenes(out)
        return Data(out / "train", out / "val", read_boxes(out / "train"))
    images = Path(images)
    if _has_split(images):
        return Data(images / "train", images / "val")
    if not out.is_dir():
        _split(images, out, held_out)
    return Data(out / "train", out / "val")


def _split(images: Path, out: Path, held_out: float) -> None:
    """Link each image into ``out/train`` or ``out/val``; which one depends on its id alone.

    Of every class at least one image goes to each side.
    """
    source = open_images(images)
    keys = image_keys(source.ids, 0)
    validation = np.zeros(len(source), bool)
    for target, name in enumerate(source.class_names):
        members = np.flatnonzero(source.targets == target)
        if len(members) < 2:
            raise InputError(
                f"class {name} of {images} has {len(members)} image; at least 2 are needed to "
                "hold some out"
            )
        count = min(max(1, round(held_out * len(members))), len(members) - 1)
        validation[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for image_id, is_validation in zip(source.ids, validation, strict=True):
        link = unfinished / ("val" if is_validation else "train") / image_id
        link.parent.mkdir(parents=True, exist_ok=True)
        target_path = (images / image_id).resolve()
        try:
            os.symlink(target_path, link)
        except OSError:  # file systems without links
            shutil.copyfile(target_path, link)
    unfinished.rename(out)
