"""Suspicious labels: ranked, planted errors found, names safe in a spreadsheet."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from blots import colours, write_blots
from stores import write_store

from ferkd.labelling.run import label
from ferkd.store import LabelStore
from ferkd.study.inspection import inspect, write_suspicious
from ferkd.study.suspicious import COLUMNS, judge, mean_probabilities, write_csv


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelStore, set[str]]:
    root = tmp_path_factory.mktemp("planted")
    wrong = write_blots(root / "images", ("red", "green", "blue"), 30, 6)
    return label(root / "images", colours(3), root / "labels", crops=10, workers=1), wrong


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_planted_errors_come_first(planted) -> None:
    store, wrong = planted
    judged = judge(store)
    first = {store.ids[row] for row in judged.ranked()[: len(wrong)].tolist()}
    assert len(first & wrong) / len(wrong) >= 0.8
    assert len(judged.ranked()) == len(store)
    said = inspect(store)["suspicious"]
    assert said[0]["id"] in wrong and said[0]["suspicion"] > 0
    assert [s["suspicion"] for s in said] == sorted((s["suspicion"] for s in said), reverse=True)


def test_evidence_is_the_weighted_mean_of_the_crops(planted) -> None:
    """By hand: equal weights are the plain mean, and one weight is that crop alone."""
    store, _ = planted
    rows, crops = np.arange(len(store)), np.arange(10)
    dense = store.labels(rows[:, None], crops).dense().numpy().reshape(len(store), 10, 3)
    even = np.full((len(store), 10), 77, np.uint8)
    assert mean_probabilities(store, even) == pytest.approx(dense.mean(1), abs=1e-5)
    one = np.zeros((len(store), 10), np.uint8)
    one[:, 4] = 1
    assert mean_probabilities(store, one) == pytest.approx(dense[:, 4], abs=1e-5)
    none = mean_probabilities(store, np.zeros_like(one))  # no crop is reliable: all alike
    assert none == pytest.approx(dense.mean(1), abs=1e-5)


def test_images_without_ground_truth_are_no_suspects(tmp_path: Path) -> None:
    store = write_store(tmp_path / "labels")  # every third has none
    judged = judge(store)
    assert set(judged.ranked().tolist()) == set(np.flatnonzero(store.targets >= 0).tolist())
    assert np.isnan(judged.p_given[store.targets < 0]).all()
    assert not judged.denied[store.targets < 0].any()
    assert (judged.other[store.targets >= 0] != store.targets[store.targets >= 0]).all()


def test_the_csv_holds_all_that_is_denied_and_no_formula(tmp_path: Path) -> None:
    entry = {
        **{"row": 7, "suspicion": 0.75, "mean_probability": 0.8, "probability_of_label": 0.05},
        "crops_that_say_so": 1.0,
    }
    names = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", 'quo"te, comma', "line\nend", "plain")
    entries = [entry | {"id": n, "labelled": n, "teacher_says": "x"} for n in names]
    write_csv(tmp_path / "out.csv", entries)
    rows = read(tmp_path / "out.csv")
    assert rows[0] == list(COLUMNS)
    assert [row[2] for row in rows[1:]] == [
        *("'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\\t=1", 'quo"te, comma', "line\\nend", "plain")
    ]
    assert [row[3] for row in rows[1:]] == [row[2] for row in rows[1:]]
    assert rows[1][:2] == ["1", "7"] and rows[1][5:] == ["0.7500", "0.8000", "0.0500", "1.0000"]


def test_the_command_writes_the_csv(planted, tmp_path: Path, command_line) -> None:
    store, _ = planted
    out = tmp_path / "new" / "out.csv"
    status, said, _ = command_line("inspect", store.path, "--suspicious", out, "--json")
    assert status == 0 and json.loads(said)["suspicious_csv"] == str(out)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in read(out)[1:]]
    assert len(rows) == json.loads(said)["denied"] == write_suspicious(store, tmp_path / "b.csv")
    assert store.ids[int(rows[0]["row"])] == rows[0]["id"]
    status, _, said = command_line("inspect", store.path, "--suspicious", out)
    assert status == 2 and "--overwrite" in said


def test_ranking_beside_cleanlab_on_the_same_probabilities(planted) -> None:
    rank = pytest.importorskip("cleanlab.rank", reason="needs cleanlab (ferkd[cleanlab])")
    store, wrong = planted
    even = np.full((len(store), 10), 255, np.uint8)
    quality = rank.get_label_quality_scores(
        store.targets, mean_probabilities(store, even).astype(np.float64), method="self_confidence"
    )
    theirs = {store.ids[row] for row in np.argsort(quality)[: len(wrong)].tolist()}
    assert len(theirs & wrong) / len(wrong) >= 0.8
