"""Optimisers and which parameters they decay."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import nn

from ferkd.system.settings import Part

# Of torchvision's transformers, which have no such method; its own training spares them too.
_EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")


class OptimizerConfig(Part):
    """The optimiser; ``lr`` is the peak of the schedule.

    ``momentum`` is used by sgd, ``betas`` by adamw. With ``layer_decay`` d a layer n layers below
    the head learns at ``lr`` * d^n, for fine-tuning: early layers keep what they know. Norm
    weights, biases and the embeddings of transformers are never decayed.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = Field(default=None, gt=0, le=1)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: decayed, and not decayed.

    With ``layer_decay`` two a layer, each with its share ``lr_scale`` of the learning rate (by
    timm's rule). Vectors and scalars are norm weights, biases and gains, which decay only pulls
    from their useful scale; so are the embeddings that a vision transformer adds or compares
    (timm's models name theirs by ``no_weight_decay()``). A group without parameters is left out.
    """
    # Not at the top: reading a recipe should not cost the seconds that timm takes.
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    spared = {n for n, _ in model.named_parameters() if n.rpartition(".")[2] in _EMBEDDINGS}
    if hasattr(model, "no_weight_decay"):
        spared |= set(cast(Any, model).no_weight_decay())
    if layer_decay is not None:
        return cast(
            list[dict[str, Any]],
            param_groups_layer_decay(
                model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
            ),
        )
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared)
    # The decayed ones first, as in checkpoints of earlier releases.
    return sorted((g for g in groups if g["params"]), key=lambda g: -g["weight_decay"])


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``model``'s trainable parameters, fused where torch has a fused kernel."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    fused = all(p.device.type in ("cuda", "cpu") for g in groups for p in g["params"])
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
