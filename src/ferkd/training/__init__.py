"""Training: the loop (:class:`Trainer`) and whole runs from a recipe (:func:`train`)."""

from __future__ import annotations

from ferkd.training.run import train
from ferkd.training.together import train_together
from ferkd.training.trainer import NonFiniteLoss, Trainer, View

__all__ = ["NonFiniteLoss", "Trainer", "View", "train", "train_together"]
