"""Features of a live teacher: as feature, with the teacher run on what the student is shown.

Source: as feature. It is what stored features are measured against: the teacher sees the student's
pixels at the student's size, mixed as they are, and is paid for at every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ferkd.labelling.features import FeatureTeacher
from ferkd.methods.base import ONE_CROP, Loss, Method, Setup, View
from ferkd.methods.features import Distance, FeatureLoss, FeatureSettings, cosine
from ferkd.methods.live import Shown
from ferkd.system.distributed import rows_of_all


class Settings(FeatureSettings):
    """What is learnt ``beside`` is "hard", "probe" or "none": no labels are stored."""

    beside: Literal["none", "probe", "hard"] = "hard"  # type: ignore[assignment]
    by_regions: Literal[False] = False  # type: ignore[assignment]


class LiveFeatures(FeatureLoss):
    """A :class:`FeatureLoss` against what ``shown`` gives; their mean is that of all seen so far.

    ``steps`` counts the means of batches in it, and is part of the state.
    """

    whole_batch = True  # type: ignore[assignment]  # its mean is moved once a step, by all rows

    def __init__(
        self, layers: nn.Module, mean: Tensor, distance: Distance, *, shown: Shown, **options: Any
    ) -> None:
        super().__init__(layers, mean, distance, **options)
        self.shown, self.steps = shown, 0

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        features = self.shown(view.images)
        if len(features) < len(logits):  # those of all processes, whose images are elsewhere
            features = rows_of_all(features)
        self.steps += 1
        self.mean += (features.mean(0) - self.mean) / self.steps
        return super().__call__(logits, replace(view, features=features, other_features=None))

    def complaint(self) -> str | None:
        return self.shown.complaint()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"]


def _make(settings: Settings, setup: Setup) -> Loss:
    assert setup.teacher is not None
    features = FeatureTeacher(setup.teacher)
    shown = Shown(setup.teacher, features.of_pixels, mean=setup.mean, std=setup.std)
    return LiveFeatures.made(settings, setup, torch.zeros(features.dim), cosine, shown=shown)


METHOD = Method(
    name="feature-live",
    card=__doc__,
    make=_make,
    settings=Settings,
    teacher=True,
    features=True,
    attached=True,
    defaults={"data": ONE_CROP},
)
