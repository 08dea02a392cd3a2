"""``ferkd distill``: from a folder of photographs to a small model, in five phases.

What was chosen is written down before the first phase, so a distillation that was killed and
continued makes the same choices and, on the CPU, the same bytes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ferkd.images import open_images
from ferkd.labelling.agreement import probe
from ferkd.models.architectures import find_architecture
from ferkd.models.specs import check_exists, parse_spec
from ferkd.models.student import Student
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.product.claim import State, claimed
from ferkd.product.commands import Prepared, commands, plan_lines
from ferkd.product.look import Look, look
from ferkd.product.phases import Display, Progress, Say, Work
from ferkd.product.planning import Plan, image_sizes, make_plan, measure_rates
from ferkd.product.result import Distilled
from ferkd.product.settings import Settings, network_of, parse_student
from ferkd.system.errors import InputError
from ferkd.system.results import Result
from ferkd.system.storage import local_path

log = logging.getLogger("ferkd")


def distill(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say = print,
) -> Distilled:
    """Distil into the folder ``out``; returns the result that ``result.json`` holds.

    ``progress(done, total, note)`` counts planned seconds over all phases. Raises InputError for
    what cannot work, before anything is trained; KeyboardInterrupt with the state saved.
    """
    local_path(out, "folder for everything")  # a URL is refused
    out = Path(out).expanduser()
    begun = time.perf_counter()
    with claimed(out, settings, resume=resume, overwrite=overwrite) as state:
        prepared = _prepared(settings, out, state, progress, say)
        show = Display(prepared.plan, progress)
        for line in (*prepared.seen.lines(), *plan_lines(prepared.plan)):
            say(line)
        work = Work(settings, out, prepared, state, show, say)
        teacher = work.teacher()
        labels = work.labels()
        student = work.students(labels.agreement)
        baseline = work.baseline()
        result = work.deliver(teacher, labels, student, baseline)
        log.debug("this call took %.0f s", time.perf_counter() - begun)
        return result


@dataclass(frozen=True, eq=False)
class Intended(Result):
    """What a distillation would do: what was seen, the plan, in words too, and the commands."""

    look: list[str]
    plan: dict[str, Any]
    lines: list[str]
    commands: dict[str, str]


def dry_run(settings: Settings, out: str | Path) -> Intended:
    """The plan of a distillation: phases, seconds, bytes, reasons and commands; trains nothing.

    A split or links are laid out beside nothing else, in a folder that is removed again.
    """

    with tempfile.TemporaryDirectory(prefix="ferkd-plan-") as place:
        seen, plan, network = _settle(settings, Path(place), None)
        there = str((Path(out) / "data").absolute())
        moved = {n: getattr(seen, n).replace(place, there) for n in ("train", "val", "labelled")}
        prepared = Prepared(replace(seen, **moved), plan, network)
        return Intended(
            look=seen.lines(),
            plan=plan.to_dict(),
            lines=plan_lines(plan),
            commands=commands(settings, Path(out), prepared),
        )


def _prepared(
    settings: Settings, out: Path, state: State, progress: Progress | None, say: Say
) -> Prepared:
    if state.planned:
        found = dict(state.content["look"])
        for key in ("classes", "unreadable", "warnings"):
            found[key] = tuple(found[key])
        plan = Plan.from_dict(state.content["plan"])
        network = network_of(settings.teacher) if plan.fine_tune else None
        return Prepared(Look(**found), plan, network)
    with state.timed("look"):

        def tell(done: int, total: int, note: str) -> None:
            if progress is not None:
                progress(done, total, f"{note} looked at")

        seen, plan, network = _settle(settings, out / "data", tell)
    state.plan(look=seen.to_dict(), plan=plan.to_dict())
    return Prepared(seen, plan, network)


def _settle(
    settings: Settings, work: Path, tell: Callable[[int, int, str], None] | None
) -> tuple[Look, Plan, Student | None]:
    """Look at the images, find out what the teacher needs, and plan."""
    _check_named(settings)
    seen = look(settings, work, progress=tell)
    teacher, network, own = _what_teacher(settings, seen)
    student = parse_student(settings.student)
    *sizes, why = image_sizes(settings, seen, student, own)
    both = (int(sizes[0]), int(sizes[1]))
    rates = measure_rates(settings, seen, network, teacher, both)
    plan = make_plan(
        settings, seen, rates, sizes=both, why_sizes=str(why), fine_tune=network is not None
    )
    return seen, plan, network


def _check_named(settings: Settings) -> None:
    """Refuse networks that no library has, and weights that are not there.

    A misspelt name need not wait until all images were looked at.
    """
    check_exists(*parse_spec(settings.teacher))
    student = parse_student(settings.student)
    find_architecture(student.name)
    if student.weights is not None and not student.weights.is_file():
        raise InputError(
            f"student {student.name}: checkpoint {student.weights} is not a file; give the path of "
            "a weights file"
        )


def _what_teacher(settings: Settings, seen: Look) -> tuple[Teacher | None, Student | None, int]:
    """The teacher where its classes are the folders', else the network to fine-tune; and its own
    image size."""
    loaded = load_teacher(settings.teacher, device=settings.device)
    try:
        matched = loaded.for_folders(seen.classes)
        probe(matched, open_images(seen.labelled))
        return matched, None, loaded.image_size
    except InputError as error:
        if not settings.fine_tune:
            cause = str(error).partition("; ")[0]  # its remedies are those of ferkd label
            raise InputError(
                f"{cause}; leave out --no-fine-tune, and a head of these classes is fine-tuned, or "
                "give a teacher of these classes"
            ) from None
    return None, network_of(settings.teacher), loaded.image_size
