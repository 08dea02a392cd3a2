"""What the student learns from: the default rule of docs/evidence.md, as one table.

The first row that holds decides. To change the default, edit the table; ``ferkd distill`` prints
the row's reason, and its report repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of a distillation when its labels are finished.

    ``agreement``: the share of labelled crops on which the teacher is right, None where no class
    is known. ``pretrained``: whether the student starts from weights. ``epochs`` are the student's.
    """

    classes: int
    images: int
    unlabelled: int
    agreement: float | None
    pretrained: bool
    epochs: float


@dataclass(frozen=True)
class Row:
    """A regime, the method that is best in it as far as measured, and why."""

    regime: str
    holds: Callable[[Facts], bool]
    method: str
    reason: str
    loss: dict[str, Any] = field(default_factory=dict)


UNRELIABLE = 0.6  # share of crops on which a teacher is right

TABLE = (
    Row(
        "images without a class",
        lambda facts: facts.unlabelled > 0,
        "ferkd",
        "hard labels cannot use the images without a class; the teacher's labels can, and where 1, "
        "5 and 10 % of the flowers had a class students from scratch gained 14, 10 and 6 points "
        "by them; a pretrained student tied (docs/what-to-use.md)",
    ),
    Row(
        "an unreliable teacher",
        lambda facts: facts.agreement is not None and facts.agreement < UNRELIABLE,
        "hard",
        f"the teacher is right on less than {UNRELIABLE:.0%} of the crops, and such labels cost "
        "2 points beside the folders' own classes, not smoothed (docs/what-to-use.md)",
        {"label_smoothing": 0.0},
    ),
    Row(
        "anything else",
        lambda facts: True,
        "ferkd",
        "on few classes that are all known soft labels tie with hard ones (--baseline trains them "
        "too), or gain where photographs are few and shown often (3 points on 290 over 100 "
        "epochs); they gain where classes are wrong or crops miss the object, which nothing here "
        "tells beforehand (docs/what-to-use.md)",
    ),
)

BASELINE = Row(
    "the baseline",
    lambda facts: True,
    "hard",
    "hard labels that are not smoothed are the strongest of the hard ones (docs/evidence.md)",
    {"label_smoothing": 0.0},
)


def choose(facts: Facts) -> Row:
    """The first row of the table that holds."""
    return next(row for row in TABLE if row.holds(facts))
