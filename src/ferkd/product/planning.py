"""How a distillation spends its budget: measured rates, then the choices, each with its reason."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ferkd.crops import cut
from ferkd.images import UnreadableImage, decode, open_images
from ferkd.labelling.settings import default_batch
from ferkd.models.architectures import find_architecture
from ferkd.models.student import Student, build_student, check_input
from ferkd.models.teacher import Teacher
from ferkd.product.look import Look
from ferkd.product.settings import Settings, parse_budget, parse_student
from ferkd.system.compute import resolve_device
from ferkd.system.errors import InputError

BATCH = 64  # crops of a student's step
_SHOWN = 300_000  # images that a student is shown where no budget is given
_EPOCHS = (10.0, 100.0)  # and the least and most epochs then
_LEAST_STEPS = 10
_CACHED = 2 << 30  # bytes of decoded images that are kept in memory
_BYTES_A_CROP = 32
_SPARE = 0.9  # of the time budget: evaluations and the report take the rest


@dataclass(frozen=True)
class Rates:
    """Seconds for one crop, measured on this machine: the student's and the teacher's training,
    the teacher's answers, reading an image and cutting a crop."""

    student: float
    teacher: float
    answer: float
    read: float


@dataclass(frozen=True)
class Plan:
    """Everything that was chosen; ``reasons`` say why, ``seconds`` how long by phase."""

    image_size: int
    teacher_image_size: int
    epochs: float
    teacher_epochs: float
    crops: int
    crops_per_image: int
    cache: str
    fine_tune: bool
    seconds: dict[str, float]
    label_bytes: int
    reasons: tuple[str, ...]
    rates: Rates

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(found: dict[str, Any]) -> Plan:
        """Read back what :meth:`to_dict` gave."""
        rates = Rates(**found["rates"])
        return Plan(**{**found, "rates": rates, "reasons": tuple(found["reasons"])})


