"""How long a run is and which learning rate each optimiser step uses."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Schedule(BaseModel):
    """The length of a run and its learning-rate curve: linear warm-up, then a cosine.

    ``epochs`` counts crops as FKD does: one epoch is as many crops as there are images, so a pass
    over the images with m crops each counts as m epochs. ``steps`` sets the optimiser steps
    instead. The warm-up is a share of all steps (``warmup``) or counted in ``warmup_epochs``.
    The cosine falls to ``min_lr``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    warmup_epochs: float | None = Field(default=None, ge=0)
    min_lr: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_length_and_one_warmup(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        if self.warmup_epochs is not None and "warmup" in self.model_fields_set:
            raise ValueError("set one of warmup (a share of all steps) and warmup_epochs, not both")
        return self

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
