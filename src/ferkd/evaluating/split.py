"""Holding images out for validation: a folder of class folders becomes ``train`` and ``val``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from ferkd.crops import image_keys
from ferkd.images import open_images
from ferkd.system.errors import InputError


def split_folder(images: Path, out: Path, held_out: float) -> None:
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
