"""How much of an object a crop shows, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ferkd.crops import object_share


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ((0, 0, 100, 100), 1.0),  # the object whole
        ((10, 20, 40, 20), 1.0),  # exactly the object
        ((50, 0, 50, 100), 0.0),  # touches it from below
        ((0, 0, 100, 20), 0.0),  # touches it from the left
        ((10, 30, 40, 70), 0.5),  # its right half
        ((0, 0, 20, 100), 0.25),  # 10 of its 40 rows
        ((20, 25, 8, 5), 0.05),  # 40 of its 800 pixels: a crop inside the object
        ((0, 0, 20, 30), 0.125),  # a corner: 10 x 10 of 800
    ],
)
def test_shares_by_hand(crop: tuple[int, int, int, int], expected: float) -> None:
    assert object_share(crop, (10, 20, 40, 20)) == pytest.approx(expected)


def test_shares_broadcast_and_an_object_without_area_has_none() -> None:
    crops = np.array([[[0, 0, 10, 10], [0, 0, 5, 10]], [[0, 0, 10, 10], [8, 8, 2, 2]]])
    objects = np.array([[[0, 0, 10, 10]], [[0, 0, 10, 5]]])
    assert object_share(crops, objects).tolist() == [[1.0, 0.5], [1.0, 0.0]]
    assert math.isnan(object_share((0, 0, 5, 5), (0, 0, 0, 5)))
