"""A folder in which a share of each class lies under a wrong class, for the suite flowers-noise.

``python docs/results/wrong_labels.py flowers/train 40 0 noisy-40-0`` links every photograph into
``noisy-40-0``: 40 of 100 of each class, drawn by the seed 0, into a folder of another class, drawn
evenly. A photograph keeps its name and gets its true class before it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path


def main(folder: Path, percent: int, seed: int, out: Path) -> int:
    """Link all images of ``folder``, ``percent`` of 100 of a class wrongly; how many are wrong."""
    draw, wrong = random.Random(seed), 0
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in classes:
        files = sorted(path for path in (folder / name).iterdir() if path.is_file())
        moved = set(draw.sample(files, round(len(files) * percent / 100)))
        others = [other for other in classes if other != name]
        for file in files:
            target = out / (draw.choice(others) if file in moved else name) / f"{name}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())
        wrong += len(moved)
    return wrong


if __name__ == "__main__":
    source, share, number, to = sys.argv[1:]
    print(f"{main(Path(source), int(share), int(number), Path(to))} images under a wrong class")
