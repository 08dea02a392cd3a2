"""The temperature at which labels are likeliest for the truth, and labels at another one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stores import write_store

from ferkd.calibration.temperature import fit, fit_temperature
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError


def drawn(temperature, k, images=400):
    """Labels of 5 classes, two crops an image, whose truth is drawn at ``temperature``."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(images, 5, generator=generator)
    truth = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    targets = truth.repeat_interleave(2)
    labels = SoftLabels.from_logits(logits.repeat_interleave(2, 0), targets, k)
    return labels, targets, torch.arange(images).repeat_interleave(2), logits, truth


def test_by_hand():
    """Two classes, z = (1, 0), and the truth is the first in 3 of 4 crops: 1 / T = ln 3."""
    targets = torch.tensor([0, 0, 0, 1])
    labels = SoftLabels.from_logits(torch.tensor([[1.0, 0.0]]).repeat(4, 1), targets, 2)
    fitted = fit(labels, targets, torch.arange(4))
    assert fitted.value == pytest.approx(1 / math.log(3), rel=1e-6)
    assert fitted.nll == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert fitted.nll_at_1 == pytest.approx(math.log(1 + math.e) - 0.75)
    # Slopes 3/4 - y are 1/4 off for three crops and 3/4 for one: their squares sum to 3/4; the
    # curvature is 4 x 3/16, so the deviation of 1 / T is sqrt(3/4) / (3/4).
    deviation = math.sqrt(0.75) / 0.75
    assert 1 / fitted.low == pytest.approx(math.log(3) + 1.96 * deviation, rel=1e-4)
    # Were all of one image, the slopes would cancel.
    assert fit(labels, targets, torch.zeros(4, dtype=torch.int64)).low == pytest.approx(
        fitted.value, rel=1e-4
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_truth_was_drawn_at_is_found(temperature):
    labels, targets, images, logits, truth = drawn(temperature, None)
    fitted = fit(labels, targets, images)
    assert fitted.low < temperature < fitted.high
    assert (fitted.crops, fitted.images) == (800, 400)

    def nll(t):
        return float(torch.nn.functional.cross_entropy(logits / t, truth))

    assert fitted.nll == pytest.approx(nll(fitted.value), abs=1e-5)
    assert fitted.nll_at_1 == pytest.approx(nll(1.0), abs=1e-5)
    assert nll(fitted.value) < min(nll(0.97 * fitted.value), nll(1.03 * fitted.value))


def test_labels_of_some_classes_are_fitted_from_1_up():
    """The tail of two classes is a cubic in 1 / T; below 1 it is not known."""
    whole = fit(*drawn(2.0, None)[:3])
    some = fit(*drawn(2.0, 2)[:3])
    assert some.value == pytest.approx(whole.value, rel=0.02)
    assert some.nll == pytest.approx(whole.nll, rel=0.01)
    labels, targets, images, _, _ = drawn(0.5, 2)
    found = fit(labels, targets, images)
    assert found.value == 1.0 and found.nll == found.nll_at_1
    assert labels.tempered(found.value) is labels  # which take no other temperature near 1


def test_a_store_is_fitted_by_the_images_with_ground_truth(tmp_path):
    store = write_store(tmp_path / "s", k=None, values="f32", crops=6)
    rows = np.flatnonzero(store.targets >= 0)
    pairs = np.repeat(rows, 6), np.tile(np.arange(6), len(rows))
    labels, truth = store.labels(*pairs), torch.from_numpy(store.targets[pairs[0]].astype("int64"))
    found = fit_temperature(store)
    assert found == fit(labels, truth, torch.from_numpy(pairs[0]))
    assert (found.crops, found.images) == (6 * len(rows), len(rows))


def test_without_ground_truth_or_a_tail_there_is_none(tmp_path):
    imported = write_store(tmp_path / "mass", k=2, values="f16", tail="mass")
    assert fit_temperature(imported) is None
    assert fit_temperature(write_store(tmp_path / "one", ids=("a/1.jpg",))) is None


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
def test_labels_of_all_classes_take_any_temperature(temperature):
    logits = torch.randn(6, 7) * 3
    labels = SoftLabels.from_logits(logits, torch.arange(6), None).tempered(temperature)
    for further in (1.0, 2.0):
        expected = (logits / (temperature * further)).softmax(1)
        assert torch.allclose(labels.dense(further), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_labels_of_some_classes_are_exact_where_their_tail_is_recorded(temperature):
    """Stored classes, the truth's slot and the tail's mass are those of softmax(z / T)."""
    logits, truth = torch.randn(6, 9) * 3, torch.full((6,), 8)
    labels = SoftLabels.from_logits(logits, truth, 3).with_truth(truth)
    tempered = labels.tempered(temperature)
    p = (logits / temperature).softmax(1)
    kept = torch.isfinite(tempered.log_probs)
    assert torch.allclose(
        tempered.log_probs.exp()[kept], p.gather(1, tempered.classes)[kept], atol=1e-5
    )
    stored = torch.zeros_like(p).scatter_add_(1, tempered.classes, kept.float()) > 0
    assert torch.allclose(tempered.tail[:, 0].exp(), p.masked_fill(stored, 0).sum(1), atol=1e-5)
    assert torch.allclose(tempered.dense().sum(1), torch.ones(6), atol=1e-5)
    if temperature == 2.0:  # and at its own temperature 2 those of softmax(z / 4)
        assert torch.allclose(tempered.dense(2.0), labels.dense(4.0), atol=1e-5)


def test_temperatures_that_a_record_does_not_support_are_refused():
    labels = SoftLabels.from_logits(torch.randn(4, 9), torch.arange(4), 3)
    for temperature in (0.5, 3.0):
        with pytest.raises(InputError, match=r"not exact for labels of some of 9 .* 1, 2, 4; use"):
            labels.tempered(temperature)
    with pytest.raises(InputError, match="must be above 0 and finite"):
        labels.tempered(math.inf)
