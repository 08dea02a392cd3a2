"""How long a run is and which learning rate each optimiser step uses."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass

from pydantic import Field, model_validator

from ferkd.system.settings import Part

_MAX_SIDE = 4096
MOST_EPOCHS = 1e6  # what is more was not meant, and 1e308 is no number of steps


@dataclass(frozen=True)
class StepSizes:
    """The side of the crops of a step: ``sides[i]`` from step ``starts[i]`` on."""

    starts: tuple[int, ...]
    sides: tuple[int, ...]

    def __call__(self, step: int) -> int:
        return self.sides[bisect_right(self.starts, step) - 1]


class Schedule(Part):
    """The length of a run and its learning-rate curve: linear warm-up, then a cosine.

    ``epochs`` counts crops as FKD does: one epoch is as many crops as there are images, so a pass
    over the images with m crops each counts as m epochs. ``steps`` sets the optimiser steps
    instead. The warm-up is a share of all steps (``warmup``) or counted in ``warmup_epochs``.
    The cosine falls to ``min_lr``.

    ``image_size`` lets the crops' side follow the run: pairs (share of the steps, side in pixels),
    the first share 0, for instance ((0, 80), (0.6, 112)). Unset, it is always data.image_size, as
    it is in evaluation and for the kept weights. Boxes do not depend on the size.
    """

    epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    steps: int | None = Field(default=None, gt=0, le=10**12)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    warmup_epochs: float | None = Field(default=None, ge=0, le=MOST_EPOCHS)
    min_lr: float = Field(default=0.0, ge=0)
    image_size: tuple[tuple[float, int], ...] | None = None

    @model_validator(mode="after")
    def _one_length_and_one_warmup(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        if self.warmup_epochs is not None and "warmup" in self.model_fields_set:
            raise ValueError("set one of warmup (a share of all steps) and warmup_epochs, not both")
        return self

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Schedule:
        if self.image_size is None:
            return self
        shares = [share for share, _ in self.image_size]
        rising = all(a < b for a, b in itertools.pairwise([*shares, 1.0]))  # NaN does not
        if shares[:1] != [0] or not rising:
            raise ValueError(
                f"image_size begins at the shares {shares}; they must start with 0, rise and stay "
                "below 1"
            )
        if not all(8 <= side <= _MAX_SIDE for _, side in self.image_size):
            raise ValueError(f"image_size must be 8 to {_MAX_SIDE} pixels throughout")
        return self

    def sizes(self, images: int, batch_size: int, image_size: int) -> StepSizes:
        """The side of the crops of each step; ``image_size`` where the schedule says nothing."""
        total = self.total_steps(images, batch_size)
        parts = self.image_size or ((0.0, image_size),)
        starts = tuple(round(share * total) for share, _ in parts)
        return StepSizes(starts, tuple(side for _, side in parts))

    def total_steps(self, images: int, batch_size: int) -> int:
        """Optimiser steps of the run: ``steps``, or ceil(epochs * images / batch_size)."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 0) * images / batch_size)

    def warmup_steps(self, images: int, batch_size: int) -> int:
        """Steps of warm-up, rounded; at least one step is left for the cosine."""
        total = self.total_steps(images, batch_size)
        if self.warmup_epochs is not None:
            steps = round(self.warmup_epochs * images / batch_size)
        else:
            steps = round(self.warmup * total)
        return min(steps, total - 1)


def learning_rate(step: int, *, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of optimiser step ``step`` (0-based) of ``total``.

    Step s of the warm-up uses peak * (s + 1) / (warmup + 1): the ramp is 0 just before the first
    step and ``peak`` at step ``warmup``, where a cosine starts that would reach ``floor`` at step
    ``total``.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
