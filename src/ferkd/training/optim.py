"""Optimisers and which parameters they decay."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from ferkd.system.settings import Part


class OptimizerConfig(Part):
    """The optimiser; ``lr`` is the peak of the schedule.

    ``momentum`` is used by sgd, ``betas`` by adamw. Norm weights and biases are never decayed.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: decayed, and (one axis or none) not decayed.

    Vectors and scalars are norm weights, biases and gains, which decay only pulls from their
    useful scale. A group without parameters is left out.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``model``'s trainable parameters, fused where torch has a fused kernel."""
    groups = parameter_groups(model, config.weight_decay)
    fused = all(p.device.type in ("cuda", "cpu") for g in groups for p in g["params"])
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
