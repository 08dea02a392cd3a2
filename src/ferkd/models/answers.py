"""What a teacher's network answers with, and what is refused because it is no logits of one image.

A network that ends in a softmax, that has lost its head, or whose answer to an image depends on
the images beside it would label silently wrong: each is found by trying it, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ferkd.system.errors import InputError

# How far two answers to one image may lie apart by rounding, as a share of the logits' spread:
# sums are taken in another order in another batch. Real dependence is far larger.
_SAME = {"fp32": 1e-2, "bf16": 0.1, "fp16": 5e-2}
_ONE = 1e-3  # how near to 1 probabilities sum, in fp32 as in half precision
_HEADS = ("fc", "classifier")  # torchvision's names for them


def logits_of(output: Any, classes: int | None = None, who: str = "") -> Any:
    """The logits in what a classifier returns: a tensor, or "logits" of a mapping or an object.

    Of a tuple the only tensor [B, C], or the only one of ``classes`` columns. Raises InputError
    where two may be meant, such as features beside logits; else returns what there is.
    """
    if isinstance(output, Mapping):
        return output.get("logits")
    if hasattr(output, "logits"):
        return output.logits
    if not isinstance(output, tuple | list):
        return output
    flat = [one for one in output if isinstance(one, Tensor) and one.ndim == 2]
    if classes is not None and len(flat) > 1:
        flat = [one for one in flat if one.shape[1] == classes]
    if len(flat) > 1:
        shapes = ", ".join(str(list(one.shape)) for one in flat)
        raise InputError(
            f"teacher {who} returned {len(flat)} tensors ({shapes}), any of which may be its "
            "logits; return the logits alone, or state ?num_classes=N where one has N columns"
        )
    return flat[0] if flat else (output[0] if output else output)


def check_network(module: nn.Module, who: str) -> None:
    """Raise InputError for a network without a head, and for one that uses batch statistics."""
    get_head = getattr(module, "get_classifier", None)
    if callable(get_head):
        headless = isinstance(get_head(), nn.Identity) and not getattr(module, "num_classes", 1)
    else:
        headless = any(isinstance(getattr(module, n, None), nn.Identity) for n in _HEADS)
    if headless:
        raise InputError(
            f"teacher {who} has no classification head: it answers with features; give one with "
            "its head, or train a head on these features first"
        )
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise InputError(
                f"teacher {who} normalises by each batch's own statistics ({name or 'its'} "
                "BatchNorm has track_running_stats=False), so its answer depends on the images "
                "beside; give a network with running statistics"
            )


def check_answers(answers: Sequence[Tensor], who: str, precision: str) -> None:
    """Raise InputError unless these are logits of single images.

    ``answers`` float32 [B, C] to two black images, to two others, to those again, and to the first
    of them alone.
    """
    black, pair, again, alone = answers
    both = torch.cat([black, pair])
    if (
        both.shape[1] > 1
        and bool((both >= 0).all())
        and bool(((both.sum(1) - 1).abs() < _ONE).all())
    ):
        raise InputError(
            f"teacher {who} answers with probabilities (each row sums to 1), where logits are "
            "needed; leave its softmax out, or return their logarithm"
        )
    slack = _SAME[precision] * max(1.0, float(pair.amax() - pair.amin()))
    if float((pair - again).abs().max()) > slack:
        raise InputError(
            f"teacher {who} answers otherwise when asked again (dropout that stays on in "
            "evaluation mode, or noise); make it repeat its answers in evaluation mode"
        )
    if float((pair[:1] - alone).abs().max()) > slack:
        raise InputError(
            f"teacher {who} answers otherwise for an image alone than beside another: it uses the "
            "batch's statistics, as in training mode; make it answer each image by itself"
        )
