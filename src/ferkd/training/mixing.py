"""How the trainer mixes a batch: by the step, for all processes alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ferkd.loading.mixing import Mix, Mixture
from ferkd.store import SoftLabels
from ferkd.system.distributed import Ranks


def mixer(
    mix: Mix,
    *,
    crops_per_image: int,
    seed: int,
    num_classes: int,
    label_smoothing: float,
    ranks: Ranks | None = None,
) -> Mixing | None:
    """The mixing of a run, by step; None without any."""
    if mix.kind == "none":
        return None
    return Mixing(mix, crops_per_image, seed, num_classes, label_smoothing, ranks or Ranks())


@dataclass(frozen=True)
class Mixing:
    """Mixes the batch of a step; it may write over the images given.

    Where a batch has no labels, its smoothed hard targets are mixed: torch's cross-entropy gives
    each class smoothing / C, so the softened hard label's epsilon is smoothing (C - 1) / C. Without
    classes there is nothing to mix but images. What is mixed is drawn for the whole batch, of which
    a process of several has its ``ranks``' part.
    """

    mix: Mix
    crops_per_image: int
    seed: int
    num_classes: int
    label_smoothing: float
    ranks: Ranks

    def __call__(
        self, step: int, images: Tensor, labels: SoftLabels | None, targets: Tensor
    ) -> tuple[Tensor, SoftLabels | None, Tensor]:
        drawn = self._drawn(step, images)
        if labels is None and self.num_classes:
            epsilon = self.label_smoothing * (self.num_classes - 1) / self.num_classes
            labels = SoftLabels.hard(targets.clamp_min(0), self.num_classes, epsilon)
        larger = torch.where(drawn.shares >= 0.5, targets, targets[drawn.partners])
        mixed = None if labels is None else drawn.labels(labels)
        return drawn.images(images, in_place=True), mixed, larger

    def partners(self, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows of a step are mixed with, int64 [B], and their own share, float32 [B]."""
        drawn = self._drawn(step, images)
        return drawn.partners, drawn.shares

    def _drawn(self, step: int, images: Tensor) -> Mixture:
        rows, _, height, width = images.shape
        drawn = self.mix.draw(
            rows * self.ranks.world_size,
            height,
            width,
            crops_per_image=self.crops_per_image,
            generator=np.random.default_rng([self.seed, step]),
            ranks=self.ranks.world_size,
        )
        assert drawn is not None
        return drawn.of_rank(self.ranks.rank, self.ranks.world_size).to(images.device)
