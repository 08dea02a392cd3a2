"""Recipes: what is accepted, and that every mistake is named in one readable line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from ferkd.loading.mixing import Mix
from ferkd.methods import METHODS
from ferkd.system.errors import InputError
from ferkd.training import recipe as config
from ferkd.training.recipe import Data, Recipe, load_recipe, make_recipe
from ferkd.training.schedule import Schedule

HARD = "method: hard\ndata: {images: train}\nschedule: {epochs: 2}\n"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(HARD)
    return path


def mistakes(path, *overrides):
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def test_a_minimal_recipe_and_overrides(recipe_file):
    recipe = load_recipe(recipe_file, ["optimizer.lr=1e-3", "data.val=val", "ema=0.9", "seed=7"])
    assert recipe.optimizer.lr == 0.001
    assert (recipe.data.val, recipe.ema, recipe.seed) == ("val", 0.9, 7)


def test_an_override_creates_a_section_and_null_clears_a_value(recipe_file):
    recipe = load_recipe(recipe_file, ["mix.kind=mixup", "schedule.epochs=", "schedule.steps=9"])
    assert recipe.mix.kind == "mixup"
    assert (recipe.schedule.epochs, recipe.schedule.steps) == (None, 9)


def test_reading_a_recipe_does_not_import_the_model_libraries():
    code = "import ferkd.training.recipe, sys; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


EVERYTHING = ["data.store=labels", "teacher=run"]


@pytest.mark.parametrize("method", METHODS)
def test_recipes_may_differ_in_their_method_alone(recipe_file, method):
    recipe = load_recipe(recipe_file, [f"method={method}", *EVERYTHING])
    assert recipe.method == method
    assert make_recipe(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("method", "key", "default", "other"),
    [
        ("hard", "loss.label_smoothing", 0.1, 0.2),
        ("kd", "loss.label_smoothing", 0.0, 0.2),
        ("kd", "loss.objective", "kl", "jeffreys"),
        ("kd", "mix.kind", "none", "cutmix"),
        ("funmatch", "loss.objective", "kl", None),
        ("funmatch", "mix.kind", "mixup", "none"),
        ("fkd", "loss.objective", "soft_ce", "kl"),
        ("meal_v2", "student.pretrained", True, False),
        ("ssld", "loss.objective", "jeffreys", "soft_ce"),
        ("ferkd", "mix.kind", "none", "selfmix"),
        ("ferkd-paper", "mix.kind", "selfmix", "none"),
        ("ferkd-paper", "regions.thresholds", "auto", (0.1, 0.2, 0.9)),
        ("ferkd-paper", "regions.calibration", "steps", None),
    ],
)
def test_a_method_sets_what_the_recipe_leaves_out(recipe_file, method, key, default, other):
    part, name = key.split(".")

    def value(*overrides):
        recipe = load_recipe(recipe_file, [f"method={method}", *EVERYTHING, *overrides])
        return getattr(getattr(recipe, part), name)

    assert value() == default
    if other is not None:
        assert value(f"{key}={list(other) if isinstance(other, tuple) else other}") == other


def test_weights_of_its_own_keep_meal_v2_from_the_published_ones(recipe_file):
    overrides = ["method=meal_v2", *EVERYTHING, "student.weights=w.safetensors"]
    assert not load_recipe(recipe_file, overrides).student.pretrained


LENGTH = Schedule(steps=1)


def test_the_same_settings_from_python_and_from_yaml_mean_the_same():
    """A part that is a finished model counts as the keys that it was given."""
    data = Data(images="train")
    assert Recipe(method="hard", data=data, schedule=LENGTH).data.crops_per_image == 1
    assert Recipe(method="fkd", data=Data(images="train", store="s"), schedule=LENGTH) == (
        make_recipe(
            {"method": "fkd", "data": {"images": "train", "store": "s"}, "schedule": {"steps": 1}}
        )
    )
    four = Data(images="train", crops_per_image=4)
    assert Recipe(method="hard", data=four, schedule=LENGTH).data.crops_per_image == 4
    for mix, kind in ((Mix(), "mixup"), ({}, "mixup"), (Mix(kind="none"), "none")):
        recipe = Recipe(method="funmatch", teacher="run", data=data, schedule=LENGTH, mix=mix)
        assert recipe.mix.kind == kind


def test_the_loss_is_of_the_methods_own_settings():
    hard = {"method": "hard", "data": {"images": "train"}, "schedule": {"steps": 1}}
    recipe = make_recipe({**hard, "loss": {"label_smoothing": 0.2, "label_kind": "renorm"}})
    assert recipe.to_dict()["loss"] == {"label_smoothing": 0.2}  # hard reads no label_kind
    settings = METHODS["hard"].settings(label_smoothing=0.2)
    assert Recipe(**hard, loss=settings) == recipe
    kd = make_recipe({**hard, "method": "kd", "teacher": "run", "loss": {"label_kind": "renorm"}})
    assert kd.to_dict()["loss"] == {"objective": "kl", "options": {}, "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("method", "loss", "lines"),
    [
        ("hard", {"label_kind": "smooth"}, ["recipe.loss.label_kind: got 'smooth'; mus"]),
        ("fkd", {"own_share": 1}, ["recipe.loss.own_share: got 1; must be less than 1"]),
        ("fkd", {"label_knd": "soft"}, ["recipe.loss.label_knd: unknown key; did y"]),
        ("hard", {"x": 1, "own_share": 2}, ["recipe.loss.x: unknown key; known keys: label_smooth",
                                            "recipe.loss.own_share: got 2; must be less"]),
        ("hard", 3, ["recipe.loss: got 3; must be a mapping of keys to values"]),
    ],
)  # fmt: skip
def test_keys_that_the_method_does_not_read_are_checked_all_the_same(method, loss, lines):
    settings = {"method": method, "data": {"images": "i", "store": "s"}, "schedule": {"steps": 1}}
    with pytest.raises(InputError) as caught:
        make_recipe({**settings, "loss": loss})
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method=funmatch", "loss.objective=soft_ce"], "recipe: method funmatch matches the tea"),
        (["method=ferkd-paper", "regions.calibration=blend"], "recipe: method ferkd-paper calibr"),
        (["method=ferkd-paper", "data.crops_per_image=1"], "recipe: mix.kind selfmix needs data."),
        (["method=pskd", "mix.kind=mixup"], "recipe: method pskd keeps a prediction for each ima"),
    ],
)
def test_what_a_method_cannot_do_is_said(recipe_file, overrides, line):
    (found,) = mistakes(recipe_file, *EVERYTHING, *overrides)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("method", "crops"),
    [("hard", 1), ("kd", 1), ("funmatch", 1), ("relabel", 1), ("pskd", 1), ("fkd", 4),
     ("meal_v2", 4), ("ssld", 4), ("ferkd", 4), ("ferkd-paper", 4)],
)  # fmt: skip
def test_crops_per_image_follow_the_method_unless_set(recipe_file, method, crops):
    overrides = [f"method={method}", *EVERYTHING]
    assert load_recipe(recipe_file, overrides).data.crops_per_image == crops
    overrides.append("data.crops_per_image=3")
    assert load_recipe(recipe_file, overrides).data.crops_per_image == 3


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=ferkd", "data.store=s", "regions.thresholds=[0.1, 0.4, 0.9]", "mix.kind=selfmix"],
        ["schedule.warmup_epochs=1", "student.weights=w.safetensors", "student.model_args.a=1"],
    ],
)
def test_a_resolved_recipe_reads_back_to_the_same_one(recipe_file, overrides):
    recipe = load_recipe(recipe_file, overrides)
    text = yaml.safe_dump(recipe.to_dict())
    assert make_recipe(yaml.safe_load(text)) == recipe


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=3", "recipe.optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("schedul=3", "recipe.schedul: unknown key; did you mean 'schedule'?"),
        ("momentun=3", "recipe.momentun: unknown key; did you mean 'optimizer.momentum'?"),
        ("regions.x=1", "recipe.regions.x: unknown key; known keys: "),
        ("optimizer.lr=fast", "recipe.optimizer.lr: got 'fast'; must be a valid number"),
        ("optimizer.lr=-1", "recipe.optimizer.lr: got -1; must be greater than 0"),
        ("ema=1", "recipe.ema: got 1; must be less than 1"),
        ("data.batch_size=1.5", "recipe.data.batch_size: got 1.5; must be a valid integer"),
        ("data.images=", "recipe.data.images: got None; must be a valid string"),
        ("method=fkdd", "recipe.method: unknown method 'fkdd'; did you mean 'fkd'?, or "),
        ("schedule=3", "recipe.schedule: got 3; must be a mapping of keys to values"),
        ("schedule.steps=3", "recipe.schedule: set exactly one of epochs and steps"),
        ("regions.thresholds=x", "recipe.regions.thresholds: got 'x'; must be 'auto'"),
        ("regions.thresholds=[0.1, 0.2]", "recipe.regions.thresholds: got [0.1, 0.2]; must be "),
        ("regions.thresholds=[0.5, 0.2, 0.9]", "recipe.regions.thresholds: thresholds 0.5, 0.2, "),
        ("data.crops.scale=[0.5, 0.2]", "recipe.data.crops: scale (0.5, 0.2) must satisfy"),
        ("method=fkd", "recipe: method fkd needs data.store, the labels that ferkd label wrote"),
        ("method=relabel", "recipe: method relabel needs data.store, the label maps that "),
        ("method=kd", "recipe: method kd needs teacher, named as for ferkd label: the folder of "),
        ("method=funmatch", "recipe: method funmatch needs teacher, named as for ferkd label"),
        ("loss.label_kind=smooth", "recipe.loss.label_kind: got 'smooth'; must be 'soft', "),
        ("loss.own_share=1", "recipe.loss.own_share: got 1; must be less than 1"),
        ("mix.kind=selfmix", "recipe: mix.kind selfmix needs data.crops_per_image of at least 2"),
        ("loss.objective=soft_c", "recipe.loss: unknown objective 'soft_c'"),
        ("loss.options.temprature=2", "recipe.loss: option temprature of soft_ce: unknown"),
        (
            "loss.options.temperature=-1",
            "recipe.loss: option temperature of soft_ce: must be greater than",
        ),
    ],
)
def test_each_mistake_is_one_line_with_the_value_and_the_rule(recipe_file, override, line):
    found = mistakes(recipe_file, override)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_several_mistakes_are_all_listed(recipe_file):
    found = mistakes(recipe_file, "optimizer.lrr=3", "optimizer.lr=fast", "seed=-1")
    assert sorted(line.split(":")[0] for line in found) == [
        "recipe.optimizer.lr",
        "recipe.optimizer.lrr",
        "recipe.seed",
    ]


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "r.yaml").write_text("method: hard\nschedule: {steps: 1}\ndata: {}\n")
    assert mistakes(tmp_path / "r.yaml") == ["recipe.data.images: missing; a value is needed"]


def test_both_warmups_are_refused_but_either_alone_is_accepted(recipe_file):
    both = mistakes(recipe_file, "schedule.warmup=0.1", "schedule.warmup_epochs=1")
    assert both[0].startswith("recipe.schedule: set one of warmup")
    assert load_recipe(recipe_file, ["schedule.warmup_epochs=1"]).schedule.warmup_epochs == 1
    assert load_recipe(recipe_file, ["schedule.warmup=0.1"]).schedule.warmup == 0.1


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".seed=3"])
def test_a_malformed_override_is_refused(recipe_file, override):
    assert "is not of the form key=value" in mistakes(recipe_file, override)[0]


def test_an_override_below_a_value_is_refused(recipe_file):
    assert "'method' is a value and holds no keys" in mistakes(recipe_file, "method.x=1")[0]


def test_an_override_that_is_not_yaml_is_refused(recipe_file):
    assert (
        "override 'seed=[1, 2', line 1: not valid YAML: expected"
        in mistakes(recipe_file, "seed=[1, 2")[0]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("- 1\n- 2\n", "a recipe is a mapping of keys to values, not list"),
        ("", "a recipe is a mapping of keys to values, not NoneType"),
        (HARD + "seed: 1\nseed: 2\n", "line 5: not valid YAML: key 'seed' is given twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in mistakes(path)[0]


def test_a_missing_file_and_an_unknown_name():
    assert "recipe file gone.yaml does not exist" in mistakes("gone.yaml")[0]
    assert "neither a file nor a shipped recipe" in mistakes("no-such-recipe")[0]


def test_shipped_recipes_are_found_by_name_and_suggested(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "flowers-hard.yaml").write_text(HARD)
    monkeypatch.setattr(config.resources, "files", lambda package: tmp_path)
    assert config.shipped_recipes() == ["flowers-hard"]
    assert load_recipe("flowers-hard").method == "hard"
    assert "did you mean 'flowers-hard'?" in mistakes("flower-hard")[0]
