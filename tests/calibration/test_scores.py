"""Thresholds of very large stores are found from a sample of their images."""

from __future__ import annotations

import numpy as np
import pytest
from stores import write_store

from ferkd.calibration import scores
from ferkd.calibration.regions import Regions, mine, sampled_thresholds
from ferkd.calibration.scores import sample_rows, scores_of
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

IDS = tuple(f"{i:03}.jpg" for i in range(60))


@pytest.fixture
def store(tmp_path) -> LabelStore:
    return write_store(tmp_path / "s", ids=IDS, crops=4)


def test_a_sample_takes_one_image_of_each_stretch(monkeypatch):
    assert sample_rows(1 << 20, 128) is None and sample_rows((1 << 20) + 1, 128) is not None
    monkeypatch.setattr(scores, "ALL_UP_TO", 100)
    monkeypatch.setattr(scores, "SAMPLED", 40)
    rows = sample_rows(1000, 4)  # 10 images of 4 crops
    assert rows is not None and (rows // 100 == np.arange(10)).all()
    assert (rows == sample_rows(1000, 4)).all()


@pytest.mark.parametrize("calibration", ["steps", "blend"])
def test_a_sampled_store_is_divided_by_the_sample_s_thresholds(store, monkeypatch, calibration):
    settings = Regions(thresholds="reliable", calibration=calibration)
    whole = mine(store, settings)
    monkeypatch.setattr(scores, "ALL_UP_TO", 239)  # the store has 240 crops
    every = mine(store, settings)  # a sample that is all of them
    assert every.thresholds == whole.thresholds and every.sampled == 60
    assert (every.regions == whole.regions).all() and every.shares == whole.shares
    assert every.without_target == whole.without_target == 20
    if calibration == "blend":
        assert (every.weights == whole.weights).all()
    monkeypatch.setattr(scores, "SAMPLED", 80)
    rows = sample_rows(60, 4)
    found = mine(store, settings)
    assert rows is not None and found.sampled == len(rows) == 20
    assert "thresholds from 20 of the 60 images" in found.describe()
    if calibration == "steps":
        assert found.thresholds == sampled_thresholds(store, settings, rows)[0]


def test_scores_of_some_images_are_those_of_all(store):
    rows = np.array([3, 17, 40])
    some, right = scores_of(store, sample=rows)
    every, all_right = scores_of(store)
    assert (some == every[rows]).all() and (right == all_right[rows]).all()


def test_fixed_thresholds_are_no_rule_to_sample_for(store):
    with pytest.raises(InputError, match="give a rule"):
        sampled_thresholds(store, Regions(thresholds=(0.1, 0.2, 0.9)), np.arange(3))
