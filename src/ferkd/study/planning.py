"""What labelling and training at a given scale cost in time, storage, traffic and money.

Arithmetic on measured rates, nothing else. Beside an accelerator a machine's loading runs side by
side with the device's steps, so a pass takes the longer of the two; where the steps run on the
machine's own cores (see `Cores`) both share them. Evaluation, start-up and waiting for disks are
left out. A student's step costs the same whatever its labels are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ferkd.store.reader import IMAGE
from ferkd.store.records import BOX_BYTES, RecordFormat
from ferkd.system.errors import InputError
from ferkd.system.settings import check_least

Bound = Literal["loading", "stepping"]


@dataclass(frozen=True)
class Rates:
    """Measured speeds, each above 0.

    ``teacher`` and ``student`` in crops per second of one device, forward pass and training step;
    ``decode`` in images per second that the whole machine decodes; ``cut`` in crops per second
    that it cuts, infinite where cutting costs nothing beside decoding.
    """

    teacher: float
    student: float
    decode: float
    cut: float = math.inf

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not (0 < rate < math.inf or (name == "cut" and rate == math.inf)):
                raise InputError(f"{name} rate {rate:g}: a rate is a number above 0")


@dataclass(frozen=True)
class Cores:
    """A machine whose steps run on the cores that load the images, too.

    ``count`` cores; ``threads`` of them that a step of one process takes; ``workers`` that load
    for each process, 0 where a process loads between its steps.
    """

    count: int
    threads: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        check_least(1, cores=self.count, threads=self.threads)
        check_least(0, workers=self.workers)


@dataclass(frozen=True)
class Scale:
    """What is to be done: all at least 1.

    ``images`` of the training set, each labelled on ``crops`` crops of which ``top_k`` (None: all)
    of ``classes`` are kept; ``students`` trained for ``epochs`` (one is as many crops as there
    are images), stored labels showing ``crops_per_image`` crops of an image per decode;
    ``nodes`` machines of ``devices`` each share the work evenly; a file has ``image_bytes``.
    """

    images: int
    crops: int
    classes: int
    epochs: float
    crops_per_image: int = 4
    top_k: int | None = 5
    devices: int = 1
    students: int = 1
    nodes: int = 1
    image_bytes: int = 110_000

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
    """One pass over the data: its hours, what they are bound by, and what each node reads.

    ``files_per_second`` images are opened a second and node, ``bytes_per_second`` are their bytes.
    """

    hours: float
    bound: Bound
    files_per_second: float
    bytes_per_second: float


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


def plan(scale: Scale, rates: Rates, cores: Cores | None = None) -> Plan:
    """The costs of ``scale`` at ``rates``; ``cores`` where the steps run on the loading cores.

    Raises InputError for a record that cannot be.
    """
    record = BOX_BYTES + RecordFormat.choose(scale.top_k, scale.classes).dtype.itemsize
    shown = scale.epochs * scale.images
    step = 1 / rates.student
    live = step + 1 / rates.teacher
    stored = _work(shown / scale.crops_per_image, shown, shown * step, scale, rates, cores)
    training = {
        "hard": _work(shown, shown, shown * step, scale, rates, cores),
        "live": _work(shown, shown, shown * live, scale, rates, cores),
        "fkd": stored,
        "ferkd": stored,
    }
    labelled = scale.images * scale.crops
    labelling = _work(scale.images, labelled, labelled / rates.teacher, scale, rates, cores)
    saved = training["live"].hours - stored.hours
    return Plan(
        bytes_per_crop=record,
        storage_bytes=labelled * record + scale.images * IMAGE.itemsize,
        labelling=labelling,
        training=training,
        break_even_students=math.ceil(labelling.hours / saved) if saved > 0 else None,
        break_even_epochs=labelling.hours / saved * scale.epochs if saved > 0 else None,
    )


def _work(
    decodes: float, cuts: float, seconds: float, scale: Scale, rates: Rates, cores: Cores | None
) -> Work:
    """``seconds`` of a device's steps shared by all, beside ``decodes`` images, ``cuts`` crops."""
    stepping = seconds / (scale.devices * scale.nodes)
    loading = (decodes / rates.decode + cuts / rates.cut) / scale.nodes  # all cores of a node
    if cores is None:
        elapsed = max(loading, stepping)
    else:
        alone = loading * cores.count  # of one core
        if cores.workers == 0:
            loading = alone / min(scale.devices, cores.count)
            elapsed = stepping + loading
        else:
            loading = alone / min(cores.workers * scale.devices, cores.count)
            busy = stepping * scale.devices * min(cores.threads, cores.count) + alone
            elapsed = max(stepping, loading, busy / cores.count)
    bound: Bound = "loading" if loading > stepping else "stepping"
    files = decodes / scale.nodes / elapsed
    return Work(elapsed / 3600, bound, files, files * scale.image_bytes)


def worker_memory(
    *,
    batch_size: int,
    image_size: int,
    pixels: int,
    image_bytes: int,
    held: int = 8,
    ahead: int = 2,
) -> int:
    """About how many bytes a loading worker needs: the files of ``held`` images, one image decoded
    to ``pixels`` (8-bit RGB), and its batch beside ``ahead`` finished ones."""
    batch = batch_size * 3 * image_size * image_size
    return held * image_bytes + 3 * pixels + (1 + ahead) * batch
