"""A store that is still being written, for who learns from it meanwhile: its finished parts.

Parts are numbered and cover fixed ranges of the images offered, so a list of numbers says which
labels were there at a moment. `Growing.snapshot` makes a store of them, the same one now and after
the store was finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.store import manifest as manifests
from ferkd.store.derive import Layout
from ferkd.store.parts import part_members
from ferkd.store.reader import MANIFEST, LabelStore
from ferkd.store.signals import split_signals
from ferkd.store.unfinished import PARTS, begun_settings
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError
from ferkd.system.storage import as_local, masked


class Growing:
    """The store at ``path``, finished or not, of the images ``ids``, all that were offered to it.

    Raises InputError where no store was begun, for a store of other images, and for a URL.
    """

    def __init__(self, path: str | Path, ids: Sequence[str]) -> None:
        place, self._named = split_signals(path)
        local = as_local(place)
        if local is None:
            raise InputError(
                f"{masked(path)} is a URL, and only the folder that a store is written to tells "
                "its finished parts; give that folder, or wait until the store is published"
            )
        self.path = local
        self.settings = self.store().settings if self.finished else begun_settings(local)
        if self.settings.images.listing != listing(ids):
            raise InputError(
                f"{local} is being written for other images than these {len(ids)}; with partial, "
                "give the very images that are being labelled"
            )
        self.images = len(ids)
        self.parts = -(-self.images // self.settings.part_images)

    @property
    def finished(self) -> bool:
        """Whether the whole store is there."""
        return (self.path / MANIFEST).exists()

    def store(self) -> LabelStore:
        """The finished store."""
        return LabelStore(self.path, self._named)

    def done(self) -> tuple[int, ...]:
        """The numbers of the parts that are there now."""
        if not self.finished:
            there = {path.stem for path in (self.path / PARTS).glob("*.npz")}
            if not self.finished:  # else they went while they were listed
                return tuple(n for n in range(self.parts) if f"{n:06d}" in there)
        return tuple(range(self.parts))

    def snapshot(self, parts: Sequence[int], folder: Path) -> LabelStore:
        """A store of these parts, written to ``folder``. Raises InputError for a damaged part."""
        with _Snapshot(self, parts, folder) as writer:
            return writer.finish()


class _Snapshot(StoreWriter):
    """Joins some parts of another store, wherever they lie by now."""

    def __init__(self, source: Growing, numbers: Sequence[int], folder: Path) -> None:
        super().__init__(folder, source.settings, source.images, resume=True)
        self._source, self._numbers = source, list(numbers)
        self._whole: tuple[LabelStore, Layout] | None = None

    @property
    def parts(self) -> int:
        return len(self._numbers)

    def missing(self) -> list[int]:
        return []

    def skipped(self) -> list[manifests.Skipped]:
        return [skip for number in range(self.parts) for skip in self._skipped_of(number)]

    def _part(self, number: int) -> Path:
        return self._source.path / PARTS / f"{self._numbers[number]:06d}.npz"

    @contextmanager
    def _read(self, number: int) -> Iterator[Any]:
        try:
            with super()._read(number) as part:
                members = {name: part[name] for name in part.files}
        except FileNotFoundError:
            members = self._of_finished(self._numbers[number])
        yield members

    def _of_finished(self, number: int) -> dict[str, NDArray[Any]]:
        """What the part was, out of the finished store."""
        if self._whole is None:
            store = self._source.store()
            self._whole = store, Layout(store)
        store, layout = self._whole
        first = number * self.settings.part_images
        numbers, skipped = layout.part(
            range(first, min(first + self.settings.part_images, self.total))
        )
        rows = np.arange(numbers.start, numbers.stop)
        where = rows[:, None], np.arange(store.crops_per_image)
        signal = store.of_kind("labels" if self.settings.record else "features")
        return part_members(
            store.ids.at(rows),
            store.images[rows],
            store.boxes(*where),
            store.flips(*where),
            signal.records(rows[:, None], np.arange(signal.width)),
            skipped,
        )
