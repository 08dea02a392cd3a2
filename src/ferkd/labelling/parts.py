"""A part of a store while it is labelled, and what of it outlives an interruption.

The batches of a part are the same however often it is interrupted: what is kept ends where a
batch ends, and the next batch begins there. So a store's bytes do not depend on interruptions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.images import Unreadable
from ferkd.store.reader import IMAGE
from ferkd.system.errors import InputError
from ferkd.system.files import whole_file

log = logging.getLogger("ferkd")


@dataclass
class Part:
    """The labels of one part as they grow.

    ``crops`` records belong to an image, of which the teacher is shown ``views``: as many crops,
    or for label maps the whole image once. ``shown`` views have been answered, images and what
    was left out are known beyond them. ``again`` is the fingerprint of the image some of whose
    views are answered, None where there is none.
    """

    dtype: np.dtype[Any]
    crops: int
    views: int
    shown: int = 0
    again: int | None = None
    ids: list[str] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of the images among those offered
    records: list[NDArray[Any]] = field(default_factory=list)
    skipped: list[Unreadable] = field(default_factory=list)
    skipped_places: list[int] = field(default_factory=list)

    def add(self, place: int, image_id: str, row: tuple[int, int, int, int, int]) -> int:
        """Take an image in; returns how many of its views are answered already.

        Raises InputError where it is no longer the image whose views they were.
        """
        answered = self.shown - self.views * len(self.ids) if self.again is not None else 0
        if self.again not in (None, row[1]):
            raise InputError(
                f"{image_id} has changed since some of its crops were labelled; restore it, or "
                "continue with --recheck"
            )
        self.again = None
        self.places.append(place)
        self.ids.append(image_id)
        self.rows.append(row)
        return answered

    def skip(self, place: int, image: Unreadable) -> None:
        self.skipped_places.append(place)
        self.skipped.append(image)

    def rest(self, members: range) -> range:
        """Those of the images ``members`` that are still to be looked at."""
        past = max([*self.places, *self.skipped_places], default=members.start - 1)
        return range(past + 1, members.stop)

    def table(self) -> NDArray[Any]:
        return np.array(self.rows, IMAGE)

    def flat(self) -> NDArray[Any]:
        """The records of the views answered so far."""
        records = np.concatenate([np.zeros(0, self.dtype), *self.records])
        return records[: self.shown * (self.crops // self.views)]

    def joined(self) -> NDArray[Any]:
        return self.flat().reshape(len(self.ids), self.crops)


def keep(part: Part, path: Path) -> None:
    """Write down what is answered of a part, to be continued by :func:`begun`."""
    whole, some = divmod(part.shown, part.views)
    ends = part.places[whole] if whole < len(part.places) else None
    left_out = [
        (place, *image)
        for place, image in zip(part.skipped_places, part.skipped, strict=True)
        if ends is None or place < ends
    ]
    known = {
        "shown": part.shown,
        "again": part.rows[whole][1] if some and whole < len(part.rows) else part.again,
        "images": list(zip(part.ids[:whole], part.rows[:whole], part.places[:whole], strict=True)),
        "skipped": left_out,
    }
    with whole_file(path) as file:
        text = np.frombuffer(json.dumps(known).encode(), "u1")
        np.savez(file, known=text, records=part.flat())


def begun(path: Path, part: Part, batch_size: int) -> Part:
    """``part``, with what :func:`keep` wrote of it; as it is where nothing usable is there."""
    if not path.is_file():
        return part
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            known, records = json.loads(kept["known"].tobytes()), kept["records"]
        part.shown, part.again = int(known["shown"]), known["again"]
        if part.shown % batch_size or records.dtype != part.dtype:
            raise ValueError("it ends within a batch")
        if len(records) != part.shown * (part.crops // part.views):
            raise ValueError("it lacks records")
        for image_id, row, place in known["images"]:
            part.ids.append(str(image_id))
            part.rows.append(tuple(map(int, row)))  # type: ignore[arg-type]
            part.places.append(int(place))
        for place, image_id, reason in known["skipped"]:
            part.skip(int(place), Unreadable(str(image_id), str(reason)))
        part.records.append(records)
    except Exception as error:  # a damaged archive shows in errors of many classes
        log.warning("%s is damaged (%s); its images are labelled again", path, error)
        return Part(part.dtype, part.crops, part.views)
    return part
