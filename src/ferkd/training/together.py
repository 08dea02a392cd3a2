"""Several recipes on one loader: every batch is read and decoded once and trains each student.

Each run has its own optimiser, mixing, random numbers, evaluation and folder. It is the run that
its recipe gives alone, to the bit on the CPU, and can be continued alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ferkd.evaluating.predictions import NonFiniteOutputs
from ferkd.methods import METHODS
from ferkd.system.compute import resolve_device
from ferkd.system.distributed import process_group
from ferkd.system.errors import InputError
from ferkd.system.interrupt import Interrupt
from ferkd.system.storage import local_path
from ferkd.training.checkpoint import random_state, restore_random_state
from ferkd.training.course import Progress, Run
from ferkd.training.result import RunResult
from ferkd.training.run import Ready, ready
from ferkd.training.trainer import NonFiniteLoss

if TYPE_CHECKING:
    from ferkd.loading.batch import Batch
    from ferkd.training.recipe import Recipe

log = logging.getLogger("ferkd")


def train_together(
    recipes: Mapping[str, Recipe],
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, RunResult]:
    """Train the ``recipes`` by name on one loader; each leaves its run in ``out``/NAME.

    Returns their results by name. ``progress`` is called with the lines of the first run, to which
    the others keep pace. Raises InputError for recipes whose batches differ, naming the keys, and
    else as :func:`ferkd.training.train` does. A run whose training diverges leaves the others
    alone: they are finished before its RuntimeError is raised.
    """
    check_shared(recipes)
    device = next(iter(recipes.values())).device
    with process_group(resolve_device(device).type == "cuda"), ExitStack() as holding:
        results: dict[str, RunResult] = {}
        waiting: dict[str, Ready] = {}
        for name, recipe in recipes.items():
            shared = next((one.data for one in waiting.values()), None)
            found = ready(
                recipe,
                local_path(out) / name,
                resume=resume,
                overwrite=overwrite,
                progress=None if waiting else progress,
                data=shared,
            )
            if isinstance(found, Ready):
                holding.callback(found.close)
                waiting[name] = found
            else:
                results[name] = found
        apart = {name: _Apart(name, one.begin()) for name, one in waiting.items()}
        if apart:
            _go(list(apart.values()))
        failures = {name: one.failure for name, one in apart.items() if one.failure is not None}
        results |= {name: one.run.finish() for name, one in apart.items() if name not in failures}
        for name, failure in failures.items():
            raise type(failure)(f"run {name}: {failure}") from failure
        return {name: results[name] for name in recipes}


def check_shared(recipes: Mapping[str, Recipe]) -> None:
    """Raise InputError unless the recipes train on the same batches, naming where they differ."""
    if growing := [name for name, recipe in recipes.items() if recipe.data.partial]:
        raise InputError(
            f"recipe {growing[0]} has data.partial, which one run alone can follow; train it by "
            "itself, or wait until the store is finished"
        )
    (first, one), *others = ((name, _deciding(recipe)) for name, recipe in recipes.items())
    for name, other in others:
        if differing := [key for key in one if one[key] != other[key]]:
            raise InputError(
                f"recipes {first} and {name} do not train on the same batches: they differ in "
                f"{', '.join(differing)}; make these the same, or train them one after the other"
            )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide which batches a run is given."""
    method, settings = METHODS[recipe.method], recipe.to_dict()
    data = {f"data.{key}": value for key, value in settings["data"].items() if key != "val"}
    sizes = settings["schedule"]["image_size"]
    return {
        **data,
        "seed": recipe.seed,
        "device": recipe.device,
        "schedule.image_size": sizes,
        # Sizes follow the run's length, which otherwise may differ.
        "schedule": settings["schedule"] if sizes else None,
        "method (the labels that it reads)": (
            method.labels,
            method.features,
            recipe.loss.reads_labels,
            recipe.loss.learns_labels,
        ),
        # Not of the batches, but the runs share what says how many classes there are.
        "loss.beside (whether there are classes)": recipe.loss.has_classes,
        "loss.label_temperature": settings["loss"].get("label_temperature", 1.0),
        "loss.truth_share": settings["loss"].get("truth_share", 0.0),
        "regions": settings["regions"] if method.regions or recipe.loss.mined else None,
        **{key: value if method.teacher else None for key, value in _teacher(recipe).items()},
    }


def _teacher(recipe: Recipe) -> dict[str, Any]:
    """What decides the answers of a live teacher."""
    return {
        "teacher": recipe.teacher,
        "teacher_precision (unset: precision)": recipe.teacher_precision or recipe.precision,
        "class_map": recipe.class_map,
    }


class _Shared:
    """A stream of batches for several trainers, whose steps from ``first`` on none asks back for:
    the last batch alone is kept."""

    def __init__(self, stream: Iterator[Batch], first: int) -> None:
        self._stream, self._taken = stream, first
        self._last: Batch | None = None

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            while self._taken <= step:
                self._last = next(self._stream)
                self._taken += 1
            assert self._last is not None and self._taken == step + 1
            yield self._last


class _Apart:
    """A run whose random numbers are its own, though others take steps between its steps.

    ``failure`` is what ended it, where its student diverged: that is no matter of the others.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run, self.interrupted = name, run, False
        self.failure: NonFiniteLoss | NonFiniteOutputs | None = None
        self._random = random_state()

    def begin(self, interrupt: Interrupt) -> None:
        self._steps = self.run.steps(interrupt)

    def step(self) -> bool:
        """Take a step; False where there is none left, or the run failed or was interrupted."""
        restore_random_state(self._random)
        try:
            next(self._steps)
        except StopIteration:
            return False
        except KeyboardInterrupt:
            self.interrupted = True
            return False
        except (NonFiniteLoss, NonFiniteOutputs) as error:
            log.warning("run %s has failed, and the others go on: %s", self.name, error)
            self.failure = error
            return False
        self._random = random_state()
        return True


def _go(runs: list[_Apart]) -> None:
    """Take the steps of all runs in turn: none is more than one ahead.

    Of runs that were stopped at different steps those behind catch up first.
    """
    trainers = [one.run.trainer for one in runs]
    first = min(trainer.step for trainer in trainers)
    last = max(trainer.steps for trainer in trainers)
    stream = trainers[0].loader.batches(first, last)
    with closing(cast(Any, stream)), Interrupt() as interrupt:
        shared = _Shared(stream, first)
        for one in runs:
            one.run.trainer.loader = shared
            one.begin(interrupt)
        left = runs
        while left:
            behind = min(one.run.trainer.step for one in left)
            left = [one for one in left if one.run.trainer.step > behind or one.step()]
    if any(one.interrupted for one in runs):
        raise KeyboardInterrupt
