"""A part of Tiny-ImageNet as class folders, for the suite many-classes.

``python docs/results/tiny_imagenet.py tiny-imagenet-200 100 40 tiny`` copies the first 40 training
images of each of the first 100 classes, by name, to ``tiny/train``, and the 50 validation images
of each to ``tiny/val``. The first argument is the data set as its authors (Stanford's CS231n) pack
it: ``train/WNID/images`` and ``val/images`` with ``val_annotations.txt``. Classes are WordNet ids,
by which a teacher of 1000 ImageNet classes finds its own. The images are ImageNet's, at 64 px.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path


def main(folder: Path, classes: int, images: int, out: Path) -> tuple[int, int]:
    """Copy; how many images of training and of validation."""
    names = sorted(path.name for path in (folder / "train").iterdir())[:classes]
    train = [
        (file, out / "train" / name / file.name)
        for name in names
        for file in sorted((folder / "train" / name / "images").iterdir(), key=_number)[:images]
    ]
    lines = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t")[:2] for line in lines]
    val = [
        (folder / "val" / "images" / file, out / "val" / name / file)
        for file, name in pairs
        if name in names
    ]
    for source, target in train + val:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return len(train), len(val)


def _number(file: Path) -> int:
    """The number of an image of its class: n01443537_12.JPEG is number 12."""
    found = re.search(r"_(\d+)\.", file.name)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    source, classes, images, target = sys.argv[1:]
    train, val = main(Path(source), int(classes), int(images), Path(target))
    print(f"{train} training and {val} validation images in {target}")
