"""What labelling and training at a given scale cost in time, storage and money.

Arithmetic on measured rates, nothing else: the device's steps and the machine's decoding run side
by side, so a pass takes the longer of the two. Evaluation, start-up and waiting for disks are left
out. A student's step costs the same whatever its labels are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ferkd.store.reader import IMAGE
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError

Bound = Literal["loading", "stepping"]


@dataclass(frozen=True)
class Rates:
    """Measured speeds, each above 0.

    ``teacher`` and ``student`` in crops per second of one device, forward pass and training step;
    ``decode`` in images per second that the whole machine decodes.
    """

    teacher: float
    student: float
    decode: float

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0 < rate < math.inf:
                raise InputError(f"{name} rate {rate:g}: a rate is a number above 0")


@dataclass(frozen=True)
class Scale:
    """What is to be done: all at least 1.

    ``images`` of the training set, each labelled on ``crops`` crops of which ``top_k`` (None: all)
    of ``classes`` are kept; ``students`` trained for ``epochs`` (one is as many crops as there
    are images), stored labels showing ``crops_per_image`` crops of an image per decode;
    ``devices`` share the work evenly.
    """

    images: int
    crops: int
    classes: int
    epochs: float
    crops_per_image: int = 4
    top_k: int | None = 5
    devices: int = 1
    students: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 2 if name == "classes" else 1
            if value is not None and not (value > 0 if name == "epochs" else value >= least):
                rule = "above 0" if name == "epochs" else f"at least {least}"
                raise InputError(f"{name.replace('_', '-')} {value:g}: it must be {rule}")
        if self.crops_per_image > self.crops:
            raise InputError(
                f"{self.crops_per_image} crops per image and visit of {self.crops} stored ones; "
                "store more with --crops, or lower data.crops_per_image"
            )


@dataclass(frozen=True)
class Work:
    """One pass over the data: its hours and what they are bound by."""

    hours: float
    bound: Bound


@dataclass(frozen=True)
class Plan:
    """The costs of a scale: hours of wall clock, bytes, and where stored labels pay.

    ``training`` is one student by "hard" and "live" (the teacher in the loop; both one crop per
    decode), and by "fkd" and "ferkd", which cost the same. ``break_even_students`` is the smallest
    number of students at which labelling and training from the labels takes no longer than as many
    live distillations, ``break_even_epochs`` the length at which it does so for a single student;
    None where a live step is not the slower one.
    """

    bytes_per_crop: int
    storage_bytes: int
    labelling: Work
    training: dict[str, Work]
    break_even_students: int | None
    break_even_epochs: float | None

    def total_hours(self, method: str, students: int) -> float:
        """Hours for ``students`` students, labelling included where the method needs it."""
        labelling = self.labelling.hours if method in ("fkd", "ferkd") else 0.0
        return labelling + students * self.training[method].hours


def plan(scale: Scale, rates: Rates) -> Plan:
    """The costs of ``scale`` at ``rates``. Raises InputError for a record that cannot be."""
    record = RecordFormat.choose(scale.top_k, scale.classes).dtype.itemsize
    shown = scale.epochs * scale.images
    step = 1 / rates.student
    live = step + 1 / rates.teacher
    stored = _work(shown / scale.crops_per_image, shown * step, scale, rates)
    training = {
        "hard": _work(shown, shown * step, scale, rates),
        "live": _work(shown, shown * live, scale, rates),
        "fkd": stored,
        "ferkd": stored,
    }
    labelled = scale.images * scale.crops
    labelling = _work(scale.images, labelled / rates.teacher, scale, rates)
    saved = training["live"].hours - stored.hours
    return Plan(
        bytes_per_crop=record,
        storage_bytes=labelled * record + scale.images * IMAGE.itemsize,
        labelling=labelling,
        training=training,
        break_even_students=math.ceil(labelling.hours / saved) if saved > 0 else None,
        break_even_epochs=labelling.hours / saved * scale.epochs if saved > 0 else None,
    )


def _work(decodes: float, seconds: float, scale: Scale, rates: Rates) -> Work:
    """``seconds`` of one device's stepping shared by the devices, beside ``decodes`` images."""
    stepping, loading = seconds / scale.devices, decodes / rates.decode
    bound: Bound = "loading" if loading > stepping else "stepping"
    return Work(max(loading, stepping) / 3600, bound)
