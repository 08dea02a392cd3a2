"""What a run leaves in result.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd.system.plain import read_json
from ferkd.system.results import Result
from ferkd.training.folder import RESULT


@dataclass(frozen=True, eq=False, kw_only=True)
class RunResult(Result):
    """The result of a training run.

    The figures are of the last evaluation (see :mod:`ferkd.evaluating.measures`), None without one.
    ``seconds`` are of training alone, ``decodes`` counts images read, ``data`` identifies images,
    classes, labels and teacher. ``thresholds`` to ``note`` say what FerKD found in the labels,
    ``partial`` from which step on a run saw how many labels of a store in the making.
    """

    method: str
    student: str
    seed: int
    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    balanced_accuracy: float | None = None
    epochs: float
    steps: int
    decodes: int | None = None
    seconds: float
    crops_per_second: float
    world_size: int | None = None
    data: str | None = None
    run: str
    thresholds: list[float] | None = None
    regions: dict[str, float] | None = None
    rescued: int | None = None
    note: str | None = None
    label_temperature: dict[str, Any] | None = None
    partial: list[dict[str, Any]] | None = None
    images_without_labels: int | None = None


def read_result(run: Path) -> RunResult:
    """The result in a finished run's folder. Raises InputError for what is none."""
    path = run / RESULT
    return RunResult.from_json(read_json(path, "result of a run"), path)
