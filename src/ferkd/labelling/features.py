"""A network's features of crops, in the place of its answers: what a features signal holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ferkd.models.heads import last_linear
from ferkd.models.teacher import Teacher
from ferkd.system.errors import InputError


class FeatureTeacher:
    """The features of a frozen network; tried once on a black image.

    ``layer`` "penultimate" is what the classifier head is given: the input of the linear layer
    whose output the network returns, or the network's own output where it has no such head
    (a backbone, a callable). "output" is always the latter; any other name is a submodule of the
    network, whose output is taken. Positions and tokens are averaged, so a vector remains.
    ``normalised`` divides a vector by its length. ``dim`` is the vector's; ``layer`` then says
    what was taken. Raises InputError for a submodule that is not there or gives no vectors.
    """

    def __init__(
        self, teacher: Teacher, *, layer: str = "penultimate", normalised: bool = False
    ) -> None:
        self.teacher, self.normalised = teacher, normalised
        self.sizes = (teacher.image_size,)
        size = teacher.image_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        self._module: nn.Module | None = None
        self._before = False  # whether the module's input is taken, not its output
        if layer == "penultimate":
            self._module, name = last_linear(teacher.module, lambda: teacher(black))
            self._before = self._module is not None
            self.layer = f"input of {name}" if self._before else "output"
        elif layer == "output":
            self.layer = layer
        else:
            modules = dict(teacher.module.named_modules())
            if layer not in modules:
                known = ", ".join(name for name in list(modules)[1:6])
                raise InputError(
                    f"teacher {teacher.spec} has no layer {layer!r}; give penultimate, output or "
                    f"a submodule ({known}, …)"
                )
            self._module, self.layer = modules[layer], f"output of {layer}"
        self.dim = int(self({size: black}).shape[1])

    def describe(self) -> dict[str, Any]:
        return self.teacher.describe()

    def __call__(self, images: Mapping[int, Tensor]) -> Tensor:
        """Features float32 [B, dim] for crops uint8 [B, 3, S, S] at the teacher's size S."""
        return self._lengthened(self.teacher.answers(images[self.sizes[0]], self._network, each=1))

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, dim] for ``pixels`` float [B, 3, S, S] normalised for the teacher,
        of any side S that it takes; without waiting for the device, and whether they are finite is
        for the caller to see."""
        return self._lengthened(self.teacher.logits(pixels, self._network))

    def _lengthened(self, vectors: Tensor) -> Tensor:
        if not self.normalised:
            return vectors
        return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def _network(self, pixels: Tensor) -> Any:
        if self._module is None:
            return _pooled(_first(self.teacher.module(pixels)), self.teacher)
        taken: list[Any] = []
        if self._before:
            hook = self._module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
        else:
            hook = self._module.register_forward_hook(lambda _, given, out: taken.append(out))
        try:
            self.teacher.module(pixels)
        finally:
            hook.remove()
        if not taken:
            raise InputError(f"teacher {self.teacher.spec} does not use its layer {self.layer!r}")
        return _pooled(_first(taken[-1]), self.teacher)


def _first(output: Any) -> Any:
    """The tensor in what a network returns: itself, or the first of a tuple or mapping."""
    for name in ("pooler_output", "logits", "last_hidden_state"):
        held = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(held, Tensor):
            return held
    return output[0] if isinstance(output, tuple | list) and output else output


def _pooled(output: Any, teacher: Teacher) -> Tensor:
    """Vectors [B, d] of [B, d], [B, d, h, w] or [B, tokens, d], averaged over the rest."""
    if isinstance(output, Tensor) and output.ndim == 4:
        return output.mean((2, 3))
    if isinstance(output, Tensor) and output.ndim == 3:
        return output.mean(1)
    if isinstance(output, Tensor) and output.ndim == 2:
        return output
    got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise InputError(
        f"teacher {teacher.spec} gives {got} where features are taken; [B, d], [B, d, h, w] or "
        "[B, tokens, d] are needed: choose another --layer"
    )
