"""Hinton's distillation from a live teacher, with the ground truth beside it."""

from __future__ import annotations

from pydantic import Field

from ferkd.methods.base import ONE_CROP, Method, Setup, Taught
from ferkd.methods.hard import HardLabels
from ferkd.methods.live import LiveTeacher
from ferkd.methods.stored import check_truth


class Settings(Taught):
    """``objective`` of the student and the teacher; ``label_smoothing`` is of its hard term."""

    objective: str = "kl"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


def _make(settings: Settings, setup: Setup) -> LiveTeacher:
    assert setup.teacher is not None
    objective, hard = settings.build(), HardLabels(settings.label_smoothing)
    check_truth(settings.objective, objective, setup)
    return LiveTeacher(setup.teacher, objective, hard, mean=setup.mean, std=setup.std)


METHOD = Method(
    name="kd",
    card=__doc__,
    make=_make,
    settings=Settings,
    teacher=True,
    truth=True,
    defaults={"data": ONE_CROP},
)
