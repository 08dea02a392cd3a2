"""Lengths of runs and learning rates, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.training.schedule import Schedule, learning_rate


def test_epochs_count_crops():
    # 3 epochs of 100 images are 300 crops; 300 / 64 = 4.69 steps.
    assert Schedule(epochs=3).total_steps(images=100, batch_size=64) == 5
    assert Schedule(epochs=0.5).total_steps(images=100, batch_size=50) == 1
    assert Schedule(steps=7).total_steps(images=100, batch_size=64) == 7


def test_warmup_as_a_share_and_in_epochs():
    assert Schedule(steps=100, warmup=0.1).warmup_steps(images=10, batch_size=10) == 10
    assert Schedule(steps=100, warmup_epochs=2).warmup_steps(images=30, batch_size=10) == 6
    assert Schedule(steps=3, warmup_epochs=9).warmup_steps(images=30, batch_size=10) == 2


def test_the_curve_by_hand():
    # Warm-up of 3 steps to 0.8, then a cosine over 4 steps from 0.8 to 0.
    rates = [learning_rate(s, total=7, warmup=3, peak=0.8) for s in range(7)]
    # cos(0), cos(45), cos(90), cos(135 degrees)
    cosine = [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, *cosine])


def test_the_floor_is_approached_and_half_way_is_the_middle():
    rates = [learning_rate(s, total=100, warmup=0, peak=1.0, floor=0.2) for s in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)


@given(st.integers(1, 200), st.data())
def test_rates_rise_then_fall_within_bounds(total, data):
    warmup = data.draw(st.integers(0, total - 1))
    rates = [
        learning_rate(s, total=total, warmup=warmup, peak=1.0, floor=0.0) for s in range(total)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[warmup] == 1.0
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_the_side_of_the_crops_follows_the_run():
    schedule = Schedule(steps=10, image_size=((0, 24), (0.25, 32), (0.6, 40)))
    sizes = schedule.sizes(images=100, batch_size=10, image_size=64)
    # 0.25 of 10 steps rounds to step 2, 0.6 is step 6.
    assert [sizes(step) for step in range(10)] == [24] * 2 + [32] * 4 + [40] * 4
    always = Schedule(steps=10).sizes(images=100, batch_size=10, image_size=64)
    assert {always(step) for step in range(10)} == {64}


@pytest.mark.parametrize(
    "wrong",
    [[], [(0.1, 32)], [(0, 32), (0, 48)], [(0, 32), (0.5, 48), (0.4, 56)], [(0, 32), (1, 48)]],
)
def test_shares_that_do_not_cover_the_run_are_refused(wrong):
    with pytest.raises(ValueError, match="must start with 0, rise and stay below 1"):
        Schedule(steps=10, image_size=wrong)
    with pytest.raises(ValueError, match="must be 8 to 4096 pixels"):
        Schedule(steps=10, image_size=[(0, 4)])
