"""The step's benchmark: all methods train one student on one set of images."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from ferkd.images import open_images
from ferkd.study.bench import step as bench
from ferkd.study.bench.made_up import write_labels
from ferkd.study.bench.step import (
    CACHED,
    FERKD,
    FKD,
    HARD,
    LIVE,
    RESIDENT,
    Setting,
    bench_step,
    forward_seconds,
    parts_of_step,
    resident,
)
from ferkd.system.errors import InputError

SETTING = Setting(
    student="timm/test_resnet",
    teacher="timm/test_vit?random=0",
    image_size=32,
    batch_size=8,
    workers=0,
    device="cpu",
)


@pytest.fixture
def labelled(tiny_images, tmp_path):
    images = tiny_images({name: 2 for name in "abcdefgh"})
    return images, write_labels(tmp_path / "store", open_images(images), 6)


def test_it_reports_all_methods_and_targets(tiny_images):
    setting = Setting(**{**vars(SETTING), "teacher": "timm/test_resnet?random=0"})
    images = tiny_images({"a": 4, "b": 4})
    result = bench_step(
        images, setting=setting, classes=7, stored_crops=6, cached=True, steps=1, repeats=1
    )
    json.dumps(result, allow_nan=False)
    per = {n: s["median"] for n, s in result["details"]["seconds_per_10000_crops"].items()}
    assert {HARD, LIVE, FKD, FERKD, CACHED, RESIDENT} < set(per)
    assert result["value"] == per[FERKD] and result["ratios"][LIVE] == per[LIVE] / per[FERKD]
    targets = result["targets"]
    assert targets["ferkd / kd, time"]["measured"] == per[FERKD] / per[LIVE]
    assert targets["ferkd / hard, time"]["target"] == 0.85
    share = sum(result["details"]["seconds_of_parts"].values()) / (per[FERKD] * 8 / 10_000)
    assert targets["share of regions, mixing and objective"]["measured"] == pytest.approx(share)
    assert result["details"]["images"] == 8 and result["details"]["classes"] == 7


def test_methods_differ_only_where_they_must(labelled):
    images, store = labelled
    recipes = {m: SETTING.recipe(m, images, store) for m in (HARD, LIVE, FKD, FERKD)}
    assert [r["data"]["crops_per_image"] for r in recipes.values()] == [1, 4, 4, 4]
    assert recipes[LIVE]["teacher"] == "timm/test_vit?random=0&num_classes=8"
    assert len({json.dumps(r["student"]) for r in recipes.values()}) == 1
    low, middle, top = recipes[FERKD]["regions"]["thresholds"]
    assert 0 < low < middle < top < 1
    assert recipes[FERKD]["mix"] == {"kind": "selfmix", "operator": "mixup"}
    assert "mix" not in recipes[FKD] and "regions" not in recipes[FKD]


def test_resident_data_are_one_batch_for_ever(labelled):
    images, store = labelled
    trainer = resident(SETTING.recipe(FERKD, images, store))
    first, second = islice(trainer.loader.batches(0, 5), 2)
    assert first is second and len(first) == 8
    assert len(list(trainer.loader.batches(2, 5))) == 3
    assert [*islice(trainer.run(), 2)] == [1, 2]


def test_a_stretch_counts_the_steps_after_the_waits(labelled, monkeypatch):
    images, store = labelled
    trainer = bench._built(SETTING.recipe(FKD, images, store))[0]
    measure = bench._stretch(trainer, steps=3, waits=2)
    monkeypatch.setattr(bench, "seconds_of", lambda some, device: some() or 6.0)
    assert measure(0) == pytest.approx(6 / 24 * 10_000)  # 3 steps of 8 crops
    assert trainer.step == 5
    measure(1)
    assert trainer.step == 10


def test_the_parts_leave_the_trainer_as_it_was(labelled):
    images, store = labelled
    trainer, data = bench._built(SETTING.recipe(FERKD, images, store))
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    parts = parts_of_step(trainer, data, repeats=1)
    assert list(parts) == ["regions", "mixing", "objective"] and min(parts.values()) > 0
    assert all(torch.equal(v, weights[k]) for k, v in trainer.model.state_dict().items())


def test_forward_passes_are_timed_in_evaluation_mode(labelled):
    images, store = labelled
    trainer = bench._built(SETTING.recipe(FKD, images, store))[0]
    seen = []
    trainer.model.register_forward_hook(
        lambda module, inputs, out: seen.append((module.training, tuple(inputs[0].shape)))
    )
    found = forward_seconds({"student": trainer.model}, trainer, (2, 3, 32, 32), repeats=1)
    assert found["student"] > 0 and set(seen) == {(False, (2, 3, 32, 32))}


def test_wrong_counts_are_refused(tmp_path):
    for wrong in ({"classes": 5}, {"steps": 0}, {"repeats": 0}, {"stored_crops": 0}):
        with pytest.raises(InputError, match="at least"):
            bench_step(**wrong)
    with pytest.raises(InputError, match="not a local folder"):
        bench_step(tmp_path / "nowhere")
