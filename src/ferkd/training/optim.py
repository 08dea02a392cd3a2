"""Optimisers and which parameters they decay."""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import Field, field_validator
from torch import nn

from ferkd.system.errors import InputError
from ferkd.system.plugins import did_you_mean
from ferkd.system.settings import Part

# Of torchvision's transformers, which have no such method; its own training spares them too.
_EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")


class OptimizerConfig(Part):
    """The optimiser; ``lr`` is the peak of the schedule.

    ``name`` is any of timm's (``lamb``, ``lion``, ``adan``, ``muon``, ``lookahead_adamw``); sgd is
    without Nesterov's momentum, which timm's ``nesterov`` has. ``momentum`` and ``betas`` are used
    by those that have them, ``options`` are further arguments of its own. With ``layer_decay`` d
    a layer n layers below the head learns at ``lr`` * d^n, for fine-tuning: early layers keep what
    they know. Norm weights, biases and the embeddings of transformers are never decayed.
    """

    name: str = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in ("adamw", "sgd"):  # which spare a recipe the seconds that timm takes
            _info(name)  # its InputError is a ValueError
        return name


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


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, beside: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser of ``model``'s trainable parameters, fused where torch has a fused kernel.

    ``beside`` are layers that are trained along, at the full rate.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if beside is not None:
        groups += parameter_groups(beside, config.weight_decay)
    fused = all(p.device.type in ("cuda", "cpu") for g in groups for p in g["params"])
    # timm's sgd has Nesterov's momentum; its "momentum" is torch's plain one.
    name = {"sgd": "momentum"}.get(config.name, config.name)
    options = dict(config.options)
    if name in ("adamw", "momentum"):
        options.setdefault("fused", fused)
    if _info(name).num_betas == len(config.betas):
        options.setdefault("betas", config.betas)
    from timm.optim import create_optimizer_v2

    try:
        return create_optimizer_v2(
            cast(Any, groups), name, lr=config.lr, momentum=config.momentum, **options
        )
    except (ImportError, AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"optimizer {config.name} with the options {config.options} cannot be made: {error}"
        ) from error


def _info(name: str) -> Any:
    """What timm knows of an optimiser. Raises InputError for one that it, or training, lacks."""
    from timm.optim import get_optimizer_info, list_optimizers

    try:
        info = get_optimizer_info(name.lower().removeprefix("lookahead_"))
    except ValueError:
        known = cast(list[str], list_optimizers())
        raise InputError(f"timm has no optimiser {name!r}; {did_you_mean(name, known)}") from None
    if info.second_order:
        raise InputError(
            f"optimiser {name} needs second derivatives, which training does not take; name another"
        )
    return info
