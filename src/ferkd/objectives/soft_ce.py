"""Soft cross-entropy, the loss of FKD and FerKD: -sum of p log q, mean over the crops."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from ferkd.store.soft import SoftLabels, SparseTargets, Tail
from ferkd.system.settings import Part


class SoftCrossEntropy(Part):
    """Card: soft cross-entropy against stored labels, without hard labels.

    ``temperature`` divides the student's logits and tempers the labels alike; there is no T^2
    factor (FKD). ``tail``: what becomes of the classes not stored; see `SoftLabels.targets`.
    """

    temperature: float = Field(default=1.0, gt=0.0)
    tail: Tail = "uniform"

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` is not used."""
        return soft_cross_entropy(logits, labels, temperature=self.temperature, tail=self.tail)


def soft_cross_entropy(
    logits: Tensor,
    labels: SoftLabels,
    *,
    temperature: float = 1.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Mean over the batch of -sum_c p_c log softmax(logits / temperature)_c; a scalar.

    ``logits`` [B, C] of any floating type (computed in float32); ``labels`` B soft labels over
    the same C classes. Works from the sparse labels: no [B, C] target is built. Raises ValueError
    when the shapes do not fit.
    """
    if logits.ndim != 2 or logits.shape != (len(labels), labels.num_classes):
        raise ValueError(
            f"logits of shape {list(logits.shape)} do not fit {len(labels)} labels over "
            f"{labels.num_classes} classes"
        )
    return sparse_cross_entropy(logits, labels.targets(temperature, tail), temperature)


def sparse_cross_entropy(
    logits: Tensor, targets: SparseTargets, temperature: float = 1.0
) -> Tensor:
    """The same from targets in the form base + corrections."""
    loss: Tensor = _SparseCrossEntropy.apply(
        logits, targets.base, targets.classes, targets.weights, temperature
    )
    return loss


class _SparseCrossEntropy(torch.autograd.Function):
    """L = lse(z) - base * sum_c z_c - sum_j w_j z_{c_j}; dL/dz = softmax(z) - base - scatter(w).

    Written out because autograd would hold three [B, C] arrays: this holds one, in which the
    softmax becomes the gradient, and takes one pass of exponentials instead of two. A temperature
    other than 1, or half precision, takes one array more for a while. The targets get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        base: Tensor,
        classes: Tensor,
        weights: Tensor,
        temperature: float,
    ) -> Tensor:
        z = _scaled(logits, temperature)
        q = z.softmax(1)
        # All is taken of z - max, which loses nothing since targets sum to 1; its lse is that of
        # the largest probability, which is never 0.
        top = z.amax(1)
        total = (z.sum(1) - top * z.shape[1]) * base
        stored = ((z.gather(1, classes) - top[:, None]) * weights).sum(1)
        loss = (q.amax(1).log() + total + stored).mean().neg()
        ctx.save_for_backward(logits, base, classes, weights)
        ctx.temperature = temperature
        ctx.gradient = None
        if ctx.needs_input_grad[0]:
            ctx.gradient = _difference(q, base, classes, weights)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, base, classes, weights = ctx.saved_tensors
        out, ctx.gradient = ctx.gradient, None
        if out is None:  # a second time, for which the graph was retained
            q = _scaled(logits, ctx.temperature).softmax(1)
            out = _difference(q, base, classes, weights)
        out.mul_(grad / (len(logits) * ctx.temperature))
        return out.to(logits.dtype), None, None, None, None


def _difference(q: Tensor, base: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """q - base - scatter(w), in place of ``q``."""
    return q.sub_(base[:, None]).scatter_add_(1, classes, -weights)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    z = logits.float()
    return z if temperature == 1 else z / temperature


OBJECTIVE = SoftCrossEntropy
