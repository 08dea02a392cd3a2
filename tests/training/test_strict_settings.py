"""Numbers and truth values are taken strictly and bounded, from YAML and from Python."""

from __future__ import annotations

import math

import pytest

from ferkd.models.student import ModelConfig, Student
from ferkd.study.compare.suite import Budget
from ferkd.system.errors import InputError
from ferkd.training.recipe import load_recipe
from ferkd.training.schedule import Schedule

HARD = "method: hard\ndata: {images: train}\nschedule: {epochs: 2}\n"


@pytest.fixture
def mistake(tmp_path):
    """The one line that an override of a good recipe leads to."""
    path = tmp_path / "recipe.yaml"
    path.write_text(HARD)

    def of(*overrides: str) -> str:
        with pytest.raises(InputError) as caught:
            load_recipe(path, overrides)
        (line,) = str(caught.value).splitlines()
        return line

    return of


A_NUMBER = "YAML reads yes, on and true as True, no, off and false as False; write the number"
A_TEXT = "YAML reads yes, on and true as True, no, off and false as False; put it in quotes"
IN_QUOTES = "in quotes it is text, not a number"


@pytest.mark.parametrize(
    ("override", "wrong", "reading"),
    [
        ("optimizer.lr=yes", "got True; must be a valid number", A_NUMBER),
        ("seed=on", "got True; must be a valid integer", A_NUMBER),
        ("data.batch_size=yes", "got True; must be a valid integer", A_NUMBER),
        ("loss.label_smoothing=no", "got False; must be a valid number", A_NUMBER),
        ("optimizer.betas=[off, 0.9]", "got False; must be a valid number", A_NUMBER),
        ("regions.epsilon=yes", "got True; must be a valid number or 'reliability'", A_TEXT),
        ("data.workers='2'", "got '2'; must be a valid integer", IN_QUOTES),
        ("optimizer.lr='0.1'", "got '0.1'; must be a valid number", IN_QUOTES),
        (
            "log_steps=1e3",
            "got 1000.0; must be a valid integer",
            "YAML reads 1e3 and 2.0 as numbers with a fraction; write 1000",
        ),
        (
            "method=2024",
            "got 2024; must be a valid string",
            "YAML reads it as a number or a date; put it in quotes",
        ),
        ("student.name=no", "got False; must be a valid string", A_TEXT),
        ("mix.kind=off", "got False; must be 'none', 'selfmix', 'mixup' or 'cutmix'", A_TEXT),
    ],
)
def test_the_reading_of_yaml_is_explained(mistake, override, wrong, reading):
    assert mistake(override) == f"recipe.{override.partition('=')[0]}: {wrong} ({reading})"


@pytest.mark.parametrize("override", ["compile=1", "tensorboard='yes'", "channels_last=0.0"])
def test_a_truth_value_is_true_or_false(mistake, override):
    key, _, value = override.partition("=")
    assert mistake(override) == f"recipe.{key}: got {value}; must be a valid boolean"


def test_options_of_an_objective_are_strict_too(mistake):
    assert "temperature of soft_ce: must be a valid number" in mistake(
        "loss.options.temperature=yes"
    )


@pytest.mark.parametrize("value", ["010", "1:30", "-007", "1:30.5"])
def test_numbers_to_base_8_and_60_are_refused(mistake, value):
    assert mistake(f"seed={value}").startswith(
        f"override 'seed={value}', line 1: not valid YAML: {value} is a number to base 8 or 60 in "
    )


@pytest.mark.parametrize(
    "override",
    [
        "schedule.epochs=.inf",
        "schedule.epochs=1e308",
        "schedule.warmup_epochs=.inf",
        "schedule.warmup_epochs=1e308",
        "schedule.warmup=.nan",
        "schedule.steps=1000000000001",
        "schedule.image_size=[[.nan, 64]]",
        "evaluation.every_epochs=.inf",
        "evaluation.every_epochs=1e308",
        "evaluation.crop_fraction=.nan",
        "optimizer.lr=.inf",
        "optimizer.weight_decay=.inf",
        "optimizer.betas=[.nan, 0.9]",
        "ema=.nan",
        "clip_grad=.inf",
        "loss.label_smoothing=.nan",
        "loss.own_share=.nan",
        "loss.options.temperature=.inf",
        "mix.alpha=.inf",
        "mix.probability=.nan",
        "regions.epsilon=.nan",
        "regions.thresholds=[0.1, .nan, 0.9]",
        "data.crops.flip=.nan",
        "data.crops.scale=[.nan, 1.0]",
        "data.crops.ratio=[0.5, .inf]",
        "data.cache_limit_gb=.inf",
        "checkpoint_seconds=.inf",
        "seed=-1",
        "seed=9223372036854775808",
    ],
)
def test_what_is_not_finite_or_beyond_use_is_refused_by_its_key(mistake, override):
    extra = ["schedule.epochs="] if "steps" in override else []
    key = override.partition("=")[0]
    assert mistake(*extra, override).startswith(
        "recipe.loss" if "options" in key else f"recipe.{key}:"
    )


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (Schedule, {"epochs": math.inf}),
        (Schedule, {"epochs": True}),
        (Schedule, {"steps": 2.0}),
        (Budget, {"epochs": 1e308}),
        (Budget, {"seconds": math.inf}),
        (Budget, {"decodes": True}),
        (Student, {"pretrained": 1}),
        (ModelConfig, {"architecture": "a", "num_classes": "3", "image_size": 8}),
        (Schedule, {"epochs": 1, "warmup": math.nan}),
    ],
)  # fmt: skip
def test_python_is_as_strict_as_yaml(model, settings):
    with pytest.raises(ValueError):
        model(**settings)


def test_lists_are_still_tuples_and_text_is_still_a_path(tmp_path):
    assert Schedule(steps=3, image_size=[[0, 32], [0.5, 64]]).image_size == ((0, 32), (0.5, 64))
    assert Student(weights=str(tmp_path)).weights == tmp_path


def test_forms_of_yaml_that_are_taken(tmp_path):
    """Numbers without a point, Windows line ends, a byte order mark."""
    path = tmp_path / "w.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfmethod: hard\r\ndata: {images: x}\r\nclip_grad: 1.5e0\r\n"
        b"optimizer: {lr: 1e-3, weight_decay: 5E-2}\r\nschedule: {epochs: 1e1}\r\n"
    )
    recipe = load_recipe(path)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.001, 0.05)
    assert (recipe.schedule.epochs, recipe.clip_grad) == (10.0, 1.5)
