"""Who is shown when: every image once a pass, every crop once a cycle, nothing else matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.crops import random_boxes
from ferkd.loading.order import ImageOrder, draw_crops, permuted


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 9))
def test_every_pass_shows_every_image_once(images, batch, seed):
    order = ImageOrder(images, seed)
    rows, visits = order.at(0, 3 * images)
    for visit in range(3):
        assert sorted(rows[visits == visit]) == list(range(images))
    pieces = [order.at(start, batch)[0] for start in range(0, 3 * images, batch)]
    assert (np.concatenate(pieces)[: 3 * images] == rows).all()
    assert (ImageOrder(images, seed).at(images, images)[0] == rows[images : 2 * images]).all()


def test_passes_and_seeds_differ():
    rows, _ = ImageOrder(50, 0).at(0, 100)
    assert (rows[:50] != rows[50:]).any()
    assert (ImageOrder(50, 1).at(0, 50)[0] != rows[:50]).any()


def history(usable, visits, m, seed=0, image="a/b.jpg"):
    shown = [draw_crops(usable[None], [image], np.array([v]), m, seed)[0] for v in range(visits)]
    return np.concatenate(shown)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 50), st.data())
def test_crops_are_drawn_without_replacement_until_all_are_used(crops, m, seed, data):
    usable = np.zeros(crops, bool)
    usable[data.draw(st.lists(st.integers(0, crops - 1), min_size=1, unique=True))] = True
    n = int(usable.sum())
    shown = history(usable, 4 * n, m, seed)
    assert usable[shown].all()
    for cycle in range(len(shown) // n):
        assert sorted(shown[cycle * n : (cycle + 1) * n]) == list(np.flatnonzero(usable))
    if n >= m:
        assert all(len(set(v)) == m for v in shown.reshape(-1, m))


def test_a_draw_depends_on_seed_visit_and_image_alone():
    usable = np.ones((3, 10), bool)
    usable[1, ::2] = False
    ids, visits = ["a", "b", "c"], np.array([5, 0, 7])
    together = draw_crops(usable, ids, visits, 4, 0)
    for i in range(3):
        alone = draw_crops(usable[i : i + 1], ids[i : i + 1], visits[i : i + 1], 4, 0)
        assert (alone[0] == together[i]).all()
    assert (draw_crops(usable, ids, visits, 4, 1) != together).any()


def test_all_crops_are_equally_likely_in_any_place():
    usable = np.ones((2000, 5), bool)
    first = draw_crops(usable, [str(i) for i in range(2000)], np.full(2000, 3), 2, 0)
    counts = np.bincount(first.ravel(), minlength=5)
    assert abs(counts - 800).max() < 5 * (4000 * 0.2 * 0.8) ** 0.5


def test_which_crop_comes_first_tells_nothing_of_its_box():
    """The order and the boxes are drawn from one seed and id, and must not share a stream."""
    ids = [str(i) for i in range(4000)]
    boxes, _ = random_boxes([300] * 4000, [300] * 4000, crops=50, seed=0, ids=ids)
    areas = boxes[:, 0, 2] * boxes[:, 0, 3] / 300**2
    drawn = draw_crops(np.ones((4000, 50), bool), ids, np.zeros(4000, int), 4, 0)
    first = (drawn == 0).any(axis=1)  # some 320 images show crop 0 at their first visit
    assert abs(areas[first].mean() - areas[~first].mean()) < 0.08  # five standard errors


def test_an_image_without_usable_crops_is_an_error():
    with pytest.raises(ValueError, match="at least one usable crop"):
        draw_crops(np.zeros((1, 3), bool), ["a"], np.zeros(1, int), 1, 0)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 1000, 4099])
def test_a_permutation_place_by_place_is_one_and_looks_random(count):
    places = np.arange(count)
    keys = [np.array([key], np.uint64) for key in (3, 2**63 + 5)]
    one, other = (permuted(places, count, key) for key in keys)
    assert sorted(one) == sorted(other) == list(range(count))
    some = places[:: max(1, count // 7)]
    assert (permuted(some, count, keys[0]) == one[some]).all()  # whatever else is asked for
    if count == 4099:
        # Of a random one, neighbours are no nearer than any two: a third of the count on average.
        for found in (one, other):
            assert abs(np.abs(np.diff(found)).mean() / count - 1 / 3) < 0.02
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


def test_an_order_of_very_many_images_takes_no_memory_and_shows_each_once(monkeypatch):
    monkeypatch.setattr("ferkd.loading.order.LISTED", 99)
    order = ImageOrder(100, 7)
    rows, visits = order.at(0, 200)
    assert sorted(rows[:100]) == sorted(rows[100:]) == list(range(100))
    assert (rows[:100] != rows[100:]).any() and not order._orders
    assert visits.tolist() == [0] * 100 + [1] * 100
    assert (ImageOrder(100, 7).at(37, 5)[0] == rows[37:42]).all()
    far, visit = ImageOrder(10**11, 0).at(3 * 10**11 - 2, 4)  # 100 billion
    assert visit.tolist() == [2, 2, 3, 3] and (far >= 0).all() and (far < 10**11).all()
