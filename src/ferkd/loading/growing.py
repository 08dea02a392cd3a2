"""Batches from a store that is still being written: every pass shows what was labelled by then.

The store is looked at before the first step and at the end of each pass. Images that are not
labelled yet are left out of the pass and picked up by the next one that finds them. A *stretch* is
what was trained on between two looks that found something new: its first step, its parts, and the
number of the pass it begins with. The stretches seen so far determine every batch up to the next
look, so a run continued from a state with them goes on as it would have gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, cast

from ferkd.images import PixelCache, Unreadable
from ferkd.loading.batch import Batch
from ferkd.loading.loader import Loader
from ferkd.system.distributed import Ranks, find_ranks
from ferkd.system.errors import InputError

NOTHING = (
    "no image of the labels' finished parts can be trained on yet; start again when ferkd label "
    "has written some"
)


@dataclass(frozen=True)
class Stretch:
    """What a run trains on from ``step`` on: the ``images`` of these parts of the store.

    ``visit`` is the number of its first pass: an image shows other crops at every visit.
    """

    step: int
    visit: int
    images: int
    parts: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """For the run's record."""
        return {"from_step": self.step, "images": self.images, "parts": ranges(self.parts)}


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as "0-4,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class GrowingLoader:
    """Stands for a :class:`Loader`; addressed by step like it.

    ``done`` tells the parts that are there now, ``open_parts(parts, first, visit)`` makes a loader
    of them whose order begins at the position ``first`` with that visit. ``images`` is the number
    offered, which epochs are counted by. Raises InputError where nothing is labelled yet, and where
    several processes train: each would see the store at another moment.
    """

    def __init__(
        self,
        done: Callable[[], tuple[int, ...]],
        open_parts: Callable[[tuple[int, ...], int, int], Loader],
        *,
        images: int,
        images_per_batch: int,
    ) -> None:
        if find_ranks(None, None).world_size > 1:
            raise InputError(
                "data.partial is for one process: several would find the store at different "
                "moments; wait until the store is finished, or train by one process"
            )
        self._done, self._open = done, open_parts
        self.images, self.images_per_batch = images, images_per_batch
        self.stretches: list[Stretch] = []
        self._opened: tuple[Stretch, Loader] | None = None
        first = self._loader(self._look(0))
        self.batch_size, self.crops_per_image = first.batch_size, first.crops_per_image
        self.cache: PixelCache | None = first.cache

    @property
    def ranks(self) -> Ranks:
        return Ranks()

    @property
    def steps_per_pass(self) -> float:
        """Steps in which all images offered would be visited once."""
        return self.images / self.images_per_batch

    @property
    def unreadable(self) -> dict[str, Unreadable]:
        return {} if self._opened is None else self._opened[1].unreadable

    def restore(self, stretches: Sequence[dict[str, Any]]) -> None:
        """Go on from a state: what it saw, and when."""
        self.stretches = [Stretch(**{**s, "parts": tuple(s["parts"])}) for s in stretches]

    def seen(self) -> list[dict[str, Any]]:
        """The stretches for the run's record: from which step on, images and parts."""
        return [stretch.describe() for stretch in self.stretches]

    def state(self) -> list[dict[str, Any]]:
        """What was seen so far, and when."""
        return [asdict(stretch) for stretch in self.stretches]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start .. stop - 1."""
        while start < stop:
            stretch = self._look(start)
            end = min(stop, self._next_look(stretch, start))
            with closing(cast(Any, self._loader(stretch).batches(start, end))) as batches:
                yield from batches
            start = end

    def _look(self, step: int) -> Stretch:
        """The stretch of a step; where the step begins a pass, of what is labelled now."""
        self.stretches = [s for s in self.stretches if s.step <= step]
        last = self.stretches[-1] if self.stretches else None
        if last is not None and (step == last.step or step < self._next_look(last, step - 1)):
            return last
        parts = self._done()
        if last is not None and parts == last.parts:
            return last
        if not parts:
            raise InputError(NOTHING)
        visit = 0 if last is None else last.visit + self._passes(last, step)
        loader = self._open(parts, step * self.images_per_batch, visit)
        stretch = Stretch(step, visit, loader.images, parts)
        self._opened = stretch, loader
        self.stretches.append(stretch)
        return stretch

    def _loader(self, stretch: Stretch) -> Loader:
        if self._opened is None or self._opened[0] != stretch:
            first = stretch.step * self.images_per_batch
            self._opened = stretch, self._open(stretch.parts, first, stretch.visit)
        return self._opened[1]

    def _pass(self, stretch: Stretch) -> int:
        """The steps of a pass: its last batch is filled up from the next pass."""
        return -(-stretch.images // self.images_per_batch)

    def _passes(self, stretch: Stretch, step: int) -> int:
        """How many passes a stretch has begun before a step."""
        shown = (step - stretch.step) * self.images_per_batch
        return -(-shown // stretch.images)

    def _next_look(self, stretch: Stretch, step: int) -> int:
        """The first step after ``step`` at which the store is looked at again."""
        length = self._pass(stretch)
        return stretch.step + ((step - stretch.step) // length + 1) * length
