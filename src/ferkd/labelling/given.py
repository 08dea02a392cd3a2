"""Crops of the user's own, from a file: which boxes of which images are labelled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.crops import CUT_RULE
from ferkd.store.manifest import Crops
from ferkd.store.records import MAX_SIDE
from ferkd.store.settings import MAX_CROPS
from ferkd.system.errors import InputError
from ferkd.system.files import read_plain
from ferkd.system.storage import SMALL_FILE

NO_CROP = "no crop of it is given"  # why an image is left out of whose crops none are listed
_FORM = 'one crop an entry: {"image": "CLASS/NAME.jpg", "box": [top, left, height, width]}'


@dataclass(frozen=True)
class GivenCrops:
    """Boxes int32 [n, 4] and flips bool [n] by image id, n the same for all; their digest."""

    source: str
    of: dict[str, tuple[NDArray[np.int32], NDArray[np.bool_]]]
    count: int
    digest: str

    @property
    def crops(self) -> Crops:
        """As a label store records them."""
        return Crops(kind="given", count=self.count, digest=self.digest, rule=CUT_RULE)

    def check_images(self, ids: Iterable[str]) -> None:
        """Raise InputError for crops of images that are not among ``ids``."""
        if unknown := sorted(self.of.keys() - set(ids)):
            raise InputError(
                f"{self.source} has crops of {len(unknown)} images that are not there (first: "
                f"{unknown[0]}); an image is named by its path below the image folder"
            )

    def draw(
        self, image_id: str, height: int, width: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The crops of an image of this size; InputError for a box that leads outside of it."""
        boxes, flips = self.of[image_id]
        outside = (boxes[:, :2] + boxes[:, 2:] > [height, width]).any(1)
        if outside.any():
            raise InputError(
                f"{self.source}: the box {boxes[outside][0].tolist()} of {image_id} leads outside "
                f"of its {height}x{width} pixels; a box is [top, left, height, width]"
            )
        return boxes, flips


def read_crops(path: str | Path) -> GivenCrops:
    """The crops in a JSON, JSON-lines or Parquet file.

    Each row has ``image`` (its id), ``box`` (top, left, height, width in pixels of the decoded
    image) or these four columns, and, if crops are mirrored, ``flip``. Crops keep their order
    within an image. Raises InputError for rows that are no crops, and where images have different
    numbers of them.
    """
    found: dict[str, list[tuple[list[int], bool]]] = {}
    for number, row in enumerate(_rows(Path(path)), 1):
        image, box, flip = _crop(row, f"{path}, crop {number}")
        found.setdefault(image, []).append((box, flip))
    counts = {image: len(crops) for image, crops in found.items()}
    if len(set(counts.values())) != 1:
        held = "none"
        if counts:
            few, many = (pick(counts, key=counts.__getitem__) for pick in (min, max))
            held = f"{counts[few]} of {few}, {counts[many]} of {many}"
        raise InputError(
            f"{path} has another number of crops for some images ({held}); give every image the "
            "same number"
        )
    if (count := next(iter(counts.values()))) > MAX_CROPS:
        raise InputError(f"{path} has {count} crops an image; give at most {MAX_CROPS:,}")
    digest, of = hashlib.sha256(), {}
    for image in sorted(found):
        boxes = np.array([box for box, _ in found[image]], np.int32)
        flips = np.array([flip for _, flip in found[image]], bool)
        of[image] = boxes, flips
        digest.update(image.encode() + b"\0" + boxes.astype("<i4").tobytes() + flips.tobytes())
    return GivenCrops(str(path), of, count, digest.hexdigest())


def _crop(row: Any, where: str) -> tuple[str, list[int], bool]:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise InputError(f"{where}: {str(row)[:80]!r} is no crop; give {_FORM}")
    if not _is_utf8(row["image"]):
        raise InputError(f"{where}: the image {row['image'][:80]!a} is no UTF-8; rename it")
    box = row.get("box")
    if box is None:
        box = [row.get(side) for side in ("top", "left", "height", "width")]
    flip = row.get("flip", False)
    whole = isinstance(box, list) and len(box) == 4
    if not whole or not all(type(n) is int and 0 <= n <= MAX_SIDE for n in box) or min(box[2:]) < 1:
        raise InputError(
            f"{where}: the box {str(box)[:80]} is not [top, left, height, width] in whole pixels, "
            "of 1 pixel at least"
        )
    if type(flip) is not bool:
        raise InputError(f"{where}: flip is {str(flip)[:80]!r}; it must be true or false")
    return row["image"], box, flip


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON may hold
        return False
    return True


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = read_plain(path, SMALL_FILE).decode()
        if text.lstrip()[:1] == "[":
            yield from json.loads(text)
        else:
            # Not splitlines: a name may hold what Unicode counts as a line's end.
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is neither JSON nor JSON lines ({error}); give {_FORM}") from None


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "reading Parquet needs pyarrow, which is not installed; pip install 'ferkd[exchange]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); check the file") from None
