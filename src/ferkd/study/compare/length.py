"""How long a run is: from a budget's count to steps, with a timed trial for seconds."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferkd.images import open_images
from ferkd.study.compare.folder import WantedRun
from ferkd.study.compare.suite import Budget, Suite, images_per_batch
from ferkd.system.files import write_json
from ferkd.training import folder as folders
from ferkd.training.metrics import read_metrics
from ferkd.training.recipe import Recipe

if TYPE_CHECKING:
    from ferkd.study.compare.execute import Execute

TRIAL = "trial.json"
_EVERY = 8  # steps between two readings of the clock
_MEASURED = 4  # readings that the rate is taken over


def steps_of(budget: Budget, recipe: Recipe, steps_per_second: float | None = None) -> int | None:
    """The optimiser steps of a budget for a recipe, at least one; None for a budget in epochs.

    A budget in seconds needs the measured ``steps_per_second``.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.decodes is not None:
        return max(1, round(budget.decodes / images_per_batch(recipe)))
    if budget.seconds is not None:
        if steps_per_second is None:
            raise ValueError("a budget in seconds needs a measured rate")
        return max(1, math.floor(budget.seconds * steps_per_second))
    return None


def run_length(suite: Suite, run: WantedRun, execute: Execute) -> dict[str, Any]:
    """{"steps": n} or {"epochs": x} for one run.

    For a budget in seconds the rate of the method is measured once for all its seeds and kept as
    trial.json in the folder of each, so that a continued suite has runs of one length.
    """
    budget = suite.budgets[run.budget]
    if budget.epochs is not None:
        return {"epochs": budget.epochs}
    recipe = suite.recipe(run.method, run.seed, {"steps": 1})
    rate = _rate(suite, run, execute) if budget.seconds is not None else None
    return {"steps": steps_of(budget, recipe, rate)}


def _rate(suite: Suite, run: WantedRun, execute: Execute) -> float:
    own = run.folder / TRIAL
    known = [own] + [run.folder.with_name(f"{run.method}-{seed}") / TRIAL for seed in suite.seeds]
    file = next((path for path in known if path.is_file()), None)
    if file is None:
        trial = measure_rate(suite, run, execute)
    else:
        trial = json.loads(file.read_text(encoding="utf-8"))
    if file != own:
        write_json(own, trial)
    return float(trial["steps_per_second"])


def measure_rate(suite: Suite, run: WantedRun, execute: Execute) -> dict[str, Any]:
    """Train a few steps in a folder that is deleted, and read the rate off its clock.

    The first steps, where things are made ready, do not count; with a cache of decoded images
    neither does the first pass over them.
    """
    recipe = suite.recipe(run.method, run.seed, {"steps": 1})
    unready = _EVERY
    if recipe.data.cache != "none":
        unready += math.ceil(len(open_images(recipe.data.images)) / images_per_batch(recipe))
    first = math.ceil(unready / _EVERY) * _EVERY
    settings = recipe.to_dict()
    settings["data"]["val"] = None
    settings["schedule"] |= {"steps": first + _MEASURED * _EVERY, "epochs": None}
    settings |= {"log_steps": _EVERY, "tensorboard": False, "checkpoint_seconds": 1e9}
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=run.folder.parent) as folder:
        out = Path(folder) / "run"
        out.mkdir()
        folders.write_recipe(out, settings)
        log = run.folder.with_name(f"{run.folder.name}.log")
        execute(out / folders.RECIPE, out, log=log, steps=lambda share: None)
        lines = {x["step"]: x for x in read_metrics(out / folders.METRICS)}
    steps = _MEASURED * _EVERY
    seconds = lines[first + steps]["seconds"] - lines[first]["seconds"]
    return {
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "unmeasured_steps": first,
    }
