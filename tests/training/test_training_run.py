"""Whole runs on tiny photographs: the folder they leave, resuming, refusing."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from runs import data_on, interrupt_at

from ferkd.evaluating.run import evaluate
from ferkd.labelling.run import label
from ferkd.system.errors import InputError
from ferkd.training import NonFiniteLoss, train
from ferkd.training.metrics import read_metrics
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer

STEPS = 6


@pytest.fixture
def photos(tiny_images):
    return tiny_images({"a": 5, "b": 4, "c": 3})


@pytest.fixture
def settings(photos):
    """One-step log and checkpoint intervals, dropout and EMA: the most that can go wrong."""
    return {
        "method": "hard",
        "data": data_on(photos, crops_per_image=2),
        "student": {"name": "timm/test_efficientnet", "model_args": {"drop_rate": 0.5}},
        "schedule": {"steps": STEPS},
        "evaluation": {"every_epochs": 0.67},
        "ema": 0.9,
        "log_steps": 1,
        "checkpoint_seconds": 1e-9,
    }


@pytest.fixture
def store(photos, tmp_path):
    teacher = "timm/test_resnet?random=0&num_classes=3&image_size=32"
    label(photos, teacher, tmp_path / "labels", crops=5, workers=1)
    return str(tmp_path / "labels")


def run(settings, out, *, progress=None, resume=False, overwrite=False, **changes):
    recipe = make_recipe({**settings, **changes})
    return train(recipe, out, progress=progress, resume=resume, overwrite=overwrite)


def kept(out):
    return safetensors.torch.load_file(out / "weights.safetensors")


def same_weights(a, b):
    first, second = kept(a), kept(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_times(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_the_folder_of_a_run(settings, tmp_path):
    out = tmp_path / "run"
    lines = []
    result = run(settings, out, progress=lines.append)
    assert {path.name for path in out.iterdir()} == {
        "recipe.yaml",
        "config.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "weights.safetensors",
        "result.json",
    }
    assert json.loads((out / "result.json").read_text()) == result
    assert {"top1", "top5", "nll", "ece", "brier"} <= result.keys()
    # 6 steps of 4 crops of 12 images
    assert (result["method"], result["steps"], result["epochs"]) == ("hard", 6, 2.0)
    assert result["data"] == build_trainer(make_recipe(settings))[1].identity
    assert result["crops_per_second"] == pytest.approx(24 / result["seconds"])

    start, *reported = lines
    assert (start["kind"], start["step"], start["steps"]) == ("start", 0, 6)
    assert reported == read_metrics(out / "metrics.jsonl")
    # 0.67 epochs are 2.01 steps
    assert [(line["kind"], line["step"]) for line in reported] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4),
        ("train", 5), ("train", 6), ("eval", 6),
    ]  # fmt: skip
    assert [line["epoch"] for line in reported if line["kind"] == "eval"] == pytest.approx(
        [2 / 3, 4 / 3, 2.0]
    )

    config = json.loads((out / "config.json").read_text())
    assert config["class_names"] == ["a", "b", "c"] and config["image_size"] == 32
    assert make_recipe(yaml.safe_load((out / "recipe.yaml").read_text())) == make_recipe(settings)


def test_the_kept_weights_give_the_reported_figures(settings, photos, tmp_path):
    result = run(settings, tmp_path / "run")
    found = evaluate(tmp_path / "run", photos, workers=0)
    assert all(found[key] == pytest.approx(result[key], abs=1e-6) for key in ("top1", "nll", "ece"))


class Killed(BaseException):
    pass


def kill_at(step):
    """Dies as by kill -9 between two steps: nothing is saved or flushed on the way out."""

    def progress(line):
        if line["kind"] == "train" and line["step"] == step:
            raise Killed

    return progress


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(("how", "error"), [(interrupt_at, KeyboardInterrupt), (kill_at, Killed)])
def test_a_stopped_run_continues_to_the_bit(settings, tmp_path, how, error, step):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = run(settings, whole)
    seconds = 1e9 if how is interrupt_at else 1e-9  # an interrupted run saves without being due
    with pytest.raises(error):
        run(settings, stopped, progress=how(step), checkpoint_seconds=seconds)
    assert not (stopped / "result.json").exists()
    torch.manual_seed(1234)
    lines = []
    result = run(settings, stopped, progress=lines.append, resume=True)
    # Killed while step s was reported, so before it was saved.
    assert lines[0]["step"] == (step if how is interrupt_at else step - 1)
    assert same_weights(whole, stopped)
    same = ("top1", "nll", "ece", "brier", "steps", "epochs")
    assert [result[key] for key in same] == [expected[key] for key in same]
    logged = [without_times(read_metrics(out / "metrics.jsonl")) for out in (whole, stopped)]
    assert logged[0] == logged[1]


def test_a_run_stopped_before_its_first_checkpoint_starts_anew(settings, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(settings, whole)
    with pytest.raises(Killed):
        run(settings, stopped, progress=kill_at(3), checkpoint_seconds=1e9)
    run(settings, stopped, resume=True)
    assert same_weights(whole, stopped)
    assert len(read_metrics(stopped / "metrics.jsonl")) == 9


def test_signal_handlers_are_given_back(settings, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", progress=interrupt_at(1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_finished_run_returns_its_result_at_once(settings, tmp_path):
    result = run(settings, tmp_path / "run")
    lines = []
    assert run(settings, tmp_path / "run", progress=lines.append, resume=True) == result
    assert lines == []


def test_a_run_is_neither_overwritten_nor_mixed_with_another(settings, tmp_path):
    out = tmp_path / "run"
    run(settings, out)
    with pytest.raises(InputError, match="already holds a run"):
        run(settings, out)
    with pytest.raises(InputError, match=r"recipe\.seed: 0 in the run, 1 now"):
        run(settings, out, resume=True, seed=1)
    (out / "notes.txt").write_text("mine")
    first = kept(out)
    run(settings, out, overwrite=True, seed=1)
    assert (out / "notes.txt").read_text() == "mine"
    assert any(not torch.equal(v, first[k]) for k, v in kept(out).items())


def test_images_that_changed_meanwhile_are_noticed(settings, photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", progress=interrupt_at(2))
    (photos / "a" / "0000.jpg").unlink()
    with pytest.raises(
        InputError, match="the images, their classes or the labels are not those that"
    ):
        run(settings, tmp_path / "run", resume=True)


def test_labels_that_were_made_anew_meanwhile_are_noticed(settings, store, photos, tmp_path):
    changes = {"method": "fkd"}
    settings["data"]["store"] = store
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", progress=interrupt_at(2), **changes)
    spec = "timm/test_efficientnet?random=1&num_classes=3&image_size=32"
    label(photos, spec, store, crops=5, overwrite=True)
    with pytest.raises(InputError, match="or the labels are not those that"):
        run(settings, tmp_path / "run", resume=True, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fkd"},
        {"method": "ferkd", "regions": {"thresholds": [0.1, 0.4, 0.9]}},
        {"method": "ferkd", "mix": {"kind": "selfmix", "operator": "cutmix"}},
        {"method": "hard", "mix": {"kind": "mixup"}},
    ],
)
def test_methods_train_and_continue_to_the_bit(settings, store, tmp_path, changes):
    settings = {**settings, **changes, "data": {**settings["data"], "store": store}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = run(settings, whole)
    assert result["method"] == changes["method"] and 0 <= result["top1"] <= 1
    if changes["method"] == "ferkd":
        assert set(result["regions"]) == {"discarded", "hard", "important"}
        assert len(result["thresholds"]) == 3 and result["rescued"] >= 0
    with pytest.raises(KeyboardInterrupt):
        run(settings, stopped, progress=interrupt_at(3))
    run(settings, stopped, resume=True)
    assert same_weights(whole, stopped)


def test_loading_workers_change_nothing(settings, tmp_path):
    run(settings, tmp_path / "none")
    run({**settings, "data": {**settings["data"], "workers": 2}}, tmp_path / "two")
    assert same_weights(tmp_path / "none", tmp_path / "two")


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_cache_changes_nothing_and_says_what_it_takes(settings, store, tmp_path, cache, labels):
    method = {"method": "fkd"} if labels else {}
    data = {**settings["data"], "store": store}
    lines = []
    run(settings, tmp_path / "one", **method, data=data)
    data |= {"cache": cache, "cache_dir": str(tmp_path / "cache")}
    run(settings, tmp_path / "two", progress=lines.append, **method, data=data)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert "decoded images of 12 files take" in lines[0]["cache"]


def test_a_cache_that_cannot_fit_is_refused_before_anything_is_written(settings, tmp_path):
    data = {**settings["data"], "cache": "ram", "cache_limit_gb": 1e-6}
    with pytest.raises(InputError, match=r"more than the 1 kB of memory .* data\.cache_side"):
        run(settings, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_the_crops_side_follows_the_schedule_and_a_stopped_run_continues(settings, tmp_path):
    sides = {"schedule": {"steps": STEPS, "image_size": [[0, 24], [0.5, 32]]}}
    settings = {**settings, **sides}
    shown = []
    recipe = make_recipe(settings)
    trainer, _, _ = build_trainer(recipe)
    trainer.model.register_forward_pre_hook(lambda model, given: shown.append(given[0].shape[-1]))
    assert list(trainer.run()) == list(range(1, STEPS + 1))
    assert shown == [24] * 3 + [32] * 3
    run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "stopped", progress=interrupt_at(4))
    run(settings, tmp_path / "stopped", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_vision_transformer_trains_and_is_evaluated_at_several_sizes(settings, tmp_path):
    """Patches of 16 pixels: 32, 48 and 64 are taken, 40 is refused before anything is written."""
    changes = {
        "student": {"name": "timm/test_vit3"},
        "schedule": {"steps": 2, "image_size": [[0, 48], [0.5, 32]]},
    }
    result = run(settings, tmp_path / "run", **changes)
    at_own = evaluate(tmp_path / "run", settings["data"]["val"], workers=0)
    assert at_own["nll"] == pytest.approx(result["nll"], abs=1e-5)
    larger = evaluate(tmp_path / "run", settings["data"]["val"], workers=0, image_size=64)
    assert larger["nll"] != at_own["nll"]
    with pytest.raises(InputError, match=r"images of 40 pixels .*; evaluate it at 32, the size it"):
        evaluate(tmp_path / "run", settings["data"]["val"], workers=0, image_size=40)
    changes["schedule"]["image_size"][0][1] = 40
    with pytest.raises(InputError, match=r"images of 40 pixels .*; leave that size out of"):
        run(settings, tmp_path / "other", **changes)
    assert not (tmp_path / "other").exists()


def test_one_crop_a_step_is_refused_before_anything_is_written(settings, tmp_path):
    data = {**settings["data"], "batch_size": 1, "crops_per_image": 1}
    with pytest.raises(InputError, match="cannot be trained on one crop a step"):
        run(settings, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_training_learns(settings, tmp_path):
    """Dark and light images are told apart after a few steps."""
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for i in range(3):
            grey = Image.new("RGB", (32, 32), (level + 10 * i,) * 3)
            grey.save(tmp_path / "grey" / name / f"{i}.png")
    images = str(tmp_path / "grey")
    data = {**settings["data"], "images": images, "val": images}
    student = {"name": "timm/test_resnet"}
    changes = {"student": student, "ema": None, "schedule": {"steps": 40}, "log_steps": 20}
    result = run(settings, tmp_path / "run", data=data, **changes)
    assert result["top1"] == 1.0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
              if line["kind"] == "train"]  # fmt: skip
    assert len(losses) == 2 and losses[-1] < losses[0]


def test_a_run_without_validation_images_reports_no_accuracy(settings, tmp_path):
    data = {**settings["data"], "val": None}
    result = run(settings, tmp_path / "run", data=data)
    assert "top1" not in result and result["steps"] == STEPS


def test_a_diverging_run_fails_with_the_step(settings, tmp_path):
    optimizer = {"name": "sgd", "lr": 1e30}
    with pytest.raises(NonFiniteLoss, match=r"at step \d of 6 .* Lower optimizer\.lr"):
        run(settings, tmp_path / "run", optimizer=optimizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"name": "timm/test_eficientnet"}}, "nearest: test_efficientnet"),
        ({"student": {"name": "timm/mixer_s32_224", "model_args": {"img_size": 64}}}, "32 pixels"),
        ({"device": "cuda:63"}, "is not available"),
        ({"device": "cpu", "precision": "fp16"}, "needs a CUDA device"),
        ({"method": "fkd", "store": "gone"}, "gone holds no label store"),
        ({"val": "one"}, "the classes do not match: .*one lacks 'b', 'c'"),
        ({"images": "one", "val": None}, "has 1 class; a classifier needs at least 2"),
        ({"images": "gone"}, "gone"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    settings, photos, tmp_path, changes, message
):
    shutil.copytree(photos / "a", tmp_path / "one" / "a")
    data, others = dict(settings["data"]), {}
    for key, value in changes.items():
        if key in ("images", "val", "store"):
            data[key] = str(tmp_path / value) if value else None
        else:
            others[key] = value
    with pytest.raises(InputError, match=message):
        run(settings, tmp_path / "run", data=data, **others)
    assert not (tmp_path / "run").exists()


def test_hard_labels_need_ground_truth_of_every_image(settings, photos, tmp_path):
    (photos / "stray.jpg").write_bytes((photos / "a" / "0000.jpg").read_bytes())
    with pytest.raises(InputError, match=r"stray\.jpg"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_that_cannot_find_each_other_are_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, but .* cannot find each other"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_validation_image_moves_no_truth_to_another(settings, tiny_images, tmp_path):
    """The one left out comes first, so every truth behind it would be one image off."""
    val = tiny_images({"a": 60, "b": 60, "c": 1}, size=(12, 12))
    sorted((val / "a").iterdir())[0].write_bytes(b"no picture")
    settings["data"]["val"] = str(val)
    result = train(make_recipe(settings), tmp_path / "run")
    again = evaluate(tmp_path / "run", val)
    assert len(again["unreadable"]) == 1
    for key in ("top1", "nll", "brier"):
        assert result[key] == pytest.approx(again[key], rel=1e-5), key
