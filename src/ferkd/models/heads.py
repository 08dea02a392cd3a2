"""A network's head and what it is given: the features that other losses and judges look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ferkd.system.errors import InputError


def last_linear(module: nn.Module, answer: Callable[[], Tensor]) -> tuple[nn.Linear | None, str]:
    """The linear layer whose output the network returns, and its name; None, "" without one.

    ``answer()`` runs the network and gives what it returns.
    """
    calls: list[tuple[nn.Linear, str, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda of, given, out, name=name: calls.append((of, name, out)))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        returned = answer()
    finally:
        for hook in hooks:
            hook.remove()
    for part, name, out in reversed(calls):
        if out.ndim == 2 and torch.equal(out.float(), returned.to(out.device).float()):
            return part, name or "the network"
    return None, ""


def head_of_student(
    model: nn.Module, image_size: int, classes: int
) -> tuple[nn.Linear | None, int]:
    """A student's head, and how many numbers its features are.

    Features are what the head is given, and the student's answer itself where it has no ``classes``
    (0). Raises InputError for a student that ends in something other than a linear layer.
    """
    training = model.training
    first = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
    with torch.no_grad():
        model.eval()
        if not classes:
            width = model(image).shape[1]
            model.train(training)
            return None, int(width)
        head, _ = last_linear(model, lambda: model(image))
        model.train(training)
    if head is None:
        raise InputError(
            f"{type(model).__name__} does not end in a linear layer, whose input its features "
            "would be; use a student that does (timm's and torchvision's ResNets, MobileNets, "
            "EfficientNets and transformers do)"
        )
    return head, head.in_features


class WithFeatures(nn.Module):
    """A student together with ``layers`` on its features: images -> (logits, layers(features)).

    ``head`` is the student's own, None for one that answers with its features. With ``head_alone``
    the head is given features without a gradient into the rest of the student. The student keeps
    its names, and knows nothing of the layers. One wrapper at a time may be run.
    """

    def __init__(
        self, model: nn.Module, head: nn.Linear | None, layers: nn.Module, *, head_alone: bool
    ) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self._caught: list[Tensor] = []
        self._head_alone = head_alone
        self._open = False  # evaluations between the steps run the same student
        if head is not None:
            head.register_forward_pre_hook(self._catch)
        self._headless = head is None

    def _catch(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._open:
            return None
        self._caught.append(given[0])
        return (given[0].detach(),) if self._head_alone else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._open = True
        try:
            logits = self.model(images)
        finally:
            self._open = False
        features = logits if self._headless else self._caught.pop()
        self._caught.clear()
        return logits, self.layers(features)
