"""The images of a demo: embedded scenes, a folder with its own split, or one that is split here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ferkd.evaluating.split import split_folder
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
        split_folder(images, out, held_out)
    return Data(out / "train", out / "val")
