"""Progress where there is no terminal: a line every ten seconds, the end once."""

from __future__ import annotations

import pytest

from ferkd.cli import console


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_lines_rate_and_time_left_by_hand(clock, capsys):
    """Resumed at 40 of 100, then 20 in 10 s: the 40 that remain take 20 s."""
    meter = console.Meter("work", None)
    meter(40, 100, "things")
    clock[0] += 5
    meter(50, 100, "things")  # too early for a line
    clock[0] += 5
    meter(60, 100, "things")
    assert capsys.readouterr().err.splitlines() == [
        "work: 40/100 things",
        "work: 60/100 things, 20 s left",
    ]


def test_the_end_is_said_once(clock, capsys):
    meter = console.Meter("work", None)
    for done in (0, 7, 7, 7):
        meter(done, 7)
    assert capsys.readouterr().err.splitlines() == ["work: 0/7", "work: 7/7"]


def test_a_bar_may_be_shown_before_anything_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.meter("work"):
        pass
    with console.meter("work") as advance:
        advance(2.6, 7, "things")
    assert "3/7 things" in capsys.readouterr().err
