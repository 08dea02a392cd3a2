"""Stored features: the student's features, projected, meet the teacher's of the same crop.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (a learnt projector, dropped
afterwards); the cosine, the mean that is taken off and the use of stored features are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from ferkd.methods.base import Method, Setup
from ferkd.methods.features import (
    Distance,
    FeatureLoss,
    FeatureSettings,
    cosine,
    mean_of,
    spread_of,
)


class Settings(FeatureSettings):
    """``feature_distance``: "cosine", or "smooth-l1" of numbers in units of their spread."""

    feature_distance: Literal["cosine", "smooth-l1"] = "cosine"


def smooth_l1(spread: float) -> Distance:
    """Smooth L1 (Huber's, beta 1) of the difference over ``spread``, the mean over the numbers."""

    def distance(projected: Tensor, features: Tensor) -> Tensor:
        return smooth_l1_loss(projected, features / spread, reduction="none").mean(1)

    return distance


def _make(settings: Settings, setup: Setup) -> FeatureLoss:
    assert setup.store is not None
    mean = mean_of(setup.store)
    distance: Distance = cosine
    if settings.feature_distance == "smooth-l1":
        distance = smooth_l1(max(spread_of(setup.store, mean), torch.finfo(torch.float32).tiny))
    return FeatureLoss.made(settings, setup, mean, distance)


METHOD = Method(
    name="feature",
    card=__doc__,
    make=_make,
    settings=Settings,
    labels="crops",
    features=True,
    attached=True,
)
