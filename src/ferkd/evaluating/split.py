"""Holding images out for validation: a folder of class folders becomes ``train`` and ``val``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkd.crops import image_keys
from ferkd.images import ImageSource, open_images
from ferkd.system.errors import InputError


def held_out(source: ImageSource, share: float) -> NDArray[np.bool_]:
    """Which images of ``source`` are held out, bool [N]: about ``share`` of each class, by a hash
    of their ids. Of every class at least one image is on each side."""
    keys = image_keys(source.ids, 0)
    validation = np.zeros(len(source), bool)
    for target, name in enumerate(source.class_names):
        members = np.flatnonzero(source.targets == target)
        if len(members) < 2:
            raise InputError(
                f"class {name} of {source.name} has {len(members)} image; at least 2 are needed to "
                "hold some out"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        validation[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return validation


def split_folder(images: Path, out: Path, share: float) -> None:
    """Link each image into ``out/train`` or ``out/val``; which one depends on its id alone.

    Of every class at least one image goes to each side.
    """
    source = open_images(images)
    validation = held_out(source, share)
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
