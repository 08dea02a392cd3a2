"""Stored labels: their kinds, the stores that fit a method, and the objectives that use them."""

from __future__ import annotations

import pytest
import torch
from runs import TEACHER, changed

from ferkd.labelling.run import label
from ferkd.loading import map_crops
from ferkd.methods.stored import as_kind
from ferkd.store import LabelStore, SoftLabels
from ferkd.system.errors import InputError
from ferkd.training import train
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer

# Kinds of label


def test_label_kinds_by_hand():
    """Probabilities .5 .3 .1 .06 .04; three are stored, so the tail holds .1 for two classes."""
    p = torch.tensor([[0.3, 0.5, 0.04, 0.1, 0.06]])
    labels = SoftLabels.from_logits(p.log(), k=3)
    expected = {
        "soft": [0.3, 0.5, 0.05, 0.1, 0.05],
        "hard": [0.0, 1.0, 0.0, 0.0, 0.0],
        "smoothing": [0.125, 0.5, 0.125, 0.125, 0.125],
        "renorm": [0.3 / 0.9, 0.5 / 0.9, 0.0, 0.1 / 0.9, 0.0],
    }
    for kind, values in expected.items():
        assert torch.allclose(as_kind(labels, kind).dense(), torch.tensor([values]), atol=1e-6)


def test_the_slot_of_the_truth_is_not_part_of_a_renormalised_label():
    p = torch.tensor([[0.3, 0.5, 0.04, 0.1, 0.06]])
    labels = SoftLabels.from_logits(p.log(), torch.tensor([2]), k=2).with_truth(torch.tensor([2]))
    expected = torch.tensor([[0.375, 0.625, 0.0, 0.0, 0.0]])
    assert torch.allclose(as_kind(labels, "renorm").dense(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard", "smoothing", "renorm"])
def test_mixed_labels_are_turned_half_by_half(kind):
    a, b = (SoftLabels.from_logits(torch.randn(4, 6) * 3, k=3) for _ in range(2))
    share = torch.tensor([0.2, 0.5, 0.9, 1.0])
    expected = (
        share[:, None] * as_kind(a, kind).dense() + (1 - share)[:, None] * as_kind(b, kind).dense()
    )
    assert torch.allclose(as_kind(a.mixed(b, share), kind).dense(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "smoothing", "renorm"])
def test_the_label_kind_is_read_by_fkd_alone(settings, store, kind):
    path = store("fkd")
    for method in ("fkd", "meal_v2", "ssld", "ferkd"):
        recipe = changed(settings, method, lambda _: path, loss={"label_kind": kind})
        found = build_trainer(recipe)[0].objective
        assert found.kind == (kind if method == "fkd" else "soft"), method


# Stores


def test_a_method_and_the_kind_of_its_store_must_fit(settings, store):
    with pytest.raises(InputError, match="holds the labels of crops, but method relabel needs"):
        build_trainer(changed(settings, "relabel", lambda method: store("fkd")))


def test_label_maps_are_no_labels_of_crops(settings, store):
    with pytest.raises(InputError, match="holds label maps, but method fkd needs"):
        build_trainer(changed(settings, "fkd", lambda method: store("relabel")))


def test_labels_of_an_ensemble_are_the_mean_of_their_probabilities(store):
    members = LabelStore.open(store("meal_v2")).settings.teacher["members"]
    assert [member["weight"] for member in members] == [0.5, 0.5]


# Objectives


@pytest.mark.parametrize("method", ["kd", "fkd"])
@pytest.mark.parametrize("name", ["soft_ce", "dkd", "nkd", "dist", "bce", "pld", "lskd", "ofa"])
def test_any_objective_trains_from_a_live_teacher_and_from_a_store(
    settings, photos, tmp_path, method, name
):
    label(photos, f"{TEACHER}&image_size=32", tmp_path / "labels", crops=2, workers=1)
    data = {**settings["data"], "store": str(tmp_path / "labels")}
    loss = {"objective": name}
    recipe = make_recipe({**settings, "method": method, "data": data, "loss": loss,
                          "mix": {"kind": "mixup"}})  # fmt: skip
    trainer, _, _ = build_trainer(recipe)
    for step in trainer.run():
        assert torch.isfinite(torch.tensor(trainer.mean_loss()))
        if step == 2:
            break


def test_an_objective_that_cannot_use_the_labels_is_refused_before_anything_is_written(
    settings, store, tmp_path
):
    """A top-k label does not tell its tail at temperatures below 1."""
    options = {"objective": "kl", "options": {"temperature": 0.5}}
    recipe = changed(settings, "fkd", store, loss=options)
    with pytest.raises(InputError, match="use a temperature of 1 or more, or store all classes"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_objectives_that_need_the_truth_are_refused_where_images_have_none(settings, store):
    recipe = changed(settings, "ssld", store, loss={"objective": "dkd"})
    with pytest.raises(InputError, match="dkd needs the true class of every image, which 10 of 10"):
        build_trainer(recipe)
    assert build_trainer(changed(settings, "ssld", lambda _: recipe.data.store))


@pytest.mark.parametrize(
    "loss",
    [{"objective": "lskd"}, {"objective": "kl", "options": {"temperature": 0.5}}],
    ids=["lskd", "kl"],
)
def test_pooled_labels_are_tried_before_the_run(settings, tiny_images, tmp_path, monkeypatch, loss):
    """2 of 5 classes kept stand for the 16 of more than 32."""
    photos = str(tiny_images({name: 2 for name in "abcde"}))
    teacher = TEACHER.replace("num_classes=3", "num_classes=5")
    label(photos, f"{teacher}&image_size=32", tmp_path / "maps", kind="map", top_k=5, workers=1)
    data = {**settings["data"], "images": photos, "val": photos, "store": str(tmp_path / "maps")}
    recipe = make_recipe({**settings, "method": "relabel", "data": data, "loss": loss})
    assert build_trainer(recipe)
    monkeypatch.setattr(map_crops, "_ALL_UP_TO", 2)
    monkeypatch.setattr(map_crops, "_KEPT", 2)
    said = rf"(?s){loss['objective']} cannot use .* keeps the 2 most probable of 5 .*method kd"
    with pytest.raises(InputError, match=said):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
