"""Several recipes on one loader: every batch is read and decoded once and trains each student.

Each run has its own optimiser, mixing, random numbers, evaluation and folder. It is the run that
its recipe gives alone, to the bit on the CPU, and can be continued alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ferkd.methods import METHODS
from ferkd.system.compute import resolve_device
from ferkd.system.distributed import process_group
from ferkd.system.errors import InputError
from ferkd.system.interrupt import Interrupt
from ferkd.system.storage import local_path
from ferkd.training.checkpoint import random_state, restore_random_state
from ferkd.training.course import Progress, Run
from ferkd.training.result import RunResult
from ferkd.training.run import begin

if TYPE_CHECKING:
    from ferkd.loading.batch import Batch
    from ferkd.training.recipe import Recipe


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
    else as :func:`ferkd.training.train` does.
    """
    check_shared(recipes)
    device = next(iter(recipes.values())).device
    with process_group(resolve_device(device).type == "cuda"), ExitStack() as holding:
        begun: dict[str, Run | RunResult] = {}
        apart: dict[str, _Apart] = {}
        for name, recipe in recipes.items():
            shared = next((one.run.data for one in apart.values()), None)
            told = None if apart else progress
            run = begin(
                recipe,
                local_path(out) / name,
                resume=resume,
                overwrite=overwrite,
                progress=told,
                data=shared,
            )
            begun[name] = run
            if isinstance(run, Run):
                holding.callback(run.close)
                apart[name] = _Apart(run)
        if apart:
            _go(list(apart.values()))
        return {name: run.finish() if isinstance(run, Run) else run for name, run in begun.items()}


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
        "loss.label_temperature": settings["loss"].get("label_temperature"),
        "loss.truth_share": settings["loss"].get("truth_share"),
        "regions": settings["regions"] if method.regions or recipe.loss.mined else None,
        "teacher": (settings["teacher"], settings["teacher_precision"]) if method.teacher else None,
    }


@dataclass
class _Branch:
    """A trainer's own view of the shared stream of batches, which begins at step ``first``."""

    stream: Iterator[Batch]
    first: int

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        yield from islice(self.stream, start - self.first, stop - self.first)


class _Apart:
    """A run whose random numbers are its own, though others take steps between its steps."""

    def __init__(self, run: Run) -> None:
        self.run, self.interrupted = run, False
        self._random = random_state()

    def begin(self, interrupt: Interrupt) -> None:
        self._steps = self.run.steps(interrupt)

    def step(self) -> bool:
        """Take a step; False where there is none left, or the run was interrupted and saved."""
        restore_random_state(self._random)
        try:
            next(self._steps)
        except StopIteration:
            return False
        except KeyboardInterrupt:
            self.interrupted = True
            return False
        self._random = random_state()
        return True


def _go(runs: list[_Apart]) -> None:
    """Take the steps of all runs in turn: none is more than one ahead, so one batch is kept."""
    trainers = [one.run.trainer for one in runs]
    first = min(trainer.step for trainer in trainers)
    last = max(trainer.steps for trainer in trainers)
    stream = trainers[0].loader.batches(first, last)
    with closing(cast(Any, stream)), Interrupt() as interrupt:
        for trainer, branch in zip(trainers, tee(stream, len(trainers)), strict=True):
            trainer.loader = _Branch(branch, first)
        left = runs
        for one in left:
            one.begin(interrupt)
        while left:
            left = [one for one in left if one.step()]
    if any(one.interrupted for one in runs):
        raise KeyboardInterrupt
