"""Objectives: what a student is trained to minimise, each a callable (logits, labels, targets)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ferkd.objectives.bce import Bce
from ferkd.objectives.decoupled import Dkd, Nkd
from ferkd.objectives.dist import Dist
from ferkd.objectives.jeffreys import Jeffreys
from ferkd.objectives.kl import Kl
from ferkd.objectives.lskd import Lskd
from ferkd.objectives.ofa import Ofa
from ferkd.objectives.pld import Pld
from ferkd.objectives.soft_ce import (
    SoftCrossEntropy,
    soft_cross_entropy,
    sparse_cross_entropy,
)
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError

Objective = Callable[[Tensor, SoftLabels, Tensor | None], Tensor]

CARDS: Mapping[str, Callable[..., Objective]] = {
    "soft_ce": SoftCrossEntropy,
    "kl": Kl,
    "jeffreys": Jeffreys,
    "dkd": Dkd,
    "nkd": Nkd,
    "dist": Dist,
    "bce": Bce,
    "pld": Pld,
    "lskd": Lskd,
    "ofa": Ofa,
}


def build(name: str, **options: Any) -> Objective:
    """An objective by its name, e.g. ``build("soft_ce", temperature=2.0)``; raises InputError."""
    if name not in CARDS:
        near = difflib.get_close_matches(name, CARDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown objective {name!r}; known: {', '.join(CARDS)}{hint}")
    try:
        return CARDS[name](**options)
    except ValidationError as error:
        mistakes = (
            f"option {'.'.join(map(str, item['loc']))} of {name}: "
            + item["msg"].replace("Extra inputs are not permitted", "unknown")
            for item in error.errors()
        )
        raise InputError("; ".join(mistakes)) from None


__all__ = [
    "Bce",
    "Dist",
    "Dkd",
    "Jeffreys",
    "Kl",
    "Lskd",
    "Nkd",
    "Objective",
    "Ofa",
    "Pld",
    "SoftCrossEntropy",
    "build",
    "soft_cross_entropy",
    "sparse_cross_entropy",
]
