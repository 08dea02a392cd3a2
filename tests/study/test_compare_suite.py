"""Suites: what is accepted, what is said of mistakes, and what each run's recipe is."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from ferkd.cli import app
from ferkd.study.compare.folder import changes, wanted_runs
from ferkd.study.compare.length import steps_of
from ferkd.study.compare.suite import (
    Budget,
    images_per_batch,
    load_suite,
    make_suite,
    shipped_suite,
    shipped_suites,
)
from ferkd.study.compare.trees import expand, flatten, merge
from ferkd.system.errors import InputError
from ferkd.training.recipe import shipped_recipes

SETTINGS = {
    "base": {
        "method": "hard",
        "data": {"images": "a", "val": "b", "batch_size": 10},
        "schedule": {"epochs": 7, "warmup_epochs": 2},
    },
    "seeds": [0, 1],
    "budgets": {"short": {"steps": 5}, "long": {"epochs": 2.5}},
    "methods": {
        "hard": None,
        "fkd": {"method": "fkd", "data.store": "labels"},
        "ferkd": {"method": "ferkd", "data": {"store": "labels"}, "regions.epsilon": 0.3},
    },
}


def settings(**changes):
    return copy.deepcopy(SETTINGS) | changes


def mistakes(given) -> str:
    with pytest.raises(InputError) as caught:
        make_suite(given)
    return str(caught.value)


def test_a_run_gets_base_then_set_then_method_then_budget():
    suite = make_suite(settings(set={"optimizer.lr": 0.5, "data.batch_size": 12}))
    recipe = suite.recipe("ferkd", 1, {"steps": 9})
    assert (recipe.method, recipe.seed, recipe.regions.epsilon) == ("ferkd", 1, 0.3)
    assert (recipe.optimizer.lr, recipe.data.batch_size, recipe.data.store) == (0.5, 12, "labels")
    # The base's own length gives way to the budget's, its warm-up stays.
    schedule = recipe.schedule
    assert (schedule.steps, schedule.epochs, schedule.warmup_epochs) == (9, None, 2)
    # A method's own defaults hold where nothing is set: 1 crop per decode for hard, else 4.
    assert suite.recipe("hard", 0, {"steps": 1}).data.crops_per_image == 1
    assert recipe.data.crops_per_image == 4
    assert suite.baseline == "hard"


def test_a_seed_may_have_labels_and_weights_of_its_own():
    suite = make_suite(
        settings(
            set={"data.images": "photos-{seed}"},
            methods={"hard": None, "fkd": {"method": "fkd", "data.store": "of-{seed}/{seed}"}},
        )
    )
    recipe = suite.recipe("fkd", 2, {"steps": 9})
    assert (recipe.data.images, recipe.data.store) == ("photos-2", "of-2/2")
    assert suite.recipe("hard", 1, {"steps": 9}).data.images == "photos-1"
    assert make_suite(suite.to_dict()) == suite


def test_the_base_may_be_a_recipe_by_name_or_file(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SETTINGS["base"]))
    for base, size in (("flowers-hard", 112), (str(tmp_path / "r.yaml"), 224)):
        suite = make_suite(settings(base=base))
        assert suite.recipe("hard", 0, {"steps": 1}).data.image_size == size


def test_a_suite_reads_back_from_its_own_yaml():
    suite = make_suite(settings(set={"optimizer.lr": 0.5}))
    assert make_suite(yaml.safe_load(yaml.safe_dump(suite.to_dict()))) == suite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": {}}, "suite.budget: unknown key; did you mean 'budgets'?"),
        (
            {"budgets": {"short": {"stps": 5}}},
            "suite.budgets.short.stps: unknown key; did you mean 'steps'?",
        ),
        (
            {"budgets": {"short": {"steps": 5, "seconds": 2}}},
            "suite.budgets.short: set exactly one",
        ),
        ({"budgets": {"short": {}}}, "set exactly one of steps, epochs, decodes, seconds"),
        ({"budgets": {"short": {"steps": 0}}}, "suite.budgets.short.steps: got 0; must be greater"),
        ({"budgets": {}}, "suite.budgets: got {}; must be a mapping of names, at least one"),
        ({"budgets": {"suite.yaml": {"steps": 1}}}, "the name 'suite.yaml' is taken"),
        ({"budgets": {"../up": {"steps": 1}}}, "'../up' becomes a folder's"),
        ({"methods": {"a/b": {}}}, "'a/b' becomes a folder's"),
        ({"methods": ["hard"]}, "suite.methods: got ['hard']; must be a mapping"),
        ({"methods": {"hard": 3}}, "suite.methods.hard: got 3; must be keys of a recipe"),
        ({"baseline": "hrad"}, "'hrad' is not among the methods; did you mean 'hard'?"),
        ({"seeds": [0, 0]}, "suite.seeds: got [0, 0]; must be whole numbers from 0, each once"),
        ({"seeds": []}, "suite.seeds: got []"),
        ({"seeds": [-1]}, "suite.seeds: got [-1]"),
        (
            {"methods": {"hard": {"schedule.steps": 9}}},
            "suite.methods.hard: schedule.steps is not a method's to set; use budgets",
        ),
        ({"set": {"seed": 9}}, "suite.set: seed is not a method's to set; use seeds"),
        (
            {"methods": {"hard": {}, "fkd": {"method": "fkd"}}},
            "suite.methods.fkd: recipe: method fkd needs data.store",
        ),
        (
            {"methods": {"hard": {"optimiser.lr": 1}, "b": {}}},
            "suite.methods.hard: recipe.optimiser: unknown key; did you mean 'optimizer'?",
        ),
        ({"set": {"data.val": None}}, "suite.base: recipe.data.val: missing; a comparison needs"),
        (
            {"methods": {"hard": {"data.workers": 1, "data": {"workers": 2}}}},
            "suite.methods.hard.data.workers: given twice",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(change, said):
    message = mistakes(settings(**change))
    assert said in message
    assert len(message.splitlines()) == 1, message


def test_a_mistake_of_all_methods_is_said_once():
    base = {**SETTINGS["base"], "emma": 0.9}
    assert mistakes(settings(base=base)) == (
        "suite.base: recipe.emma: unknown key; did you mean 'ema'?"
    )


def test_unknown_suites_are_named(tmp_path):
    with pytest.raises(InputError, match=r"did you mean 'flowers-main'\?"):
        load_suite("flowers-mian")
    with pytest.raises(InputError, match=r"no\.yaml does not exist"):
        load_suite(tmp_path / "no.yaml")
    (tmp_path / "twice.yaml").write_text("seeds: [0]\nseeds: [1]\n")
    with pytest.raises(InputError, match=r"line 2: not valid YAML: key 'seeds' is given twice"):
        load_suite(tmp_path / "twice.yaml")


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_resolve_to_valid_recipes(name):
    suite = load_suite(name)  # checks a recipe of every method
    assert suite.baseline in suite.methods and len(suite.seeds) >= 3
    students = {m: suite.recipe(m, 0, {"steps": 1}).student for m in suite.methods}
    # scenes-where asks about students, too: each of its FerKDs has the student of its FKD.
    for method, student in students.items():
        other = method.replace("ferkd", "fkd") if name == "scenes-where" else suite.baseline
        assert _drawn(student) == _drawn(students[other]) and not student.pretrained, method


def _drawn(student):
    """A student apart from the weights that it starts from, which flowers-label-free compares."""
    return student.model_copy(update={"weights": None, "fresh_head": False})


@pytest.mark.parametrize("name", shipped_suites())
def test_the_commands_in_the_head_of_a_suite_are_real(name):
    path = Path(__file__).parents[2] / ".ci" / "docs_commands.py"
    spec = importlib.util.spec_from_file_location("docs_commands", path)
    docs_commands = importlib.util.module_from_spec(spec)
    sys.modules["docs_commands"] = docs_commands  # its dataclasses look their module up
    spec.loader.exec_module(docs_commands)
    lines = [line[1:] for line in shipped_suite(name).splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("Command: ", "").replace("\\\n", " ")
    text = text.replace("$n", "2").replace("$s", "0")  # of loops over numbers
    lines = [line for line in text.splitlines() if "ferkd " in line and " --" in line]
    found = [w[1:] for w in docs_commands.commands("\n".join(lines)) if w[0] == "ferkd"]
    needed, suite = {"compare"}, load_suite(name)
    if any(suite.recipe(m, 0, {"steps": 1}).data.store is not None for m in suite.methods):
        # A suite's signals may be those of another suite, which is named.
        others = (set(shipped_suites()) - {name}) & set(re.findall(r"[\w-]+", text))
        needed |= set() if others else {"label"}
        if "?checkpoint=" not in text and not others:  # else the teacher is taken as published
            needed.add("train")
    assert needed <= {words[0] for words in found}
    command = get_command(app)
    assert [c for words in found if (c := docs_commands.complaint(words, command))] == []


def test_suites_are_shipped_and_are_no_recipes():
    names = shipped_suites()
    assert {
        "flowers-main",
        "flowers-ablation",
        "flowers-teachers",
        "scenes-noise",
        "scenes-thresholds",
    } <= {*names}
    assert not {*names} & {*shipped_recipes()}


def test_runs_are_ordered_seed_by_seed_over_the_methods(tmp_path):
    suite = make_suite(settings())
    runs = wanted_runs(suite, tmp_path)
    assert [r.name for r in runs[:6]] == [
        "short/hard-0",
        "short/fkd-0",
        "short/ferkd-0",
        "short/hard-1",
        "short/fkd-1",
        "short/ferkd-1",
    ]
    assert len(runs) == 12 and {r.budget for r in runs[6:]} == {"long"}
    assert [r.method for r in wanted_runs(suite, tmp_path, ["fkd"])] == ["fkd"] * 4
    with pytest.raises(InputError, match=r"--only frkd: .* did you mean 'ferkd'"):
        wanted_runs(suite, tmp_path, ["frkd"])
    assert [r.budget for r in wanted_runs(suite, tmp_path, ["fkd"], ["long"])] == ["long"] * 2
    with pytest.raises(InputError, match="--budget lnog: no such budget; did you mean 'long'"):
        wanted_runs(suite, tmp_path, budgets=["lnog"])


def test_equal_budgets_become_steps():
    suite = make_suite(settings())
    four = suite.recipe("fkd", 0, {"steps": 1})  # 10 crops, 4 of an image: 3 images a step
    one = suite.recipe("hard", 0, {"steps": 1})
    assert (images_per_batch(four), images_per_batch(one)) == (3, 10)
    assert steps_of(Budget(steps=7), four) == 7
    assert steps_of(Budget(epochs=7), four) is None
    assert steps_of(Budget(decodes=100), four) == 33
    assert steps_of(Budget(decodes=100), one) == 10
    assert steps_of(Budget(decodes=1), one) == 1
    assert steps_of(Budget(seconds=10), one, 2.57) == 25
    assert steps_of(Budget(seconds=0.1), one, 2.5) == 1


def test_what_changes_a_suite_is_named_and_additions_are_none():
    old = make_suite(settings()).to_dict()
    more = settings(seeds=[2, 1, 0], baseline="fkd")
    more["methods"]["again"] = {"optimizer.lr": 1.0}
    more["budgets"]["huge"] = {"steps": 99}
    assert changes(old, make_suite(more).to_dict()) == []
    other = settings(seeds=[0], set={"ema": 0.9})
    other["methods"]["ferkd"]["regions.epsilon"] = 0.1
    del other["methods"]["fkd"]
    other["budgets"]["short"] = {"steps": 6}
    assert changes(old, make_suite(other).to_dict()) == [
        "suite.set.ema: 'unset' in the folder, 0.9 in this suite",
        "suite.methods.fkd: in the folder, not in this suite",
        "suite.methods.ferkd.regions.epsilon: 0.3 in the folder, 0.1 in this suite",
        "suite.budgets.short.steps: 5 in the folder, 6 in this suite",
    ]


KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_dotted_keys_and_trees_are_the_same(tree):
    assert expand(flatten(tree), "x") == tree == expand(tree, "x")


@given(TREES, TREES)
def test_later_trees_win(a, b):
    merged = flatten(merge(a, b))
    assert flatten(b).items() <= merged.items()
    assert merge(a, {}) == a and merge({}, a) == a and merge(a, a) == a
