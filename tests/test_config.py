"""Recipes: what is accepted, and that every mistake is named in one readable line."""

from __future__ import annotations

import pytest
import yaml

from ferkd import config
from ferkd.config import load_recipe, make_recipe
from ferkd.errors import InputError

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


@pytest.mark.parametrize(("method", "crops"), [("hard", 1), ("fkd", 4), ("ferkd", 4)])
def test_crops_per_image_follow_the_method_unless_set(recipe_file, method, crops):
    overrides = [f"method={method}", "data.store=labels"]
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
        ("regions.x=1", "recipe.regions.x: unknown key; known keys: thresholds, score, scale, "),
        ("optimizer.lr=fast", "recipe.optimizer.lr: got 'fast'; must be a valid number"),
        ("optimizer.lr=-1", "recipe.optimizer.lr: got -1; must be greater than 0"),
        ("ema=1", "recipe.ema: got 1; must be less than 1"),
        ("data.batch_size=1.5", "recipe.data.batch_size: got 1.5; must be a valid integer"),
        ("data.images=", "recipe.data.images: got None; must be a valid string"),
        ("method=fkdd", "recipe.method: got 'fkdd'; must be 'hard', 'fkd' or 'ferkd'"),
        ("schedule=3", "recipe.schedule: got 3; must be a mapping of keys to values"),
        ("schedule.steps=3", "recipe.schedule: set exactly one of epochs and steps"),
        ("regions.thresholds=x", "recipe.regions.thresholds: got 'x'; must be 'auto' "),
        ("regions.thresholds=[0.1, 0.2]", "recipe.regions.thresholds: got [0.1, 0.2]; must be "),
        ("regions.thresholds=[0.5, 0.2, 0.9]", "recipe.regions.thresholds: thresholds 0.5, 0.2, "),
        ("data.crops.scale=[0.5, 0.2]", "recipe.data.crops: scale (0.5, 0.2) must satisfy"),
        ("method=fkd", "recipe: method fkd needs data.store, the labels that ferkd label wrote"),
        ("mix.kind=selfmix", "recipe: mix.kind selfmix needs data.crops_per_image of at least 2"),
        ("loss.objective=soft_c", "recipe.loss: unknown objective 'soft_c'"),
        ("loss.options.temprature=2", "recipe.loss: option temprature of soft_ce: unknown"),
        ("loss.options.temperature=-1", "recipe.loss: option temperature of soft_ce: Input should"),
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
    assert "is not a valid YAML value" in mistakes(recipe_file, "seed=[1, 2")[0]


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
