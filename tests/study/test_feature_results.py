"""The scripts behind the evidence on stored features, and the tables that they fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_evidence import script

from ferkd.labelling.run import label
from ferkd.store import LabelStore
from ferkd.training.probe import fit

TEACHER = "timm/test_resnet?random=0&image_size=32"


@pytest.fixture
def signals(tiny_images, tmp_path):
    photos = tiny_images({"a": 12, "b": 10, "c": 8})
    label(photos, TEACHER, tmp_path / "signals", kind="features", crops=3, workers=1)
    return tmp_path / "signals"


def test_the_labels_of_a_probe_are_its_answers_to_the_stored_features(signals, capsys):
    before = LabelStore(signals)
    first = torch.from_numpy(before.features(np.arange(30), 0))
    weight, bias, _ = fit(first, torch.from_numpy(before.truth(np.arange(30))), 3)
    script("probe_labels").main(str(signals))
    store = LabelStore(signals)
    rows, crops = np.array([0, 13, 29]), np.array([2, 0, 1])
    expected = (torch.from_numpy(store.features(rows, crops)) @ weight.T + bias).softmax(1)
    assert torch.allclose(store.labels(rows, crops).dense(), expected, atol=2e-3)
    assert "of 90 crops" in capsys.readouterr().out
    assert store.class_names == ("a", "b", "c")
    assert (store.boxes(rows, crops) == before.boxes(rows, crops)).all()


def test_unknown_crops_are_counted_on_both_sides(signals, capsys):
    script("probe_labels").main(str(signals))
    capsys.readouterr()
    unknown = script("unknown_crops")
    unknown.main(str(signals), 0.0)
    assert "0 of 90 crops discarded (0.0%)" in capsys.readouterr().out
    labels = LabelStore(signals).labels(np.arange(30)[:, None], np.arange(3))
    scores = labels.dense().amax(1).view(30, 3)
    middle = float(scores.median()) + 1e-4
    unknown.main(str(signals), middle)
    said = capsys.readouterr().out
    below = scores < middle
    count = int(below[~below.all(1)].sum())  # an image whose crops all lie below keeps them
    assert f"{count} of 90 crops discarded" in said and 0 < count < 45
    assert all(line.endswith(f"of {count}") for line in said.splitlines()[1:])


def test_a_table_of_shares_by_hand():
    """55 ± 7.1 and 65 ± 7.1 %; +20 and 0 points: 10 ± 12.706 x 14.142 / sqrt 2."""
    tables, embeddings = script("tables"), script("embeddings")

    def of(*shares):
        return embeddings.row(
            {str(seed): {"knn_top1": x, "probe_top1": x} for seed, x in enumerate(shares)}
        )

    rows = {"teacher": of(0.9), "one": of(0.5, 0.6), "two": of(0.7, 0.6)}
    lines = tables._shares(rows, ["teacher", "one", "two"], "one", ["knn_top1"])
    assert lines[0] == "| network | seeds | nearest neighbours, % | against one, points |"
    assert lines[2] == "| teacher | 1 | 90.0 | +40.0 |"
    assert lines[3] == "| one | 2 | 55.0 ± 7.1 | – |"
    assert lines[4].startswith("| two | 2 | 65.0 ± 7.1 | +10.0 [-117.1, +137.1] |")
