"""A suite: methods to compare, on which seeds and which equal budgets.

A suite is YAML::

    base: flowers-hard                 # a recipe's name or file, or the tree itself
    baseline: hard
    seeds: [0, 1, 2]
    budgets:
      short: {epochs: 12}              # or steps, decodes, seconds
    methods:
      hard: {}
      fkd: {method: fkd, data.store: labels}

``{seed}`` in a text of the settings stands for the run's seed. So ``data.store: labels-{seed}``
gives each seed its own teacher, and the spread over seeds then holds the teachers'.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from ferkd.study.compare.trees import Tree, expand, merge
from ferkd.system.errors import InputError
from ferkd.system.plain import parse_yaml, read_yaml
from ferkd.system.settings import Part, explain
from ferkd.training.recipe import Recipe, make_recipe, read_settings
from ferkd.training.schedule import MOST_EPOCHS

# A name becomes a part of a folder's name: no separators, nothing hidden, nothing unprintable.
_NAME = re.compile(r"[^\s./\\-][^/\\]{0,79}")
_OURS = ("seed", "schedule.steps", "schedule.epochs")  # set by the suite, not by a method
_COUNTS = ("steps", "epochs", "decodes", "seconds")


class Budget(Part):
    """How long each run of a budget is, by exactly one count.

    ``steps`` of the optimiser; ``epochs`` of crops (as many crops as images); image ``decodes``
    (an image shown with m crops counts once); ``seconds`` of training on this machine, turned into
    steps by a timed trial of the method.
    """

    steps: int | None = Field(default=None, gt=0, le=10**12)
    epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    decodes: int | None = Field(default=None, gt=0, le=10**12)
    seconds: float | None = Field(default=None, gt=0, le=1e9)

    @model_validator(mode="after")
    def _one_count(self) -> Budget:
        if sum(getattr(self, count) is not None for count in _COUNTS) != 1:
            raise ValueError(f"set exactly one of {', '.join(_COUNTS)}")
        return self

    @property
    def count(self) -> str:
        """Which count it is."""
        return next(c for c in _COUNTS if getattr(self, c) is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.count))

    def __str__(self) -> str:
        return f"{self.amount:g} {self.count}"


class Suite(Part):
    """A suite whose recipes all hold; ``base`` and ``methods`` are trees without dotted keys."""

    base: dict[str, Any]
    set: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    budgets: dict[str, Budget]
    baseline: str

    def to_dict(self) -> Tree:
        """Plain data for YAML; :func:`make_suite` reads it back to the same suite."""
        return self.model_dump(mode="json") | {
            "budgets": {k: b.model_dump(exclude_none=True) for k, b in self.budgets.items()}
        }

    def settings(self, method: str, seed: int, length: Mapping[str, Any]) -> Tree:
        """The settings of one run; ``length`` is {"steps": n} or {"epochs": x}."""
        tree = merge(self.base, self.set, self.methods[method], {"seed": seed})
        tree = {key: _of_seed(value, seed) for key, value in tree.items()}
        schedule = tree.get("schedule") or {}
        if isinstance(schedule, dict):
            kept = {k: v for k, v in schedule.items() if k not in ("steps", "epochs")}
            tree["schedule"] = {**kept, **length}
        return tree

    def recipe(self, method: str, seed: int, length: Mapping[str, Any]) -> Recipe:
        return make_recipe(self.settings(method, seed, length))


def _of_seed(value: Any, seed: int) -> Any:
    """``value`` with the run's seed in the place of every ``{seed}``."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {key: _of_seed(inner, seed) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_of_seed(inner, seed) for inner in value]
    return value


