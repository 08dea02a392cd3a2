"""Cores that others kept busy, by hand from what the system counts."""

from __future__ import annotations

import os

import pytest

from ferkd.system import company


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose counters are set by hand: ``set(wall, own, user, system, steal)``."""
    stat, now = tmp_path / "stat", {"wall": 0.0, "own": (0.0, 0.0, 0.0, 0.0, 0.0)}
    monkeypatch.setattr(company, "_STAT", stat)
    monkeypatch.setattr(company.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(company.os, "times", lambda: now["own"])

    def set_to(wall: float, own: tuple[float, ...], user: float, system: float, steal: float):
        ticks = os.sysconf("SC_CLK_TCK")
        counted = [round(s * ticks) for s in (user, 0, system, 1e6, 1e5, 0, 0, steal)]
        stat.write_text(f"cpu  {' '.join(map(str, counted))} 0 0\ncpu0 1 2 3\n")
        now["wall"], now["own"] = wall, own

    return set_to


def test_the_share_of_others_by_hand(machine):
    """In 10 s all cores worked 14 s and 2 s were taken away; 9 s were ours, 1 of them a child's:
    7 s are of others, 0.7 cores."""
    machine(100, (5, 1, 0, 0, 0), 1000, 100, 0)
    watch = company.Company()
    machine(110, (12, 2, 0.5, 0.5, 0), 1012, 102, 2)
    assert watch.others() == pytest.approx(0.7)


def test_our_own_work_is_no_company(machine):
    machine(0, (0, 0, 0, 0, 0), 0, 0, 0)
    watch = company.Company()
    machine(10, (19.9, 0, 0, 0, 0), 19.8, 0, 0)  # counters round apart
    assert watch.others() == 0


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(company, "_STAT", tmp_path / "absent")
    assert company.Company().others() is None