def image_sizes(settings: Settings, seen: Look, student: Student, own: int) -> tuple[int, int, str]:
    """The student's and the teacher's image size in pixels, and why. ``own`` is the teacher's."""
    side = max(32, seen.short_side // 32 * 32)
    size, why = settings.image_size, "as asked for"
    if size is None:
        published = find_architecture(student.name).inputs(build_student(student_shell(student), 2))
        size = min(published.image_size, side)
        why = f"{student.name}'s own size, no larger than the images' shorter side"
    teacher = settings.teacher_image_size
    if teacher is None:
        teacher = max(size, min(own, side))
        why += f"; the teacher sees {teacher} px, its own size as far as the images have pixels"
    return size, teacher, f"{size} px: {why}"


def student_shell(student: Student) -> Student:
    """The same architecture without weights."""
    return student.model_copy(update={"pretrained": False, "weights": None})


def measure_rates(
    settings: Settings,
    seen: Look,
    network: Student | None,
    teacher: Teacher | None,
    sizes: tuple[int, int],
) -> Rates:
    """Try a few steps of each kind. Raises InputError for networks that do not take the size."""
    device = resolve_device(settings.device)
    size, teacher_size = sizes
    student = parse_student(settings.student)
    model = build_student(student_shell(student), len(seen.classes), image_size=size).to(device)
    check_input(model, student.name, size, len(seen.classes))
    step = _step_seconds(model, size, BATCH, device)
    if network is not None:
        pupil = build_student(student_shell(network), len(seen.classes), image_size=teacher_size)
        pupil = pupil.to(device)
        check_input(pupil, network.name, teacher_size, len(seen.classes))
        taught = _step_seconds(pupil, teacher_size, 32, device)
        answer = _answer_seconds(pupil, teacher_size, device)
    else:
        assert teacher is not None
        taught, answer = 0.0, _answer_seconds(teacher.module, teacher_size, device)
    return Rates(step, taught, answer, _read_seconds(seen, size))


def make_plan(
    settings: Settings,
    seen: Look,
    rates: Rates,
    *,
    sizes: tuple[int, int],
    why_sizes: str,
    fine_tune: bool,
) -> Plan:
    """Spend the budget. Raises InputError where it is too small for anything."""
    budget = parse_budget(settings.budget)
    images = seen.images + seen.unlabelled
    students = settings.seeds * (1 + settings.baseline)
    reasons = [why_sizes]

    def seconds_for(epochs: float) -> dict[str, float]:
        look_again = rates.answer + rates.read
        tuned = _teacher_epochs(epochs) if fine_tune else 0.0
        return {
            "teacher": (
                (seen.images + seen.val_images * (1 + tuned)) * look_again
                + tuned * seen.images * (rates.teacher + rates.read)
                if fine_tune
                else seen.val_images * look_again
            ),
            "labels": images * (_crops(epochs) * rates.answer + rates.read),
            "student": students * epochs * images * (rates.student + rates.read)
            + students * 10 * seen.val_images * (rates.student / 3 + rates.read),
        }

    if budget.epochs is not None:
        epochs = budget.epochs
        reasons.append(f"{epochs:g} epochs of the student: as asked for")
    elif budget.seconds is not None:
        epochs = _largest(lambda e: sum(seconds_for(e).values()) <= _SPARE * budget.seconds)
        if epochs == 0:
            least = sum(seconds_for(1.0).values()) / _SPARE
            raise InputError(
                f"a budget of {settings.budget} is too small: these {images:,} images need about "
                f"{spoken(least)} on this machine for one epoch of the student; give more, a "
                "smaller --image-size, a smaller --teacher, or fewer images"
            )
        reasons.append(f"{epochs:g} epochs of the student: what fits into {settings.budget}")
    else:
        epochs = float(min(max(round(_SHOWN / images), _EPOCHS[0]), _EPOCHS[1]))
        reasons.append(
            f"{epochs:g} epochs of the student: {images:,} images, about {_SHOWN:,} shown "
            f"({_EPOCHS[0]:g} to {_EPOCHS[1]:g} epochs); --budget sets another"
        )
    if epochs * images < _LEAST_STEPS * BATCH:
        least = math.ceil(_LEAST_STEPS * BATCH / images * 100) / 100
        raise InputError(
            f"a budget of {epochs:g} epochs is too small for anything: {images} images make "
            f"{epochs * images / BATCH:.2g} steps of {BATCH} crops; give at least {least:g} epochs"
        )
    if fine_tune:
        reasons.append(
            f"the teacher is fine-tuned for at most {_teacher_epochs(epochs):g} epochs from its "
            "linear probe, and ends early when the validation images gain nothing"
        )
    crops = _crops(epochs)
    reasons.append(
        f"{crops} crops an image: as many as the student's {epochs:g} epochs use, 4 to 30"
    )
    keep = images * seen.pixels * 3 < _CACHED
    reasons.append(
        "one crop of an image a visit, decoded images kept in memory"
        if keep
        else "four crops of an image a visit, since reading it costs more than they do"
    )
    return Plan(
        image_size=sizes[0],
        teacher_image_size=sizes[1],
        epochs=epochs,
        teacher_epochs=_teacher_epochs(epochs) if fine_tune else 0.0,
        crops=crops,
        crops_per_image=1 if keep else 4,
        cache="ram" if keep else "none",
        fine_tune=fine_tune,
        seconds=seconds_for(epochs),
        label_bytes=images * crops * _BYTES_A_CROP,
        reasons=tuple(reasons),
        rates=rates,
    )


def spoken(seconds: float) -> str:
    """A time in words for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _teacher_epochs(epochs: float) -> float:
    return float(min(8, max(2, round(epochs / 5))))


def _crops(epochs: float) -> int:
    return int(min(30, max(4, math.ceil(epochs))))


def _largest(fits: Any) -> float:
    """The largest number of epochs that fits, of a rising series from 1; 0 where 1 does not."""
    found = 0.0
    for epochs in sorted({float(round(1.12**n)) for n in range(60)}):
        if epochs <= 300 and fits(epochs):
            found = epochs
    return found


def _step_seconds(model: torch.nn.Module, size: int, batch: int, device: torch.device) -> float:
    """Seconds a crop of a training step, reading left out."""
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    targets = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images).float(), targets).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return _timed(step, device) * 1.15 / batch  # the optimiser and the average of the weights


def _answer_seconds(model: torch.nn.Module, size: int, device: torch.device) -> float:
    batch = default_batch(device.type, size)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    model = model.eval()

    def answer() -> None:
        with torch.inference_mode():
            model(images)

    return _timed(answer, device) / batch


def _read_seconds(seen: Look, size: int) -> float:
    """Seconds to read an image and cut a crop, in one thread."""
    source = open_images(seen.labelled)
    places = np.unique(np.linspace(0, len(source) - 1, 16).astype(int)).tolist()
    begun = time.perf_counter()
    for place in places:
        try:
            pixels = decode(source.read(place))
        except UnreadableImage:  # counted when they were looked at
            continue
        cut(pixels, (0, 0, *pixels.shape[:2]), False, size)
    return (time.perf_counter() - begun) / len(places)


def _timed(function: Any, device: torch.device) -> float:
    """The shortest of three calls after one that does not count."""
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])
