"""Counts of all crops of a store, such that a page can tell the regions of any thresholds exactly.

A scalpel stands at one of P positions p_0 < ... < p_(P-1): the thousandths from 0 to 1, and the
thresholds that the page begins with. Scores are compared with positions as `classify_scores` does
it, in float32, and so every score falls in one of 2 P + 1 cells:

=============  ===========================================================
0              NaN: without a ground truth "true_prob" is not known
2 j + 1        equal to p_j
2 j + 2        between p_j and p_(j+1); behind the last position above it
=============  ===========================================================

Scores below 0 do not exist. With the thresholds at p_l, p_m and p_t a crop is discarded where its
cell is 1 .. 2 l or at least 2 t + 2, else hard up to 2 m, else important; NaN is important.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.calibration.ranks import row_chunks
from ferkd.calibration.regions import Region, Thresholds

STEPS = 1000  # a scalpel moves by a thousandth


def positions(thresholds: Thresholds) -> tuple[list[float], tuple[int, int, int]]:
    """Where scalpels can stand, ascending, and at which of them the three thresholds do."""
    places = {np.float32(i / STEPS): i / STEPS for i in range(STEPS + 1)}
    for threshold in thresholds:
        places.setdefault(np.float32(threshold), threshold)
    ordered = sorted(places)
    low, middle, top = (ordered.index(np.float32(t)) for t in thresholds)
    return [places[place] for place in ordered], (low, middle, top)


def cells_of(scores: NDArray[np.float32], places: list[float]) -> NDArray[np.uint16]:
    """The cell of each score [N, crops], uint16 of the same shape."""
    at = np.array(places, np.float32)
    cells = np.empty(scores.shape, np.uint16)
    for rows in row_chunks(*scores.shape):
        some = scores[rows]
        found = np.searchsorted(at, some, "left") + np.searchsorted(at, some, "right")
        cells[rows] = np.where(np.isnan(some), 0, found)
    return cells


def regions_of(cells: NDArray[np.uint16], low: int, middle: int, top: int) -> NDArray[np.int8]:
    """The region of each cell with the thresholds at these positions; the page's script does so."""
    regions = np.full(cells.shape, Region.IMPORTANT, np.int8)
    regions[cells <= 2 * middle] = Region.HARD
    regions[(cells <= 2 * low) | (cells >= 2 * top + 2)] = Region.DISCARDED
    regions[cells == 0] = Region.IMPORTANT
    return regions


@dataclass(frozen=True)
class Tables:
    """Counts by cell [2 P + 1] of all crops: ``crops``; of those of images with a ground truth
    ``known``, and of these ``right``, where the teacher's answer is the truth. ``highest`` and
    ``lowest`` count images by the cells of their surest and least sure crops; images of NaN are in
    neither. ``classes`` has, by ground truth, -1 for none: images, cells that hold a crop, how
    many they hold, and the share of the crops on which the teacher is right (None for -1)."""

    crops: NDArray[np.int64]
    known: NDArray[np.int64]
    right: NDArray[np.int64]
    highest: NDArray[np.int64]
    lowest: NDArray[np.int64]
    classes: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64], float | None]]

    def plain(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As JSON: a class's cells as one list (cell, crops, cell, crops, ...)."""
        return {
            **{
                name: getattr(self, name).tolist()
                for name in ("crops", "known", "right", "highest", "lowest")
            },
            "classes": [
                {
                    "class": target,
                    "name": names[target] if target >= 0 else "no ground truth",
                    "images": images,
                    "right": right,
                    "cells": np.stack([cells, counts], 1).ravel().tolist(),
                }
                for target, (images, cells, counts, right) in self.classes.items()
            ],
        }


def tabulate(
    cells: NDArray[np.uint16], correct: NDArray[np.bool_], targets: NDArray[np.integer], count: int
) -> Tables:
    """Count cells [N, crops] of ``count`` positions; ``correct`` [N, crops], ``targets`` [N]."""
    size = 2 * count + 1

    def counted(of: NDArray[np.uint16]) -> NDArray[np.int64]:
        total = np.zeros(size, np.int64)
        for rows in row_chunks(*of.shape):
            total += np.bincount(of[rows].ravel(), minlength=size)
        return total

    order = np.argsort(targets, kind="stable")
    found, starts = np.unique(targets[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(order) else []
    known, right = np.zeros(size, np.int64), np.zeros(size, np.int64)
    classes = {}
    for target, rows in zip(found.tolist(), parts, strict=True):
        here = counted(cells[rows])
        answers = counted(cells[rows][correct[rows]][:, None]) if target >= 0 else None
        if answers is not None:
            known += here
            right += answers
        filled = np.flatnonzero(here)
        share = None if answers is None else float(answers.sum() / here.sum())
        classes[int(target)] = (len(rows), filled, here[filled], share)
    scored = cells[(cells != 0).all(1)]
    highest, lowest = scored.max(1, initial=0), scored.min(1, initial=size - 1)
    return Tables(
        counted(cells),
        known,
        right,
        np.bincount(highest, minlength=size),
        np.bincount(lowest, minlength=size),
        classes,
    )
