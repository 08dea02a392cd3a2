"""What a suite asks of the disk before it runs: data, labels, teachers, and runs of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ferkd.images import open_images
from ferkd.methods import METHODS
from ferkd.study.compare.folder import WantedRun
from ferkd.study.compare.length import steps_of
from ferkd.study.compare.suite import Suite
from ferkd.study.compare.trees import flatten
from ferkd.system.errors import InputError
from ferkd.system.plain import read_yaml
from ferkd.training import folder as folders
from ferkd.training.recipe import Recipe


def check_data(suite: Suite, wanted: Sequence[WantedRun]) -> None:
    """Raise InputError naming all that the unfinished runs read and that is not there or not fit.

    Images, the store of labels or of label maps, the live teacher and the student's weights, each
    where the method reads it.
    """
    users: dict[tuple[Any, ...], tuple[Callable[[], object], list[str]]] = {}
    for method, seed in dict.fromkeys((run.method, run.seed) for run in wanted if not run.finished):
        recipe = suite.recipe(method, seed, {"steps": 1})
        for key, check in _reads(recipe).items():
            users.setdefault(key, (check, []))[1].append(method)
    mistakes = []
    for check, methods in users.values():
        try:
            check()
        except InputError as error:
            mistakes.append(f"{', '.join(dict.fromkeys(methods))}: {error}")
    if mistakes:
        advice = "\nmake what is missing, or name the methods to run with --only"
        raise InputError("\n".join(mistakes) + advice)


def _reads(recipe: Recipe) -> dict[tuple[Any, ...], Callable[[], object]]:
    """What a recipe reads from the disk, each with its check; equal keys mean equal checks."""
    # Not at the top: it imports all of training, which reading a suite should not cost.
    from ferkd.training.data import check_live, open_store

    data, method, weights = recipe.data, METHODS[recipe.method], recipe.student.weights
    checks: dict[tuple[Any, ...], Callable[[], object]] = {}
    for folder in (data.images, data.val):
        if folder is not None:
            checks["images", folder] = partial(open_images, folder)
    if method.labels != "none":
        reads = (method.labels, method.features, recipe.loss.reads_labels)
        checks["store", data.store, *reads] = partial(open_store, recipe)
    if method.teacher:
        teacher = recipe.teacher or ""
        checks["teacher", teacher, data.image_size] = partial(check_live, teacher, recipe)
    if weights is not None:
        checks["weights", weights] = partial(_weights, weights)
    return checks


def _weights(path: Path) -> object:
    from ferkd.models.student import weights_file
    from ferkd.models.weights import read_state_dict

    return read_state_dict(weights_file(path))


def check_finished(suite: Suite, wanted: Sequence[WantedRun]) -> None:
    """Raise InputError where a finished run was made with other settings than it would be now."""
    found = other_settings(suite, wanted)
    if found:
        lines = [f"  {name}: {line}" for name, of in found.items() for line in of]
        raise InputError(
            "finished runs of this suite were made with other settings, as by another version of "
            "ferkd or of the suite's recipe:\n"
            + "\n".join(lines)
            + "\ndelete the folders of these runs to have them made anew, give another --out, or "
            "report them as they are with --report-only"
        )


def other_settings(suite: Suite, wanted: Sequence[WantedRun]) -> dict[str, list[str]]:
    """By name of a finished run one line for each key that decides its result and differs.

    The length counts, unless a budget in seconds found it. A key that the run's recipe lacks, as of
    an older ferkd, differs where the suite now gives it another value than its default.
    """
    found = {}
    for run in wanted:
        if run.finished and (lines := _changed(suite, run)):
            found[run.name] = lines
    return found


def _changed(suite: Suite, run: WantedRun) -> list[str]:
    path = run.folder / folders.RECIPE
    try:
        old = read_yaml(path, "recipe")
        known, length = flatten(folders.resolved(old)), _length(suite, run, old)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete the "
            "run's folder to have it made anew"
        ) from None
    new = suite.recipe(run.method, run.seed, length).to_dict()
    now = flatten(new)
    unread = _unread(new["method"]) if known.get("method") == new["method"] else ()
    unread += _unread_of_mixing(now["mix.kind"]) if known.get("mix.kind") == now["mix.kind"] else ()
    known, now = (
        {key: value for key, value in leaves.items() if not key.startswith(unread)}
        for leaves in (known, now)
    )
    return folders.differences(known, now)


def _unread(name: str) -> tuple[str, ...]:
    """The beginnings of the keys that a method does not read, so that they decide nothing."""
    method = METHODS[name]
    reads = {
        "regions.": method.regions,
        "teacher": method.teacher,
        "data.store": method.labels != "none",
        "data.crops.": method.labels != "crops",
    }
    return tuple(key for key, read in reads.items() if not read)


def _unread_of_mixing(kind: str) -> tuple[str, ...]:
    """The keys of mixing that this kind of it does not read."""
    unread = () if kind == "selfmix" else ("mix.operator",)
    return (*unread, "mix.alpha", "mix.probability") if kind == "none" else unread


def _length(suite: Suite, run: WantedRun, old: dict[str, Any]) -> dict[str, Any]:
    """The length that the run should have: by its budget, or as it is where seconds found it."""
    budget = suite.budgets[run.budget]
    if budget.seconds is not None:
        return {"steps": int(old["schedule"]["steps"])}
    if budget.epochs is not None:
        return {"epochs": budget.epochs}
    return {"steps": steps_of(budget, suite.recipe(run.method, run.seed, {"steps": 1}))}