def images_per_batch(recipe: Recipe) -> int:
    """Images decoded for one step: ceil(crops in a batch / crops of an image)."""
    return -(-recipe.data.batch_size // recipe.data.crops_per_image)


def load_suite(suite: str | Path) -> Suite:
    """Read a suite: the path of a YAML file, or the name of one shipped with ferkd.

    Raises InputError with one line for each mistake, those of the recipes included.
    """
    path = Path(suite).expanduser()
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return make_suite(parse_yaml(shipped_suite(str(suite)), f"suite {suite}", "suite"))
    try:
        return make_suite(read_yaml(path, "suite"))
    except FileNotFoundError:
        raise InputError(
            f"suite file {suite} does not exist; give a YAML file or a shipped suite's name "
            f"({', '.join(shipped_suites())})"
        ) from None
    except OSError as error:
        raise InputError(f"suite file {suite} cannot be read: {error}") from None


def with_seeds(suite: Suite, count: int) -> Suite:
    """The suite on the seeds 0 to ``count`` - 1. Raises InputError for less than one."""
    if count < 1:
        raise InputError(f"--seeds {count}: it must be at least 1")
    return suite.model_copy(update={"seeds": tuple(range(count))})


def shipped_suites() -> list[str]:
    """The names of the suites that come with ferkd."""
    files = (resources.files("ferkd.study") / "suites").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def shipped_suite(name: str) -> str:
    """The text of a shipped suite. Raises InputError for an unknown name."""
    known = shipped_suites()
    if name not in known:
        raise InputError(
            f"{name!r} is neither a run's folder, nor a suite file, nor a shipped suite; "
            f"{did_you_mean(name, known)}"
        )
    return (resources.files("ferkd.study") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The remedy for an unknown name."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def make_suite(settings: Tree) -> Suite:
    """A suite from plain data. Raises InputError with one line for each mistake."""
    given, mistakes = dict(settings), list[str]()
    base = given.get("base")
    if isinstance(base, str):
        given["base"] = base = read_settings(base)
    for key in ("base", "set"):
        if isinstance(given.get(key), dict):
            given[key] = expand(given[key], f"suite.{key}")
    methods = _named(given, "methods", mistakes)
    for name, tree in methods.items():
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            mistakes.append(f"suite.methods.{name}: got {tree!r}; must be keys of a recipe")
            tree = {}
        methods[name] = expand(tree, f"suite.methods.{name}")
    for where, tree in {"set": given.get("set") or {}, **methods}.items():
        mistakes += [
            f"suite.{'' if where == 'set' else 'methods.'}{where}: {key} is not a method's to "
            "set; " + ("use seeds" if key == "seed" else "use budgets")
            for key in _OURS
            if isinstance(tree, dict) and _holds(tree, key)
        ]
    given["methods"] = methods
    given["budgets"] = _budgets(given, mistakes)
    given.setdefault("baseline", "hard" if "hard" in methods else next(iter(methods), ""))
    try:
        suite = Suite.model_validate(given)
    except ValidationError as error:
        mistakes += explain(error, Suite, "suite")
        raise InputError("\n".join(mistakes)) from None
    mistakes += _check(suite) or ([] if mistakes else _check_recipes(suite))
    if mistakes:
        raise InputError("\n".join(mistakes))
    return suite


def _holds(tree: Tree, key: str) -> bool:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _named(given: Tree, part: str, mistakes: list[str]) -> Tree:
    """The mapping ``part`` with names as text, each fit for a folder's name."""
    value = given.get(part)
    if not isinstance(value, dict) or not value:
        mistakes.append(f"suite.{part}: got {value!r}; must be a mapping of names, at least one")
        return {}
    for name in value:
        if not _NAME.fullmatch(str(name)) or not str(name).isprintable():
            mistakes.append(
                f"suite.{part}: the name {str(name)!r} becomes a folder's: it must be at most 80 "
                "characters, without / or \\, and not begin with a dot, a hyphen or a space"
            )
    return {str(name): entry for name, entry in value.items()}


def _budgets(given: Tree, mistakes: list[str]) -> dict[str, Budget]:
    budgets = {}
    for name, entry in _named(given, "budgets", mistakes).items():
        try:
            budgets[name] = Budget.model_validate(entry)
        except ValidationError as error:
            mistakes += explain(error, Budget, f"suite.budgets.{name}")
    return budgets


def _check(suite: Suite) -> list[str]:
    mistakes = []
    if suite.methods and suite.baseline not in suite.methods:
        mistakes.append(
            f"suite.baseline: {suite.baseline!r} is not among the methods; "
            f"{did_you_mean(suite.baseline, suite.methods)}"
        )
    if not suite.seeds or len({*suite.seeds}) < len(suite.seeds) or min(suite.seeds) < 0:
        mistakes.append(
            f"suite.seeds: got {list(suite.seeds)}; must be whole numbers from 0, each once"
        )
    if reserved := {"suite.yaml"} & suite.budgets.keys():
        mistakes.append(f"suite.budgets: the name {reserved.pop()!r} is taken; choose another")
    return mistakes


def _check_recipes(suite: Suite) -> list[str]:
    """The mistakes of the methods' recipes; what all methods get wrong is said once."""
    by_method: dict[str, list[str]] = {}
    for method in suite.methods:
        try:
            recipe = suite.recipe(method, suite.seeds[0], {"steps": 1})
        except InputError as error:
            by_method[method] = str(error).splitlines()
            continue
        if recipe.data.val is None:
            by_method[method] = ["recipe.data.val: missing; a comparison needs it to measure on"]
    shared = set.intersection(*map(set, by_method.values())) if by_method else set()
    shared = shared if len(by_method) == len(suite.methods) else set()
    everywhere = [line for line in next(iter(by_method.values()), []) if line in shared]
    own = [
        f"suite.methods.{method}: {line}"
        for method, lines in by_method.items()
        for line in lines
        if line not in shared
    ]
    return [f"suite.base: {line}" for line in everywhere] + own
