"""FunMatch: the student matches a live teacher as a function, on mixed images, without labels.

Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022.
"""

from __future__ import annotations

from typing import Any

from ferkd.methods.base import ONE_CROP, Method, Setup, Taught
from ferkd.methods.hard import HardLabels
from ferkd.methods.live import LiveTeacher
from ferkd.objectives.kl import Kl


class Settings(Taught):
    """``options`` of kl, whose weights are 0 of the truth and 1 of the teacher here."""

    objective: str = "kl"


def _make(settings: Settings, setup: Setup) -> LiveTeacher:
    assert setup.teacher is not None
    objective = settings.build()
    assert isinstance(objective, Kl)
    objective = objective.model_copy(update={"ce_weight": 0.0, "kd_weight": 1.0})
    return LiveTeacher(setup.teacher, objective, HardLabels(), mean=setup.mean, std=setup.std)


def _refuses(recipe: Any) -> str | None:
    if recipe.loss.objective == "kl":
        return None
    return (
        "method funmatch matches the teacher by loss.objective kl, not "
        f"{recipe.loss.objective}; leave it out, or use method kd"
    )


METHOD = Method(
    name="funmatch",
    card=__doc__,
    make=_make,
    settings=Settings,
    teacher=True,
    defaults={"data": ONE_CROP, "mix": {"kind": "mixup"}},
    refuses=_refuses,
)
