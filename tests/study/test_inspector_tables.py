"""The page's counts tell the regions of any thresholds exactly as `classify_scores` does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.calibration.regions import Thresholds, classify_scores
from ferkd.study.inspector.tables import STEPS, cells_of, positions, regions_of, tabulate

PLACES, START = positions(Thresholds(0.2002678917987006, 0.5, 1.0))


def test_scalpels_stand_at_thousandths_and_at_the_start() -> None:
    assert len(PLACES) == STEPS + 2 and sorted(PLACES) == PLACES
    assert [PLACES[i] for i in START] == [0.2002678917987006, 0.5, 1.0]
    # A threshold that is a thousandth in float32, in which scores are compared, is that one.
    near, start = positions(Thresholds(0.1, float(np.float32(0.3)), 0.3))
    assert len(near) == STEPS + 1 and [near[i] for i in start] == [0.1, 0.3, 0.3]


on_grid = st.integers(0, STEPS).map(lambda i: i / STEPS)
scores = st.one_of(st.floats(0, 1, width=32), on_grid, st.just(float("nan")), st.just(PLACES[201]))


@given(
    st.lists(scores, min_size=1, max_size=40),
    st.lists(st.integers(0, len(PLACES) - 1), min_size=3, max_size=3).map(sorted),
)
def test_regions_by_cells_are_those_by_scores(values: list[float], cut: list[int]) -> None:
    array = np.array([values], np.float32)
    low, middle, top = (PLACES[i] for i in cut)
    wanted = classify_scores(array, low, middle, top)
    assert (regions_of(cells_of(array, PLACES), *cut) == wanted).all()


def test_counts_by_hand() -> None:
    """Positions 0, 1/2, 1: cells 1, 3, 5 are the positions, 2 and 4 what lies between."""
    cells = np.array([[1, 2], [4, 5], [3, 4], [0, 0]], np.uint16)
    correct = np.array([[True, False], [True, True], [False, False], [False, False]])
    tables = tabulate(cells, correct, np.array([0, 1, 0, -1]), 3)
    assert tables.crops.tolist() == [2, 1, 1, 1, 2, 1, 0]
    assert tables.known.tolist() == [0, 1, 1, 1, 2, 1, 0]
    assert tables.right.tolist() == [0, 1, 0, 0, 1, 1, 0]
    assert tables.highest.tolist() == [0, 0, 1, 0, 1, 1, 0]
    assert tables.lowest.tolist() == [0, 1, 0, 1, 1, 0, 0]
    plain = tables.plain(("a", "b"))["classes"]
    assert plain[0] == {
        **{"class": -1, "name": "no ground truth", "images": 1, "right": None, "cells": [0, 2]}
    }
    assert plain[1]["right"] == pytest.approx(1 / 4)
    assert plain[1]["cells"] == [1, 1, 2, 1, 3, 1, 4, 1] and plain[2]["cells"] == [4, 1, 5, 1]


def test_no_image_at_all() -> None:
    empty = np.empty((0, 4), np.uint16)
    tables = tabulate(empty, empty.astype(bool), np.empty(0, np.int64), len(PLACES))
    assert not tables.crops.any() and not tables.classes
