"""Order statistics of very many scores without sorting them: counted digit by digit.

A float32 that is not negative is ordered as its bits are. So the bits are read from the top, some
at a time: a pass over all scores counts the digits of those that still may be the one looked for
(radix selection). Nothing grows with the number of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18  # scores looked at together: some MB
_DIGITS = ((21, 11), (10, 11), (0, 10))  # lowest bit and number of bits of each

Scores = Callable[[], Iterator[NDArray[np.floating]]]  # walks over all scores, 0 or more, no NaN


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` rows, each of about `CHUNK` numbers where a row has ``width``."""
    step = max(1, CHUNK // max(1, width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def order_statistics(
    scores: Scores,
    ranks: NDArray[np.integer] | NDArray[np.floating],
    weigh: Callable[[NDArray[np.float32]], NDArray[np.floating]] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The smallest score up to which, itself included, lie more than ``ranks`` [n] scores, and how
    many lie below it.

    For whole ``ranks`` from 0 these are the scores at those places of the sorted sequence. With
    ``weigh`` a score counts with its weight instead of 1, and "more than" is "at least": the score
    at which the running sum of the weights reaches the rank.
    """
    found = np.zeros(len(ranks), np.int64)  # the bits known so far
    below = np.zeros(len(ranks), np.float64)
    if not len(ranks):
        return found.astype(np.float32), below
    side: Any = "right" if weigh is None else "left"
    for low, width in _DIGITS:
        wanted, place = np.unique(found, return_inverse=True)
        counts = np.zeros(len(wanted) << width)
        for chunk in scores():
            values = chunk.astype(np.float32, copy=False) + np.float32(0)  # -0 becomes 0
            bits = values.view(np.uint32).astype(np.int64) >> low
            at = np.searchsorted(wanted, bits >> width).clip(max=len(wanted) - 1)
            open_ = wanted[at] == bits >> width
            digits = (at[open_] << width) + (bits[open_] & ((1 << width) - 1))
            weights = None if weigh is None else weigh(values[open_])
            counts += np.bincount(digits, weights, minlength=len(counts))
        upto = np.cumsum(counts.reshape(len(wanted), -1), 1)
        for i, (group, rank) in enumerate(zip(place, ranks, strict=True)):
            row = upto[group]
            digit = int(np.searchsorted(row, rank - below[i], side))
            digit = min(digit, int(np.flatnonzero(np.diff(row, prepend=0))[-1]))
            found[i] = (found[i] << width) + digit
            below[i] += row[digit - 1] if digit else 0
    return found.astype(np.uint32).view(np.float32), below
