"""Which images a step shows and which crops an image shows at a visit, as pure functions.

Nothing here keeps state: the answer for any step is computed from (seed, step), so training can
continue in the middle of an epoch and any number of workers gives the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ferkd.crops import hashes, image_keys

LISTED = 1 << 24  # images whose order is made as a whole, at 24 bytes each; of more, place by place
_ROUNDS = 6


class ImageOrder:
    """An endless stream of image rows: every pass shows each of ``count`` images once, shuffled.

    Passes follow each other without a gap, so a batch may straddle two; none is short. An order
    may begin at a later position, ``first``, with the number of a later pass, ``visit``.
    """

    def __init__(self, count: int, seed: int, *, first: int = 0, visit: int = 0) -> None:
        if count < 1:
            raise ValueError("an image order needs at least 1 image")
        self.first, self.visit = first, visit
        self.count, self._key = count, image_keys(["image order"], seed)[0]
        self._orders: dict[int, NDArray[np.int64]] = {}

    def at(self, start: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image rows and their visit numbers (passes) at positions start .. start + length - 1."""
        positions = np.arange(start - self.first, start - self.first + length)
        visits, places = np.divmod(positions, self.count)
        visits += self.visit
        rows = np.empty(length, np.int64)
        for visit in np.unique(visits):
            here = visits == visit
            rows[here] = self._rows(int(visit), places[here])
        return rows, visits

    def _rows(self, visit: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images at these places of a pass."""
        orders = self._orders  # replaced as a whole, never changed: threads may share this object
        if visit not in orders:
            with np.errstate(over="ignore"):
                key = hashes(self._key[None], np.array([visit], np.uint64))
            if self.count > LISTED:
                return permuted(places, self.count, key)
            values = hashes(key, np.arange(self.count, dtype=np.uint64))
            kept = {v: o for v, o in orders.items() if v >= visit - 1}
            orders = {**kept, visit: np.argsort(values, kind="stable")}
            self._orders = orders
        return orders[visit][places]


def permuted(places: NDArray[np.int64], count: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a permutation of 0 .. count - 1 that belongs to ``key`` [1] puts these places [n].

    A Feistel network over the numbers of 2 h bits, at most 4 ``count`` of them, goes on from what
    lies outside until it comes inside. Time and memory are of the places asked for.
    """
    half = np.uint64(-(-(count - 1).bit_length() // 2))
    mask = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):
        keys = [hashes(key, np.array([round_], np.uint64)) for round_ in range(_ROUNDS)]
        found = places.astype(np.uint64)
        outside = np.arange(len(found))
        while len(outside):
            left, right = found[outside] >> half, found[outside] & mask
            for one in keys:
                left, right = right, left ^ (hashes(one, right) >> (np.uint64(64) - half))
            found[outside] = left << half | right
            outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def draw_crops(
    usable: NDArray[np.bool_],
    ids: Sequence[str],
    visits: NDArray[np.int64],
    m: int,
    seed: int,
) -> NDArray[np.int64]:
    """The ``m`` crops that each of B images shows at its visit, int64 [B, m].

    ``usable`` bool [B, crops] says which crops may be drawn, at least one a row. Each image deals
    its usable crops in a random order until all are used (a cycle), then in a new order, and so
    on; a visit takes the next m. A visit that spans two cycles shows no crop twice, as long as
    there are at least m to draw from.
    """
    keys = image_keys(["crop order\0" + i for i in ids], seed)
    n = usable.sum(1)
    if usable.size and n.min() < 1:
        raise ValueError("every image needs at least one usable crop")
    positions = visits[:, None] * m + np.arange(m)
    cycles, places = np.divmod(positions, n[:, None])
    out = np.empty((len(n), m), np.int64)
    for ahead in range(int((cycles[:, -1] - cycles[:, 0]).max(initial=0)) + 1):
        cycle = cycles[:, 0] + ahead
        here = cycles == cycle[:, None]
        rows = np.flatnonzero(here.any(1))
        order = _dealt(usable[rows], keys[rows], cycle[rows], m)
        dealt = np.take_along_axis(order, places[rows] % order.shape[1], 1)
        out[rows] = np.where(here[rows], dealt, out[rows])
    return out


def _dealt(
    usable: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    cycle: NDArray[np.int64],
    m: int,
) -> NDArray[np.int64]:
    """The order of a cycle [B, crops], usable crops first, clear of the cycle before.

    The visit in which a cycle begins has shown the last r crops of the cycle before; the m - r
    crops that fill it up are taken from the others.
    """
    order = _shuffled(usable, keys, cycle)
    n = usable.sum(1)
    r = (cycle * n) % m
    rows = np.flatnonzero((r > 0) & (n >= m))
    if not len(rows):
        return order
    before = _shuffled(usable[rows], keys[rows], cycle[rows] - 1)
    # With fewer than 2 m crops that order's end was moved too; it ends at a cycle with r = 0,
    # at most m back.
    few = np.flatnonzero(n[rows] < 2 * m)
    if len(few):
        before[few] = _dealt(usable[rows[few]], keys[rows[few]], cycle[rows[few]] - 1, m)
    place = np.arange(usable.shape[1])
    shown = np.zeros_like(usable[rows])
    is_last = (place >= (n[rows] - r[rows])[:, None]) & (place < n[rows][:, None])
    np.put_along_axis(shown, before, is_last, 1)
    fresh = ~np.take_along_axis(shown, order[rows], 1)
    leads = fresh & (np.cumsum(fresh, 1) <= (m - r[rows])[:, None])
    order[rows] = np.take_along_axis(order[rows], np.argsort(~leads, axis=1, kind="stable"), 1)
    return order


def _shuffled(
    usable: NDArray[np.bool_], keys: NDArray[np.uint64], cycle: NDArray[np.int64]
) -> NDArray[np.int64]:
    crops = usable.shape[1]
    number = np.arange(crops, dtype=np.uint64)
    counters = np.asarray(cycle.astype(np.uint64)[:, None] * np.uint64(crops) + number, np.uint64)
    values = hashes(keys[:, None], counters) >> np.uint64(1)
    values[~usable] = np.uint64(0xFFFFFFFFFFFFFFFF)
    return np.argsort(values, axis=1, kind="stable")
