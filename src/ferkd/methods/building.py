"""From a recipe's method to the loss that its trainer minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ferkd import objectives
from ferkd.loading.map_crops import kept_classes
from ferkd.methods.adversary import Adversary
from ferkd.methods.live import LiveTeacher
from ferkd.methods.plain import HardLabels
from ferkd.methods.pskd import OwnPredictions
from ferkd.methods.stored import StoredLabels, as_kind
from ferkd.objectives import Kl
from ferkd.store import LabelStore, SoftLabels
from ferkd.system.errors import InputError

if TYPE_CHECKING:
    from ferkd.models.teacher import Teacher
    from ferkd.training.recipe import Recipe
    from ferkd.training.trainer import View

_TRIED = 16  # images, and crops of each, that the loss is tried on before a run

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Setup:
    """What a method's loss depends on besides its recipe.

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


def build(recipe: Recipe, setup: Setup) -> Callable[[Tensor, View], Tensor]:
    """The loss ``(logits, view)`` of a recipe's method. Raises InputError for what cannot be."""
    loss = recipe.loss
    hard = HardLabels(loss.label_smoothing)
    if recipe.method == "hard":
        return hard
    if recipe.method == "pskd":
        return OwnPredictions(
            setup.images,
            setup.num_classes,
            epochs=setup.steps * setup.batch_size / setup.images,
            batch_size=setup.batch_size,
            own_share=loss.own_share,
            device=setup.device,
        )
    objective = objectives.build(loss.objective, **loss.options)
    _check_truth(loss.objective, objective, setup)
    if setup.teacher is not None:
        if recipe.method == "funmatch":
            assert isinstance(objective, Kl)
            objective = objective.model_copy(update={"ce_weight": 0.0, "kd_weight": 1.0})
        return LiveTeacher(setup.teacher, objective, hard, mean=setup.mean, std=setup.std)
    kind = loss.label_kind if recipe.method == "fkd" else "soft"
    stored = StoredLabels(objective, kind)
    _try(loss.objective, stored, setup)
    if recipe.method == "meal_v2" and loss.discriminator > 0:
        return Adversary(stored, setup.num_classes, weight=loss.discriminator, device=setup.device)
    return stored


def _check_truth(name: str, objective: objectives.Objective, setup: Setup) -> None:
    if setup.unlabelled and getattr(objective, "needs_truth", False):
        raise InputError(
            f"loss.objective {name} needs the true class of every image, which "
            f"{setup.unlabelled} of {setup.images} images do not have; use soft_ce, kl or jeffreys"
        )


def _try(name: str, stored: StoredLabels, setup: Setup) -> None:
    """Let an objective that cannot use these labels say so before the run begins."""
    store = setup.store
    if store is None:
        return
    if store.geometry.crops.is_map:
        _try_pooled(name, stored, setup)
        return
    images = np.unique(np.linspace(0, len(store) - 1, _TRIED).astype(np.int64))
    crops = np.arange(min(_TRIED, store.crops_per_image))
    rows, crops = (both.reshape(-1) for both in np.meshgrid(images, crops, indexing="ij"))
    labels = as_kind(store.labels(rows, crops), stored.kind)
    targets = torch.from_numpy(store.targets[rows].astype(np.int64))
    stored.objective(torch.zeros(len(rows), setup.num_classes), labels, targets)


def _try_pooled(name: str, stored: StoredLabels, setup: Setup) -> None:
    """The same of labels as they are pooled from maps, which keep no more than some classes."""
    classes, kept = setup.num_classes, kept_classes(setup.num_classes)
    targets = torch.zeros(2, dtype=torch.int64)
    logits = torch.zeros(2, classes)
    labels = SoftLabels.from_logits(logits, targets, kept).with_truth(targets)
    try:
        stored.objective(logits, labels, targets)
    except InputError as error:
        if kept == classes:
            raise
        raise InputError(
            f"loss.objective {name} cannot use the labels of method relabel, which keeps the "
            f"{kept} most probable of {classes} classes of a crop, whatever the maps hold "
            f"({str(error).partition(';')[0]}); use another objective or other loss.options, or "
            "a live teacher (method kd)"
        ) from error
