"""FKD without classes: the softmax of the teacher's stored embedding is the soft label.

Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022
(self-supervised task), which takes the loss of Shen et al., "S2-BNN", CVPR 2021; similarities to
prototypes in place of the embedding's numbers: Fang et al., "SEED", ICLR 2021.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ferkd.methods.base import Method, Setup
from ferkd.methods.features import (
    Beside,
    Distance,
    FeatureLoss,
    FeatureSettings,
    mean_of,
    vectors_of,
)
from ferkd.system.errors import InputError

_OF_S2BNN, _ITS_NUMBERS = 0.2, 128  # its temperature, and how many numbers its embedding has
_OF_PROTOTYPES = 0.1
_CLUSTERED, _ROUNDS = 16_384, 20


class Settings(FeatureSettings):
    """``prototypes``: 0 takes the softmax over the embedding's own numbers, K over its similarities
    to K centres of the store's features. ``embedding_temperature`` is the student's and, where
    ``teacher_embedding_temperature`` does not say otherwise, the teacher's. Unset it is 0.1 for
    prototypes, and for d numbers 0.2 sqrt(128 / d): as sharp as S2-BNN's 0.2 on 128.
    """

    beside: Beside = "none"
    feature_weight: float = Field(default=1.0, gt=0)
    prototypes: int = Field(default=0, ge=0, le=65_536)
    embedding_temperature: float | None = Field(default=None, gt=0)
    teacher_embedding_temperature: float | None = Field(default=None, gt=0)


def soft_embedding(
    temperature: float, teacher_temperature: float, prototypes: Tensor | None = None
) -> Distance:
    """-sum p log q of unit vectors: p the teacher's softmax, q the student's, each at its own
    temperature, over the vectors' numbers or over their similarities to ``prototypes`` [K, d]."""

    def scores(vectors: Tensor) -> Tensor:
        unit = normalize(vectors, dim=1)
        return unit if prototypes is None else unit @ prototypes.T

    def distance(projected: Tensor, features: Tensor) -> Tensor:
        p = (scores(features) / teacher_temperature).softmax(1)
        return -(p * (scores(projected) / temperature).log_softmax(1)).sum(1)

    return distance


def centres(vectors: np.ndarray, count: int) -> Tensor:
    """``count`` unit vectors [K, d]: the directions that ``vectors`` [N, d] cluster around.

    Spherical k-means from ``count`` of the vectors drawn with seed 0; deterministic. A centre that
    loses all vectors stays where it is. Raises InputError for fewer vectors than centres.
    """
    if len(vectors) < count:
        raise InputError(
            f"loss.prototypes is {count}, but there are {len(vectors)} vectors to make them of; "
            "lower it, or label more crops"
        )
    unit = normalize(torch.from_numpy(vectors), dim=1)
    chosen = np.random.default_rng(0).choice(len(unit), count, replace=False)
    found = unit[torch.from_numpy(np.sort(chosen))]
    for _ in range(_ROUNDS):
        nearest = (unit @ found.T).argmax(1)
        sums = torch.zeros_like(found).index_add_(0, nearest, unit)
        found = torch.where(sums.norm(dim=1, keepdim=True) > 0, normalize(sums, dim=1), found)
    return found


class SslLoss(FeatureLoss):
    """A :class:`FeatureLoss` whose state holds its prototypes too, [0, d] without any."""

    def __init__(self, *parts: Any, prototypes: Tensor, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.prototypes = prototypes

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "prototypes": self.prototypes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.prototypes.copy_(state["prototypes"])


def _make(settings: Settings, setup: Setup) -> SslLoss:
    assert setup.store is not None
    mean = mean_of(setup.store)
    count, width = settings.prototypes, len(mean)
    of_clusters = torch.zeros(0, width)
    if count:
        of_clusters = centres(vectors_of(setup.store, _CLUSTERED) - mean.numpy(), count)
    of_clusters = of_clusters.to(setup.device)
    usual = _OF_PROTOTYPES if count else _OF_S2BNN * math.sqrt(_ITS_NUMBERS / width)
    temperature = settings.embedding_temperature or usual
    distance = soft_embedding(
        temperature,
        settings.teacher_embedding_temperature or temperature,
        of_clusters if count else None,
    )
    return SslLoss.made(settings, setup, mean, distance, prototypes=of_clusters)


METHOD = Method(
    name="fkd-ssl",
    card=__doc__,
    make=_make,
    settings=Settings,
    labels="crops",
    features=True,
    attached=True,
)
