"""Finished runs as a comparison reads them, and how run folders that are given are grouped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd.study.compare.trees import flatten
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.system.plain import read_json, read_yaml
from ferkd.training import folder as folders
from ferkd.training.metrics import read_metrics

# Keys in which runs may differ and still be repetitions of one method: what a seed or a budget
# sets, and what does not change a result.
_SAME_METHOD = {
    "seed",
    "schedule.steps",
    "schedule.epochs",
    "data.workers",
    "data.cache",
    "evaluation.batch_size",
    "evaluation.every_epochs",
    "checkpoint_seconds",
    "log_steps",
    "tensorboard",
}
# Keys that decide what is measured: where they differ, so do more things than the method.
_SAME_QUESTION = ("data.val", "data.image_size", "student.name", "evaluation.crop_fraction")
# Keys, and beginnings of keys, that a comparison of methods keeps equal between them.
_SAME_TERMS = (
    "data.images",
    "data.batch_size",
    "data.crops_per_image",
    "student.",
    "optimizer.",
    "schedule.warmup",
    "schedule.min_lr",
    "schedule.image_size",
    "ema",
    "precision",
    "clip_grad",
    "frozen_statistics",
)


# What ferkd compare leaves in a run's folder: the cores that others kept busy meanwhile.
_COMPANY = "company.json"
_ALONE = 0.1  # cores: what a quiet machine does besides


@dataclass(frozen=True)
class Run:
    """A finished run: its settings by dotted key, its result and its evaluations by step.

    ``top1``, ``nll`` and other figures are read with :meth:`figure`; counts are of the whole run.
    ``alone``: whether it is known that the machine did nothing else meanwhile, so that its seconds
    may be compared.
    """

    folder: Path
    seed: int
    recipe: dict[str, Any]
    result: dict[str, Any]
    evaluations: dict[int, dict[str, Any]]
    alone: bool = False

    @property
    def method(self) -> str:
        return str(self.recipe["method"])

    @property
    def steps(self) -> int:
        return int(self.result["steps"])

    @property
    def seconds(self) -> float:
        """Training alone, evaluations left out."""
        return float(self.result["seconds"])

    @property
    def crops(self) -> int:
        return self.steps * self._images_per_batch * int(self.recipe["data.crops_per_image"])

    @property
    def decodes(self) -> int:
        """Images decoded (or taken from the cache) in the whole run."""
        return int(self.result.get("decodes") or self.decodes_at(self.steps))

    def decodes_at(self, step: int) -> int:
        """Images decoded up to ``step``; from the batch's size where the run did not count."""
        counted = self.evaluations.get(step, {}).get("decodes")
        return int(counted) if counted is not None else step * self._images_per_batch

    def figure(self, key: str) -> float | None:
        """A figure of the final evaluation; None where the run has none."""
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) else None

    @property
    def _images_per_batch(self) -> int:
        crops, m = int(self.recipe["data.batch_size"]), int(self.recipe["data.crops_per_image"])
        return -(-crops // m)


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``; None while it is unfinished. Raises InputError for what is no run."""
    recipe_file, result_file = folder / folders.RECIPE, folder / folders.RESULT
    if not recipe_file.is_file():
        raise InputError(
            f"{folder} is no run's folder (it has no {folders.RECIPE}); name folders that "
            "ferkd train --out wrote"
        )
    if not result_file.is_file():
        return None
    try:
        recipe = read_yaml(recipe_file, "recipe")
        result = read_json(result_file, "result of a run")
        flat = flatten(recipe)
        lines = [x for x in read_metrics(folder / folders.METRICS) if x.get("kind") == "eval"]
        evaluations = {x["step"]: x for x in lines}
        run = Run(folder, int(flat["seed"]), flat, dict(result), evaluations, _alone(folder))
        _ = run.method, run.steps, run.seconds, run.crops, run.decodes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder}: the files of this run cannot be read ({type(error).__name__}: {error}); "
            "restore them or leave the run out"
        ) from None
    return run


def write_company(folder: Path, others: float | None) -> None:
    """Keep beside a run how many cores others kept busy meanwhile; None: not known, or some."""
    write_json(folder / _COMPANY, {"others": others})


def _alone(folder: Path) -> bool:
    try:
        others = read_json(folder / _COMPANY, "note on a run").get("others")
    except (OSError, InputError):
        return False
    return isinstance(others, int | float) and others <= _ALONE


@dataclass(frozen=True)
class Grouped:
    """Runs by budget and by method, in the order given; ``notes`` say what to beware of."""

    budgets: dict[str, dict[str, list[Run]]]
    notes: tuple[str, ...]


def group_runs(given: Iterable[Path]) -> Grouped:
    """Group run folders: budgets by the number of steps, methods by name and differing keys.

    Runs of one method whose recipes differ are told apart by what differs: ``ferkd
    regions.epsilon=0.2``. Unfinished runs are left out with a note. Raises InputError where no
    run is finished, and where two runs are the same method, budget and seed.
    """
    notes, runs = [], []
    for folder in dict.fromkeys(given):
        run = read_run(folder)
        if run is None:
            notes.append(f"{folder} has not finished and is left out")
        else:
            runs.append(run)
    if not runs:
        raise InputError("no finished run among those given; finish one with ferkd train --resume")
    for key in _SAME_QUESTION:
        values = list(dict.fromkeys(str(run.recipe.get(key)) for run in runs))
        if len(values) > 1:
            notes.append(f"the runs differ in {key}: {', '.join(values)}")
    notes += unequal_terms(runs)
    names = _names(runs)
    budgets: dict[str, dict[str, list[Run]]] = {}
    for run, name in sorted(zip(runs, names, strict=True), key=lambda pair: pair[0].steps):
        group = budgets.setdefault(f"{run.steps} steps", {}).setdefault(name, [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise InputError(
                f"{twin.folder} and {run.folder} are the same method ({name}) with the same seed "
                f"{run.seed}; give one of them"
            )
        group.append(run)
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    ordered = {
        budget: dict(sorted(methods.items(), key=lambda item: order[item[0]]))
        for budget, methods in budgets.items()
    }
    return Grouped(ordered, tuple(notes))


def _is_kept_equal(key: str) -> bool:
    return key.startswith(_SAME_TERMS) and key not in _SAME_QUESTION


def unequal_terms(runs: Sequence[Run]) -> list[str]:
    """One line for each key in which runs of different methods differ, but should not."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    lines = []
    for key in keys:
        if not _is_kept_equal(key):
            continue
        values: dict[str, dict[str, None]] = {}
        for run in runs:
            shown = str(run.recipe.get(key, "unset"))
            values.setdefault(run.method, {})[shown] = None
        if len({frozenset(of) for of in values.values()}) > 1:
            words = "; ".join(f"{method} {', '.join(of)}" for method, of in values.items())
            lines.append(f"the methods differ in {key}, too: {words}")
    return lines


def other_terms(methods: Mapping[str, Sequence[Run]], baseline: str) -> list[str]:
    """One line for each key that a comparison keeps equal and a method has unlike the baseline."""
    if not methods.get(baseline):
        return []
    terms = methods[baseline][0].recipe
    found: dict[str, dict[str, list[str]]] = {}
    for method, recipe in ((name, runs[0].recipe) for name, runs in methods.items() if runs):
        for key in {**terms, **recipe}:
            if _is_kept_equal(key) and recipe.get(key) != terms.get(key):
                value = str(recipe.get(key, "unset"))
                found.setdefault(key, {}).setdefault(value, []).append(method)
    return [
        f"not on {baseline}'s terms: {key} "
        + "; ".join(f"{value} ({', '.join(of)})" for value, of in values.items())
        + f" instead of {terms.get(key, 'unset')}"
        for key, values in found.items()
    ]


def other_data(methods: Mapping[str, Sequence[Run]]) -> list[str]:
    """One line for each method whose seeds were trained on different images or labels."""
    lines = []
    for method, runs in methods.items():
        seeds: dict[str, list[str]] = {}
        for run in runs:
            if (data := run.result.get("data")) is not None:
                seeds.setdefault(str(data), []).append(str(run.seed))
        if len(seeds) > 1:
            words = " / ".join(", ".join(of) for of in seeds.values())
            lines.append(
                f"{method}: the images, their classes, the labels or the teacher are not the same "
                f"for all seeds ({words}); its mean and deviation mix them"
            )
    return lines


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its method, and the keys in which runs of that method differ."""
    differing: dict[str, list[str]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        recipes = [run.recipe for run in runs if run.method == method]
        keys = dict.fromkeys(key for recipe in recipes for key in recipe)
        differing[method] = [
            key
            for key in keys
            if key not in _SAME_METHOD and len({repr(r.get(key)) for r in recipes}) > 1
        ]
    return [
        " ".join([run.method, *(f"{k}={run.recipe.get(k)}" for k in differing[run.method])])
        for run in runs
    ]
