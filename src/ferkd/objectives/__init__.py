"""Objectives: what a student is trained to minimise, each a callable (logits, labels, targets)."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ferkd.errors import InputError
from ferkd.labels.soft import SoftLabels
from ferkd.objectives.soft_ce import (
    SoftCrossEntropy,
    soft_cross_entropy,
    sparse_cross_entropy,
)

Objective = Callable[[Tensor, SoftLabels, Tensor | None], Tensor]

_OBJECTIVES: dict[str, Callable[..., Objective]] = {"soft_ce": SoftCrossEntropy}


def build(name: str, **options: Any) -> Objective:
    """An objective by its name, e.g. ``build("soft_ce", temperature=2.0)``; raises InputError."""
    if name not in _OBJECTIVES:
        near = difflib.get_close_matches(name, _OBJECTIVES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown objective {name!r}; known: {', '.join(_OBJECTIVES)}{hint}")
    try:
        return _OBJECTIVES[name](**options)
    except ValidationError as error:
        mistakes = (
            f"option {'.'.join(map(str, item['loc']))} of {name}: "
            + item["msg"].replace("Extra inputs are not permitted", "unknown")
            for item in error.errors()
        )
        raise InputError("; ".join(mistakes)) from None


__all__ = [
    "Objective",
    "SoftCrossEntropy",
    "build",
    "soft_cross_entropy",
    "sparse_cross_entropy",
]
