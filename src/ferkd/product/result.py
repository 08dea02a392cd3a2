"""What a distillation found, phase by phase: the JSON of result.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferkd.system.results import Result


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherResult(Result):
    """The teacher on val; ``probe_top1`` is that of its linear probe, None where none was fit."""

    spec: str
    top1: float
    probe_top1: float | None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelsResult(Result):
    """The labels; ``agreement`` is the share that is right, None where nobody knows."""

    crops_per_image: int
    agreement: float | None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class StudentResult(Result):
    """A student on val, the mean over its seeds, and how fast the first of them is on a CPU."""

    name: str
    top1: float
    nll: float
    ece: float
    parameters: int
    ms_per_image: float
    seeds: list[float] | None = None
    method: str | None = None
    reason: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Difference(Result):
    """A difference in top-1 in points, with its 95 % interval over so many images."""

    points: float
    low: float
    high: float
    images: int


def told(found: Mapping[str, Any], seeds: int = 1) -> str:
    """A :class:`Difference` in words; whether its interval leaves 0 out is said too, and of how
    many ``seeds`` it compares the first."""
    low, high = found["low"], found["high"]
    of = "" if seeds == 1 else f", the first of {seeds} seeds"
    end = "" if low > 0 or high < 0 else ": not told apart"
    points, images = found["points"], found["images"]
    return f"{points:+.1f} points [{low:+.1f}, {high:+.1f}] on {images:,} images{of}{end}"


def seeds_of(student: Mapping[str, Any]) -> int:
    """How many seeds a :class:`StudentResult` is the mean of."""
    return len(student.get("seeds") or [student])


@dataclass(frozen=True, eq=False, kw_only=True)
class Distilled(Result):
    """What a distillation leaves in result.json."""

    teacher: TeacherResult
    labels: LabelsResult
    student: StudentResult
    baseline: StudentResult | None
    difference: Difference | None = None  # the first student less the first baseline
    model: str
    run: str
    report: str
    seconds: float
    plan: dict[str, Any]
    commands: dict[str, str]
