"""Progress: a line every ten seconds where there is no terminal, the end once; the time left."""

from __future__ import annotations

import io
import re
import sys

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


def test_only_whole_things_are_counted(clock, capsys):
    """Nine tenths of the first of three runs are no run."""
    console.Meter("students", None)(0.9, 3, "runs, hard-0 at 90 %")
    assert capsys.readouterr().err == "students: 0/3 runs, hard-0 at 90 %\n"


def test_time_left_follows_the_later_half(clock, capsys):
    """10 a second for 10 s, then 1 a second for 10 s: 50 more take 50 s, not 9."""
    meter = console.Meter("work", None)
    for done in (*range(0, 101, 10), *range(101, 111)):
        meter(done, 160)
        clock[0] += 1
    assert capsys.readouterr().err.splitlines()[-1] == "work: 110/160, 50 s left"


def test_time_left_runs_down_between_two_updates_of_a_bar(clock):
    """Updates 40 s apart: 10 of 30 in 40 s, so 80 s are left; 15 s later 65 s are."""
    pace = console._Pace()
    assert pace.left(clock[0]) is None
    pace.update(0, 30, 100.0)
    assert pace.left(120.0) is None
    pace.update(10, 30, 140.0)
    assert [pace.left(now) for now in (140.0, 155.0, 300.0)] == [80, 65, 0]
    pace.update(30, 30, 220.0)
    assert pace.left(220.0) is None


def test_other_work_has_a_pace_of_its_own(clock, capsys):
    """100 images at 10 a second, then 3 of 10 steps at 1 in 10 s: 70 s, whatever came before."""
    meter = console.Meter("work", None)
    for done in range(0, 101, 10):
        meter(done, 100, "images")
        clock[0] += 1
    for done in range(4):
        meter(done, 10, "steps")
        clock[0] += 10
    assert capsys.readouterr().err.splitlines()[-1] == "work: 3/10 steps, 70 s left"


def test_a_bar_shows_the_time_left(clock, monkeypatch, capsys):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.meter("work") as advance:
        advance(0, 30, "things")
        clock[0] += 40
        advance(10, 30, "things")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)  # without colours
    assert "10/30 things 0:01:20" in shown


def test_a_bar_may_be_shown_before_anything_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.meter("work"):
        pass
    with console.meter("work") as advance:
        advance(2.6, 7, "things")
    assert "2/7 things" in capsys.readouterr().err


def test_a_line_is_one_write(monkeypatch):
    """A log of another thread may come between two writes, and would share the line."""
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    console.say("labels are right")
    assert written == ["labels are right\n"]
