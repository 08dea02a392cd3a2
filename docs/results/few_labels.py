"""A part of each class of an image folder, for the suite flowers-few-labels.

``python docs/results/few_labels.py flowers/train 10 few-10`` copies every tenth
photograph of each class, in the order of their names, to the class folders of ``few-10``: 10 % of
the labels are known, the same whatever the seed of a run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main(folder: Path, percent: int, out: Path) -> int:
    """Copy ``percent`` of 100 images of each class, evenly spread and at least one; how many."""
    copied = 0
    for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in of_class.iterdir() if path.is_file())
        count = max(1, len(files) * percent // 100)
        target = out / of_class.name
        target.mkdir(parents=True)
        for number in range(count):
            shutil.copy(files[number * len(files) // count], target)
        copied += count
    return copied


if __name__ == "__main__":
    source, share, target = sys.argv[1:]
    print(f"{main(Path(source), int(share), Path(target))} images in {target}")
