"""The metrics file: complete lines, each step once, also after a kill."""

from __future__ import annotations

import sys

import pytest

from ferkd.system.errors import InputError
from ferkd.training.metrics import MetricsLog, read_metrics


def line(step, **figures):
    return {"kind": "train", "step": step, **figures}


def test_lines_are_written_and_read(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as metrics:
        metrics.write(line(1, loss=0.5))
        assert read_metrics(tmp_path / "m.jsonl") == [line(1, loss=0.5)]  # at once


def test_a_continued_run_lists_no_step_twice(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as metrics:
        for step in (10, 20, 30):
            metrics.write(line(step))
    with MetricsLog(path, keep=20) as metrics:
        metrics.write(line(30, loss=1.0))
    assert read_metrics(path) == [line(10), line(20), line(30, loss=1.0)]


def test_a_run_started_anew_keeps_nothing(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write(line(10))
    with MetricsLog(path):
        pass
    assert read_metrics(path) == []


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    with MetricsLog(path, keep=5) as metrics:
        metrics.write(line(2))
    assert read_metrics(path) == [line(1), line(2)]


def test_tensorboard_gets_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "tensorboard"
    with MetricsLog(tmp_path / "m.jsonl", tensorboard=board) as metrics:
        metrics.write(line(5, loss=0.25))
    events = EventAccumulator(str(board))
    events.Reload()
    (event,) = events.Scalars("train/loss")
    assert (event.step, event.value) == (5, 0.25)


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r'pip install "ferkd\[tensorboard\]"'):
        MetricsLog(tmp_path / "m.jsonl", tensorboard=tmp_path / "tensorboard")
    assert not (tmp_path / "m.jsonl").exists()
