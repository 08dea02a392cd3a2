"""A part of each class of an image folder, for the suite flowers-few-labels.

``python docs/results/few_labels.py flowers/train 10 few-10`` copies every tenth
photograph of each class, in the order of their names, to the class folders of ``few-10``: 10 % of
the labels are known, the same whatever the seed of a run. A further folder gets all photographs:
those of the part in their class folders, the others in ``_unlabelled``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ferkd.images.sources.folder import UNLABELLED


def main(folder: Path, percent: int, out: Path, mixed: Path | None = None) -> int:
    """Copy ``percent`` of 100 images of each class, evenly spread and at least one, and all images
    to ``mixed``; how many are known."""
    copied = 0
    for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in of_class.iterdir() if path.is_file())
        count = max(1, len(files) * percent // 100)
        known = {files[number * len(files) // count] for number in range(count)}
        for file in files:
            if file in known:
                _copy(file, out / of_class.name / file.name)
            if mixed is not None:
                place = of_class.name if file in known else UNLABELLED
                _copy(file, mixed / place / f"{of_class.name}-{file.name}")
        copied += count
    return copied


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


if __name__ == "__main__":
    source, share, *targets = sys.argv[1:]
    print(f"{main(Path(source), int(share), *map(Path, targets))} images in {targets[0]}")
