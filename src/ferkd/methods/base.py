"""What a method of training is: its settings, what it needs, how its loss is made, its card.

A method is one file: a :class:`Method` named ``METHOD`` in a module of this room, or one of another
package that names it as an entry point ``ferkd.methods``, or any ``package.module:name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

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
    them; where images are mixed, ``other_features`` are those of what a row is mixed with, and
    ``shares`` float32 [B] of its pixels are the row's own. ``beside`` is what the layers of a loss
    that is :class:`Attached` made of the student's features.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor
    features: Tensor | None = None
    other_features: Tensor | None = None
    shares: Tensor | None = None
    beside: Tensor | None = None

    def part(self, some: slice) -> View:
        """Some rows of it."""
        held: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        taken: dict[str, Any] = {
            name: None if of is None else of[some] for name, of in held.items()
        }
        return replace(self, **taken)


@runtime_checkable
class Attached(Protocol):
    """A loss with ``layers`` of its own on the student's features [B, d].

    They are trained with the student by its optimiser, saved in checkpoints by the loss's state,
    and no part of the weights that are kept. What they give comes as `View.beside`. With
    ``head_alone`` the student's head learns without a gradient into the rest of it.
    """

    layers: nn.Module
    head_alone: bool


# logits float32 [B, C] and the view that they answer -> the loss, a scalar. It may have a state;
# see ferkd.training.trainer.Stateful.
Loss = Callable[[Tensor, View], Tensor]


@dataclass(frozen=True)
class Setup:
    """What a method's loss depends on besides its settings.

    ``images`` in the data, ``unlabelled`` of them without ground truth; ``batch_size`` crops a
    step; ``mean`` and ``std`` are the student's, of pixels in 0 .. 1; ``features`` how many numbers
    its features are, 0 where the method has no use for them; ``seed`` the run's.
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
    features: int = 0
    seed: int = 0


class LossSettings(Part):
    """The part ``loss`` of a recipe, whose keys are the method's."""

    @property
    def reads_labels(self) -> bool:
        """Whether the labels of the store are read, where the method reads a store."""
        return True

    @property
    def learns_labels(self) -> bool:
        """Whether labels that are read are learnt from, so that batches hold them."""
        return True

    @property
    def has_classes(self) -> bool:
        """Whether the student has classes; without, it answers with its features."""
        return True

    @property
    def mined(self) -> bool:
        """Whether the labels' regions say which crops are shown, of a method without regions."""
        return False


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
    `Batch.features`. ``attached``: its loss is :class:`Attached`. ``defaults``: settings of the
    recipe's other parts where it says nothing. ``refuses(recipe)`` says in a line what keeps a
    recipe from being trained, or None.
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
    attached: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuses: Callable[[Any], str | None] = _nothing


# Ordinary training, where each decoded image shows one crop.
ONE_CROP = {"crops_per_image": 1}
