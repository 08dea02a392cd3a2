"""Stored labels: their kinds, the stores that fit a method, and the objectives that use them."""

from __future__ import annotations

import pytest
import torch
from runs import TEACHER, changed

from ferkd.calibration.temperature import fit_temperature
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


def test_a_renormalised_label_is_a_distribution_in_itself():
    """Stored .5 .3 .1 of a sum of .9; the truth is a stored class, or one that the tail holds."""
    p = torch.tensor([[0.3, 0.5, 0.04, 0.1, 0.06]]).repeat(2, 1)
    targets = torch.tensor([0, 2])
    labels = as_kind(SoftLabels.from_logits(p.log(), targets, k=3), "renorm")
    assert labels.log_probs.exp().tolist()[0] == pytest.approx([0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9])
    assert labels.max_prob().tolist() == pytest.approx([0.5 / 0.9] * 2)
    assert labels.prob_of(targets)[0].item() == pytest.approx(0.3 / 0.9)
    assert labels.true_log_prob.exp()[0].item() == pytest.approx(0.3 / 0.9)


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


# The labels' temperature and the truth's share


def shown_and_stored(recipe):
    """The labels of a run's first step as trained on, the same as stored, and the truth."""
    trainer, data, _ = build_trainer(recipe)
    seen, ours = [], trainer.objective
    trainer.objective = lambda logits, view: seen.append(view) or ours(logits, view)
    next(trainer.run())
    rows, crops = seen[0].rows.numpy(), seen[0].crops.numpy()
    return seen[0].labels, data.store.labels(rows, crops), seen[0].targets


@pytest.mark.parametrize("method", ["fkd", "ssld", "meal_v2", "ferkd"])
def test_labels_are_tempered_and_shared_with_the_truth(settings, store, method):
    """At T = 2 with a quarter of truth: 3/4 softmax(z / 2) + 1/4 onehot, where there is a truth."""
    recipe = changed(
        settings,
        method,
        store,
        loss={"label_temperature": 2.0, "truth_share": 0.25},
        regions={"thresholds": "none"},
    )
    shown, stored, truth = shown_and_stored(recipe)
    known = truth >= 0
    expected = stored.tempered(2.0).dense()
    hard = torch.nn.functional.one_hot(truth.clamp_min(0), 3).float()
    expected[known] = 0.75 * expected[known] + 0.25 * hard[known]
    assert torch.allclose(shown.dense(), expected, atol=1e-5)
    assert not torch.allclose(shown.dense(), stored.dense(), atol=1e-2)


def test_all_truth_is_the_hard_label_of_the_same_crops(settings, store):
    recipe = changed(settings, "fkd", store, loss={"truth_share": 1.0})
    shown, _, truth = shown_and_stored(recipe)
    assert torch.allclose(shown.dense(), torch.nn.functional.one_hot(truth, 3).float(), atol=1e-6)


def test_a_fitted_temperature_is_that_of_the_store_and_kept_in_the_result(
    settings, photos, tmp_path
):
    label(photos, TEACHER + "&image_size=32", tmp_path / "all", crops=5, top_k=None, workers=1)
    fitted = fit_temperature(LabelStore.open(tmp_path / "all"))
    loss = {"label_temperature": "fit"}
    recipe = changed(settings, "fkd", lambda method: str(tmp_path / "all"), loss=loss)
    shown, stored, _ = shown_and_stored(recipe)
    assert torch.allclose(shown.dense(), stored.tempered(fitted.value).dense(), atol=1e-6)
    assert train(recipe, tmp_path / "run")["label_temperature"]["value"] == fitted.value


@pytest.mark.parametrize("wanted", [0.5, 3.0])
def test_a_temperature_that_the_record_does_not_support_is_refused(settings, store, wanted):
    recipe = changed(settings, "fkd", store, loss={"label_temperature": wanted})
    with pytest.raises(InputError, match=r"label_temperature .* is not exact for labels of"):
        build_trainer(recipe)
