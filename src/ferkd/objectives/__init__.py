"""Objectives: what a student is trained to minimise, each a callable (logits, labels, targets).

An objective is one file: its settings, which are its options, and its function in one class, named
``OBJECTIVE``; its card is the class's docstring. Other packages bring theirs by an entry point
``ferkd.objectives``, and any is found as ``package.module:name``: a class or function that makes
the callable of its options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ferkd.objectives.soft_ce import soft_cross_entropy, sparse_cross_entropy
from ferkd.store.soft import SoftLabels
from ferkd.system.errors import InputError
from ferkd.system.plugins import Table
from ferkd.system.settings import rule

Objective = Callable[[Tensor, SoftLabels, Tensor | None], Tensor]

CARDS: Table[Callable[..., Objective]] = Table(
    what="objective",
    room=__name__,
    constant="OBJECTIVE",
    group="ferkd.objectives",
    check=lambda thing: (
        None if callable(thing) else "cannot be called; give a class, or a function of the options"
    ),
)


def build(name: str, **options: Any) -> Objective:
    """An objective by its name, e.g. ``build("soft_ce", temperature=2.0)``; raises InputError."""
    card = CARDS[name]
    try:
        return card(**options)
    except ValidationError as error:
        mistakes = (
            f"option {'.'.join(map(str, item['loc']))} of {name}: "
            + rule(item["msg"]).replace("Extra inputs are not permitted", "unknown")
            for item in error.errors()
        )
        raise InputError("; ".join(mistakes)) from None
    except TypeError as error:  # of a function, which takes no others
        raise InputError(f"objective {name} does not take the options {options}: {error}") from None


__all__ = ["CARDS", "Objective", "build", "soft_cross_entropy", "sparse_cross_entropy"]
