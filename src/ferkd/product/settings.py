"""What a user asks of ``ferkd distill``, and how each word of it is read."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ferkd.models.specs import Options, parse_spec
from ferkd.models.student import Student, finished_run
from ferkd.system.errors import InputError

TEACHER = "timm/convnextv2_tiny"
STUDENT = "timm/mobilenetv3_small_100"
_MOST_EPOCHS = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """How long all may take: ``seconds``, or the student's ``epochs``; neither: chosen by data."""

    seconds: float | None = None
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a distillation; None is chosen when the images were looked at, and said."""

    images: str
    teacher: str = TEACHER
    student: str = STUDENT
    val: str | None = None
    image_size: int | None = None
    teacher_image_size: int | None = None
    budget: str | None = None
    unlabelled: str | None = None
    baseline: bool = False
    fine_tune: bool = True
    seeds: int = 1
    held_out: float = 0.2
    workers: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("image_size", "teacher_image_size"):
            side = getattr(self, name)
            if side is not None and not 16 <= side <= 4096:
                raise InputError(f"{name} is {side}; give 16 to 4096 pixels")
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}; train at least 1 student")
        if self.workers < 1:
            raise InputError(f"workers is {self.workers}; at least 1 reads images")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; give a share between 0 and 1")
        parse_budget(self.budget)
        parse_student(self.student)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; what does not change the result is left out."""
        kept = asdict(self)
        del kept["workers"]
        return kept


def parse_budget(text: str | None) -> Budget:
    """``30m``, ``2h``, ``1h30m``, ``90s`` of time, or a number of the student's epochs."""
    if text is None:
        return Budget()
    rule = "give a time such as 30m, 2h or 1h30m, or the student's epochs such as 40"
    times = re.fullmatch(r"(?:\d+(?:\.\d+)?[smh])+", text)
    if times:
        parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if 0 < seconds < math.inf:
            return Budget(seconds=seconds)
        raise InputError(f"budget {text!r} is no time at all; {rule}")
    try:
        epochs = float(text)
    except ValueError:
        raise InputError(f"budget {text!r} is not understood; {rule}") from None
    if not 0 < epochs <= _MOST_EPOCHS:
        raise InputError(f"budget of {text} epochs: it must be above 0 and at most {_MOST_EPOCHS}")
    return Budget(epochs=epochs)


def parse_student(spec: str) -> Student:
    """The student of a spec ``timm/NAME`` or ``torchvision/NAME``: pretrained, unless it ends in
    ``?pretrained=false`` or names weights of yours by ``?checkpoint=FILE``."""
    target, _, query = spec.partition("?")
    items = query.split("&") if query else []
    flags = [item for item in items if item.startswith("pretrained=")]
    rest = "&".join(item for item in items if item not in flags)
    _, options = parse_spec(target + (f"?{rest}" if rest else ""))
    if any(flag not in ("pretrained=true", "pretrained=false") for flag in flags):
        raise InputError(f"student {spec!r}: pretrained is true or false")
    _refuse(options, ("num_classes", "image_size", "random", "transform_input"), spec)
    if not target.startswith(("timm/", "torchvision/")):
        raise InputError(
            f"student {spec!r} is not known; write timm/NAME or torchvision/NAME, for example "
            f"{STUDENT}"
        )
    scratch = "pretrained=false" in flags or options.checkpoint is not None
    return Student(
        name=target,
        pretrained=not scratch,
        weights=None if options.checkpoint is None else options.checkpoint.resolve(),
        mean=options.mean,
        std=options.std,
    )


def network_of(spec: str) -> Student:
    """The network that a teacher's spec starts fine-tuning from. Raises InputError for teachers
    that cannot be rebuilt with another head."""
    target, options = parse_spec(spec)
    if Path(target).is_dir():
        weights, config = finished_run(Path(target))
        return Student(
            name=config.architecture,
            weights=(options.checkpoint or weights).resolve(),
            model_args=config.model_args,
        )
    if not target.startswith(("timm/", "torchvision/")):
        raise InputError(
            f"teacher {spec} has other classes than the folders, and only timm/NAME, "
            "torchvision/NAME and runs are fine-tuned; give one of these, or a teacher of these "
            "classes"
        )
    return Student(
        name=target,
        pretrained=options.checkpoint is None and options.random is None,
        weights=None if options.checkpoint is None else options.checkpoint.resolve(),
        mean=options.mean,
        std=options.std,
    )


def _refuse(options: Options, names: tuple[str, ...], spec: str) -> None:
    given = [name for name in names if getattr(options, name) is not None]
    if given:
        raise InputError(f"student {spec!r}: {given[0]} does not go into a student's spec; see -h")
