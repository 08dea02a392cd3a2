"""What a method of training is: its settings, what it needs, how its loss is made, its card.

A method is one file: a :class:`Method` named ``METHOD`` in a module of this room, or one of another
package that names it as an entry point ``ferkd.methods``, or any ``package.module:name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ferkd import objectives
from ferkd.store import LabelStore
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part

if TYPE_CHECKING:
    from ferkd.models.teacher import Teacher
    from ferkd.objectives import Objective

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """What the student is shown at a step, and what is known of it; all on its device.

    ``images`` float32 [B, 3, S, S], normalised and mixed; ``labels`` the stored labels, mixed
    alike, or mixed hard labels where none are stored, None without either; ``targets`` int64 [B]
    the ground truth, of the larger part of a mixed row, -1 for none; ``rows`` int64 [B] each
    row's image (for a mixed row the first of the two) and ``crops`` int64 [B] its crop number.
    ``features`` float32 [B, d] are the stored ones of that image and crop, of methods that ask for
    them: they are not mixed.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor
    features: Tensor | None = None

    def part(self, some: slice) -> View:
        """Some rows of it."""
        return View(
            self.images[some],
            None if self.labels is None else self.labels[some],
            self.targets[some],
            self.rows[some],
            self.crops[some],
            None if self.features is None else self.features[some],
        )


# logits float32 [B, C] and the view that they answer -> the loss, a scalar. It may have a state;
# see ferkd.training.trainer.Stateful.
Loss = Callable[[Tensor, View], Tensor]


@dataclass(frozen=True)
class Setup:
    """What a method's loss depends on besides its settings.

    ``images`` in the data, ``unlabelled`` of them without ground truth; ``batch_size`` crops a
    step; ``mean`` and ``std`` are the student's, of pixels in 0 .. 1.
    """

    num_classes: int
    images: int
    batch_size: int
    steps: int
    device: torch.device
    mean: Triple
    std: Triple
    teacher: Teacher | None = None
    store: LabelStore | None = None
    unlabelled: int = 0


class LossSettings(Part):
    """The part ``loss`` of a recipe, whose keys are the method's."""


class Taught(LossSettings):
    """Settings of a method that has a teacher: ``objective`` is minimised, with its ``options``."""

    objective: str = "soft_ce"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _objective_exists(self) -> Taught:
        self.build()  # its InputError is a ValueError
        return self

    def build(self) -> Objective:
        return objectives.build(self.objective, **self.options)


def _nothing(recipe: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """A way of training a student.

    ``make(settings, setup)`` gives the loss, with ``settings`` of the model ``settings``; it raises
    InputError for what cannot be. ``labels``: none, those of stored "crops", or a label "map" an
    image. ``teacher``: a live one. ``truth``: the class of every image. ``regions``: labels are
    calibrated by their region. ``features``: a teacher's stored features of the crops, in
    `Batch.features`. ``defaults``: settings of the recipe's other parts where it says
    nothing. ``refuses(recipe)`` says in a line what keeps a recipe from being trained, or None.
    """

    name: str
    card: str
    make: Callable[[Any, Setup], Loss]
    settings: type[LossSettings] = LossSettings
    labels: Literal["none", "crops", "map"] = "none"
    teacher: bool = False
    truth: bool = False
    regions: bool = False
    features: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuses: Callable[[Any], str | None] = _nothing


# Ordinary training, where each decoded image shows one crop.
ONE_CROP = {"crops_per_image": 1}
