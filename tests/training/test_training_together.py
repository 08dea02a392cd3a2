"""Several recipes on one loader: each run is the one that its recipe gives alone."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image
from runs import changed, interrupt_at
from safetensors.torch import load_file

from ferkd.system.errors import InputError
from ferkd.training import NonFiniteLoss, Trainer, train, train_together
from ferkd.training.metrics import read_metrics
from ferkd.training.optim import OptimizerConfig
from ferkd.training.together import check_shared


@pytest.fixture
def recipes(settings, store):
    """Students, losses, optimisers, mixing and lengths that differ, dropout in both."""
    data, once = {"crops_per_image": 2, "batch_size": 4}, store("fkd")
    return {
        "small": changed(settings, "fkd", lambda _: once, data=data),
        "other": changed(
            settings,
            "fkd",
            lambda _: once,
            data={**data, "val": None},
            student={"name": "timm/test_resnet", "model_args": {"drop_rate": 0.3}},
            optimizer={"name": "sgd", "lr": 0.1},
            mix={"kind": "selfmix"},
            schedule={"steps": 7},
            ema=None,
        ),
    }


def same(one, other) -> None:
    ours, theirs = (load_file(run / "weights.safetensors") for run in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [
        [(line["step"], line.get("loss")) for line in read_metrics(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]


def test_each_is_the_run_that_it_is_alone_and_images_are_read_once(recipes, tmp_path, monkeypatch):
    for name, recipe in recipes.items():
        train(recipe, tmp_path / "alone" / name)
    read = []
    from ferkd.loading.steps import Steps

    given = Steps._batch
    monkeypatch.setattr(Steps, "_batch", lambda self, step: read.append(step) or given(self, step))
    results = train_together(recipes, tmp_path / "together")
    assert read == list(range(7))  # as many steps as the longer has, each once
    for name in recipes:
        same(tmp_path / "together" / name, tmp_path / "alone" / name)
    assert [results[name]["steps"] for name in recipes] == [5, 7]
    assert train_together(recipes, tmp_path / "together", resume=True) == results


def test_all_are_saved_when_interrupted_and_go_on_together(recipes, tmp_path):
    whole = train_together(recipes, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_together(recipes, tmp_path / "halves", progress=interrupt_at(3))
    for name in recipes:
        assert (tmp_path / "halves" / name / "checkpoint.pt").is_file()
        assert not (tmp_path / "halves" / name / "result.json").exists()
    train(recipes["small"], tmp_path / "halves" / "small", resume=True)  # one of them alone
    train_together(recipes, tmp_path / "halves", resume=True)
    assert list(whole) == list(recipes)
    for name in recipes:
        same(tmp_path / "halves" / name, tmp_path / "whole" / name)


def test_a_run_behind_catches_up_before_the_others_go_on(recipes, tmp_path, monkeypatch):
    """One batch is kept, however far apart the runs were stopped."""
    whole = train_together(recipes, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipes["other"], tmp_path / "apart" / "other", progress=interrupt_at(4))
    taken = []
    given = Trainer._take
    monkeypatch.setattr(
        Trainer, "_take", lambda self, batch: taken.append(self.step) or given(self, batch)
    )
    assert train_together(recipes, tmp_path / "apart", resume=True).keys() == whole.keys()
    assert taken == [0, 1, 2, 3, 4, 4, 5, 6]
    for name in recipes:
        same(tmp_path / "apart" / name, tmp_path / "whole" / name)


def test_a_student_that_diverges_leaves_the_others_alone(recipes, tmp_path, caplog):
    torn = recipes["small"].model_copy(update={"optimizer": OptimizerConfig(name="sgd", lr=1e30)})
    with pytest.raises(NonFiniteLoss, match=r"^run torn: the loss became .* diverged"):
        train_together({"torn": torn, "other": recipes["other"]}, tmp_path / "together")
    assert "run torn has failed, and the others go on" in caplog.text
    assert not (tmp_path / "together" / "torn" / "result.json").exists()
    train(recipes["other"], tmp_path / "alone")
    same(tmp_path / "together" / "other", tmp_path / "alone")
    assert (tmp_path / "together" / "other" / "result.json").is_file()


def test_recipes_whose_teachers_answer_otherwise_share_no_batches(settings):
    one = changed(settings, "kd", lambda _: None)
    for changes, differing in (
        ({"class_map": "natural"}, "class_map"),
        ({"precision": "bf16"}, r"teacher_precision \(unset: precision\)"),
    ):
        with pytest.raises(InputError, match=rf"they differ in {differing};"):
            check_shared({"a": one, "b": changed(settings, "kd", lambda _: None, **changes)})
    stated = [changed(settings, "kd", lambda _: None, teacher_precision="fp32") for _ in range(2)]
    check_shared({"a": stated[0], "b": stated[1].model_copy(update={"precision": "bf16"})})


def test_recipes_of_other_batches_are_refused_by_what_differs(settings, store, tmp_path):
    once = store("fkd")
    one = changed(settings, "fkd", lambda _: once, data={"batch_size": 4, "crops_per_image": 2})
    more = changed(
        settings, "fkd", lambda _: once, data={"batch_size": 8, "crops_per_image": 2}, seed=1
    )
    with pytest.raises(InputError, match=r"recipes a and b do not .* in data\.batch_size, seed;"):
        train_together({"a": one, "b": more}, tmp_path / "out")
    other = changed(settings, "ferkd", lambda _: once, data={"batch_size": 4, "crops_per_image": 2})
    with pytest.raises(InputError, match="they differ in regions"):
        train_together({"a": one, "b": other}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_of_any_run_where_one_is_refused(recipes, tmp_path):
    (tmp_path / "val" / "z").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "val" / "z" / "1.jpg")
    data = recipes["other"].data.model_copy(update={"val": str(tmp_path / "val")})
    last = recipes["other"].model_copy(update={"data": data})
    with pytest.raises(InputError, match="the classes do not match"):
        train_together({"small": recipes["small"], "last": last}, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_command_names_runs_by_their_recipes(recipes, tmp_path, command_line):
    files = [tmp_path / f"{name}.yaml" for name in recipes]
    for file, recipe in zip(files, recipes.values(), strict=True):
        file.write_text(yaml.safe_dump(recipe.to_dict()))
    status, out, err = command_line("train", *files, "--out", tmp_path / "runs", "--json")
    assert status == 0, err
    assert {name: run["steps"] for name, run in json.loads(out).items()} == {"small": 5, "other": 7}
    status, _, err = command_line("train", files[0], files[0], "--out", tmp_path / "twice")
    assert status == 2 and "give files of different names" in err
