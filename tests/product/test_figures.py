"""Figures of delivered models: what two of them differ by, image by image."""

from __future__ import annotations

import numpy as np
import pytest

from ferkd.product.figures import Figures, compared
from ferkd.product.result import seeds_of, told


def figures(right: dict[str, bool]) -> Figures:
    return Figures(0.5, 1.0, 0.1, (0.5,), np.zeros((1, 1), np.int64), (), (), right)


def test_two_models_are_compared_on_the_images_of_both() -> None:
    """By hand: differences 1, 1, 0, -1 of four images: mean 25 points, sample deviation of 100 x
    (1, 1, 0, -1) 95.743; half a width t(0.975, 3) 3.18245 x 95.743 / 2 = 152.35."""
    ours = figures({"a": True, "b": True, "c": True, "d": False, "only ours": True})
    theirs = figures({"a": False, "b": False, "c": True, "d": True, "only theirs": False})
    found = compared(ours, theirs)
    assert found is not None and found.images == 4
    assert found.points == pytest.approx(25.0)
    assert found.low == pytest.approx(25 - 152.35, abs=0.01)
    assert found.high == pytest.approx(25 + 152.35, abs=0.01)
    assert compared(ours, figures({"a": True})) is None


def test_what_the_interval_says_is_said() -> None:
    unsure = {"points": -1.37, "low": -3.96, "high": 1.22, "images": 1729}
    assert told(unsure) == "-1.4 points [-4.0, +1.2] on 1,729 images: not told apart"
    sure = {**unsure, "high": -0.4}
    assert told(sure) == "-1.4 points [-4.0, -0.4] on 1,729 images"
    several = seeds_of({"top1": 0.5, "seeds": [0.4, 0.5, 0.6]})
    assert told(sure, several) == f"{told(sure)}, the first of 3 seeds"
    assert seeds_of({"top1": 0.5}) == 1
