"""What the methods share that learn from a teacher's features of the crop.

A projector P maps the student's features, what its head is given, to the teacher's d numbers; a
``distance`` of its output to the teacher's features is minimised. The labels of the images may
train the student beside, or its head alone, or be absent: then the student has no head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from ferkd.methods.base import Loss, Setup, View
from ferkd.methods.hard import HardLabels
from ferkd.methods.stored import StoredSettings, stored
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

_MEAN_OF = 65_536  # crops that a store's mean is taken over
_CHUNK = 1024
Beside = Literal["none", "probe", "hard", "soft"]

# (projected, teacher's) float32 [B, d] -> the distance of each row, float32 [B]
Distance = Callable[[Tensor, Tensor], Tensor]


class FeatureSettings(StoredSettings):
    """What is learnt ``beside`` the features: "hard", the ground truth; "soft", the store's labels
    by ``objective``; "probe", the ground truth by the head alone, without a gradient into the rest
    of the student; "none", nothing: the student has no classes and no head.

    ``feature_weight`` is that of the features' term; what is beside counts once. ``projector``:
    "linear", or "mlp" with one hidden layer as wide as the student's features. ``by_regions``: the
    regions of the store's labels say which crops are shown, as for ferkd.
    """

    beside: Beside = "hard"
    feature_weight: float = Field(default=4.0, gt=0)
    projector: Literal["linear", "mlp"] = "linear"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    by_regions: bool = False

    @property
    def reads_labels(self) -> bool:
        return self.learns_labels or self.by_regions

    @property
    def learns_labels(self) -> bool:
        return self.beside == "soft"

    @property
    def has_classes(self) -> bool:
        return self.beside != "none"

    @property
    def mined(self) -> bool:
        return self.by_regions


class FeatureLoss:
    """``weight`` times the ``distance`` of projected to teacher's features, plus ``beside``.

    The teacher's features are taken less ``mean`` [d], which the loss keeps with the projector in
    its state. Of a mixed row the distance is that to the features of both crops, by the shares of
    their pixels. It is a mean over rows, so it may be taken in parts unless ``beside`` may not.
    """

    def __init__(
        self,
        projector: nn.Module,
        mean: Tensor,
        distance: Distance,
        *,
        weight: float,
        beside: Loss | None = None,
        head_alone: bool = False,
    ) -> None:
        self.layers, self.mean, self.distance = projector, mean, distance
        self.weight, self.beside, self.head_alone = weight, beside, head_alone

    @classmethod
    def made(
        cls, settings: FeatureSettings, setup: Setup, mean: Tensor, distance: Distance, **more: Any
    ) -> Self:
        """The loss that ``settings`` ask for, of features of the ``mean`` [d]; ``more`` is what a
        class of its own takes besides. Raises InputError as :func:`loss_beside` does."""
        return cls(
            projector(settings.projector, len(mean), setup),
            mean.to(setup.device),
            distance,
            weight=settings.feature_weight,
            beside=loss_beside(settings, setup),
            head_alone=settings.beside == "probe",
            **more,
        )

    @property
    def whole_batch(self) -> bool:
        return bool(getattr(self.beside, "whole_batch", False))

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The loss of ``logits`` [B, C] and of the view's ``beside`` [B, d]."""
        assert view.beside is not None
        loss = self.weight * self.term(view.beside, view)
        return loss if self.beside is None else loss + self.beside(logits, view)

    def term(self, projected: Tensor, view: View) -> Tensor:
        """The mean distance of ``projected`` [B, d] to the features of the view."""
        assert view.features is not None
        found = self.distance(projected, view.features - self.mean)
        if view.other_features is not None and view.shares is not None:
            other = self.distance(projected, view.other_features - self.mean)
            found = torch.lerp(other, found, view.shares)
        return found.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"layers": self.layers.state_dict(), "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.layers.load_state_dict(state["layers"])
        self.mean.copy_(state["mean"])


def projector(kind: str, outputs: int, setup: Setup) -> nn.Module:
    """The layers between the student's features and the teacher's [B, outputs], on the device.

    They are drawn by the run's seed alone, whatever was drawn before.
    """
    inputs = setup.features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        layers = [nn.Linear(inputs, outputs)]
        if kind == "mlp":
            hidden = [nn.Linear(inputs, inputs, bias=False), nn.LayerNorm(inputs), nn.ReLU()]
            return nn.Sequential(*hidden, *layers).to(setup.device)
    return layers[0].to(setup.device)


def loss_beside(settings: FeatureSettings, setup: Setup) -> Loss | None:
    """What the labels add to the loss. Raises InputError where images lack the truth it needs."""
    if settings.beside == "none":
        return None
    if settings.beside == "soft":
        return stored(settings, setup)
    if setup.unlabelled:
        raise InputError(
            f"loss.beside {settings.beside} needs the true class of every image, which "
            f"{setup.unlabelled} of {setup.images} images do not have; set loss.beside to none"
        )
    return HardLabels(settings.label_smoothing)


def mean_of(store: LabelStore) -> Tensor:
    """The mean of a store's features, float32 [d]: over all its crops, or over 65,536 that are
    spread evenly over them."""
    return torch.from_numpy(_over(store, lambda some: some.sum(0)) / _count(store)).float()


def spread_of(store: LabelStore, mean: Tensor) -> float:
    """The root mean square of the features' numbers less ``mean``."""
    centre = mean.double().numpy()
    total = _over(store, lambda some: np.square(some - centre).sum(0)).sum()
    return float(np.sqrt(total / (_count(store) * len(centre))))


def vectors_of(store: LabelStore, most: int) -> np.ndarray:
    """At most ``most`` of a store's feature vectors, float32, spread evenly over its crops."""
    count = len(store) * store.crops_per_image
    places = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
    return store.features(*np.divmod(places, store.crops_per_image))


def _count(store: LabelStore) -> int:
    return min(len(store) * store.crops_per_image, _MEAN_OF)


def _over(store: LabelStore, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The sum of ``part`` over chunks of the store's vectors, in float64."""
    count = len(store) * store.crops_per_image
    places = np.linspace(0, count - 1, _count(store)).astype(np.int64)
    total: Any = 0.0
    for start in range(0, len(places), _CHUNK):
        where = np.divmod(places[start : start + _CHUNK], store.crops_per_image)
        total = total + part(store.features(*where).astype(np.float64))
    return np.asarray(total)


def cosine(projected: Tensor, features: Tensor) -> Tensor:
    """1 - the cosine of the angle between the rows, 0 .. 2."""
    return 1 - (normalize(projected, dim=1) * normalize(features, dim=1)).sum(1)
