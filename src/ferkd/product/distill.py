"""``ferkd distill``: from a folder of photographs to a small model, in five phases.

Each phase is an ordinary command's work in a folder of its own, and is passed over where it is
finished. What was chosen is written down before the first phase, so a distillation that was killed
and continued makes the same choices and, on the CPU, the same bytes.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from ferkd.labelling.agreement import agreement_of, probe
from ferkd.labelling.run import label
from ferkd.models.specs import parse_spec
from ferkd.models.student import Student, load_run
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.product.figures import Figures, figures_of, milliseconds, teacher_figures
from ferkd.product.look import Look, look
from ferkd.product.planning import BATCH, Plan, Rates, image_sizes, make_plan, measure_rates, spoken
from ferkd.product.report import write_report
from ferkd.product.settings import Settings, network_of, parse_student
from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary, write_json, write_whole
from ferkd.system.plain import read_json
from ferkd.training import train
from ferkd.training.finetune import FineTuning, fine_tune
from ferkd.training.recipe import load_recipe

MARKER, RESULT, REPORT, LOCK = "distill.json", "result.json", "report.html", "lock"
_FOLDERS = ("data", "teacher", "labels", "student", "baseline", "model")
_FILES = ("student.yaml", "baseline.yaml", REPORT, RESULT, MARKER)
_LOADS: tuple[str, ...] = ("teacher", "labels", "student")

log = logging.getLogger("ferkd")
Progress = Callable[[float, float, str], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What the first phase settles: the images, the teacher's network or the teacher itself, and
    the plan."""

    seen: Look
    plan: Plan
    network: Student | None  # to fine-tune; None: the teacher is used as it is


def distill(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Distil into the folder ``out``; returns the result that ``result.json`` holds.

    ``progress(done, total, note)`` counts planned seconds over all phases. Raises InputError for
    what cannot work, before anything is trained; KeyboardInterrupt with the state saved.
    """
    out = Path(out).expanduser()
    begun = time.perf_counter()
    with _claimed(out, settings, resume=resume, overwrite=overwrite):
        state = _State(out)
        prepared = _prepared(settings, out, state, progress, say)
        show = _Display(prepared.plan, progress)
        for line in (*prepared.seen.lines(), *plan_lines(prepared.plan)):
            say(line)
        work = _Work(settings, out, prepared, state, show, say)
        teacher = work.teacher()
        labels = work.labels()
        student = work.students()
        baseline = work.baseline()
        result = work.deliver(teacher, labels, student, baseline)
        log.debug("this call took %.0f s", time.perf_counter() - begun)
        return result


def dry_run(settings: Settings, out: str | Path) -> dict[str, Any]:
    """The plan of a distillation: phases, seconds, bytes, reasons and commands; trains nothing.

    A split or links are laid out beside nothing else, in a folder that is removed again.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ferkd-plan-") as place:
        seen, _, plan, network = _settle(settings, Path(place), None)
        there = str((Path(out) / "data").absolute())
        moved = {n: getattr(seen, n).replace(place, there) for n in ("train", "val", "labelled")}
        prepared = Prepared(replace(seen, **moved), plan, network)
        return {
            "look": seen.lines(),
            "plan": plan.to_dict(),
            "lines": plan_lines(plan),
            "commands": commands(settings, Path(out), prepared),
        }


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people."""
    total = sum(plan.seconds.values())
    phases = ", ".join(f"{name} {spoken(s)}" for name, s in plan.seconds.items())
    return [
        f"plan   about {spoken(total)}: {phases}; labels of {plan.label_bytes / 1e6:.1f} MB",
        *(f"       {reason}" for reason in plan.reasons),
    ]


def commands(settings: Settings, out: Path, prepared: Prepared) -> dict[str, str]:
    """The command of each phase that does its work by hand."""
    seen, plan = prepared.seen, prepared.plan

    def line(*words: object) -> str:
        return shlex.join(str(word) for word in words)

    spec = settings.teacher if prepared.network is None else out / "teacher"
    sized = (
        ()
        if Path(str(spec)).is_dir() or prepared.network
        else ("--image-size", plan.teacher_image_size)
    )
    found: dict[str, str] = {}
    if prepared.network is not None:
        found["teacher"] = line(
            *("ferkd", "finetune", seen.labelled, "--val", seen.val, "--teacher", settings.teacher),
            *("--image-size", plan.teacher_image_size, "--epochs", f"{plan.teacher_epochs:g}"),
            *("--out", out / "teacher"),
        )
    found["labels"] = line(
        *("ferkd", "label", seen.train, "--teacher", spec, "--crops", plan.crops, *sized),
        *("--out", out / "labels"),
    )
    found["student"] = line("ferkd", "train", out / "student.yaml", "--out", out / "student")
    if settings.baseline:
        found["baseline"] = line("ferkd", "train", out / "baseline.yaml", "--out", out / "baseline")
    if find_spec("ferkd.product.export") is not None:
        found["deliver"] = line("ferkd", "export", out / "student", "--to", out / "model")
    return found


class _State:
    """The seconds spent by phase, over all calls."""

    def __init__(self, out: Path) -> None:
        self.path = out / MARKER
        self.content = read_json(self.path, "distillation") if self.path.is_file() else {}

    def save(self, **more: Any) -> None:
        self.content |= more
        write_json(self.path, self.content)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = dict(self.content.get("seconds", {}))
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begun
            self.save(seconds=seconds)

    def seconds(self, phase: str) -> float:
        return float(self.content.get("seconds", {}).get(phase, 0.0))


class _Display:
    """One progress over all phases, in seconds as planned."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self._plan, self._progress = plan.seconds, progress
        self._total = sum(plan.seconds.values())
        self._done: set[str] = set()

    def __call__(self, phase: str, share: float, note: str) -> None:
        if self._progress is not None:
            before = sum(self._plan[name] for name in self._done if name != phase)
            now = before + self._plan.get(phase, 0.0) * min(share, 1.0)
            self._progress(now, self._total, f"s as planned; {phase}: {note}")

    def finished(self, phase: str) -> None:
        if phase in self._plan:
            self._done.add(phase)


class _Work:
    """The phases after the first; each passes over what is finished."""

    def __init__(
        self,
        settings: Settings,
        out: Path,
        prepared: Prepared,
        state: _State,
        show: _Display,
        say: Say,
    ) -> None:
        self.settings, self.out, self.prepared = settings, out, prepared
        self.seen, self.plan = prepared.seen, prepared.plan
        self.state, self.show, self.say = state, show, say
        self.commands = commands(settings, out, prepared)

    @property
    def teacher_spec(self) -> str:
        fine_tuned = self.prepared.network is not None
        return str(self.out / "teacher") if fine_tuned else self.settings.teacher

    def teacher(self) -> dict[str, Any]:
        plan, network = self.plan, self.prepared.network
        if network is None:
            with self.state.timed("teacher"):
                found = teacher_figures(self._load(), self.seen.val, self.settings.workers)
            self.say(
                f"teacher {self.settings.teacher}: its classes are the folders', "
                f"{found.top1:.1%} on val as it is"
            )
            self.show.finished("teacher")
            return {"spec": self.settings.teacher, "top1": found.top1, "probe_top1": None}
        self.say(f"teacher $ {self.commands['teacher']}")
        with self.state.timed("teacher"):
            result = fine_tune(
                FineTuning(
                    network=network,
                    images=self.seen.labelled,
                    val=self.seen.val,
                    image_size=plan.teacher_image_size,
                    epochs=plan.teacher_epochs,
                    workers=self.settings.workers,
                    device=self.settings.device,
                ),
                self.out / "teacher",
                resume=True,
                progress=lambda done, total, note: self.show(
                    "teacher", done / max(total, 1), f"{done}/{total} {note}"
                ),
            )
        kept = f"the best after {result['kept_step']} steps" if result["kept_step"] else "the probe"
        self.say(
            f"teacher {result['top1']:.1%} on val ({kept}; "
            f"its linear probe {result['probe_top1']:.1%})"
        )
        self.show.finished("teacher")
        return {
            "spec": self.settings.teacher,
            "top1": result["top1"],
            "probe_top1": result["probe_top1"],
        }

    def labels(self) -> dict[str, Any]:
        self.say(f"labels  $ {self.commands['labels']}")
        with self.state.timed("labels"):
            store = label(
                self.seen.train,
                self.teacher_spec,
                self.out / "labels",
                crops=self.plan.crops,
                image_size=None if self.prepared.network else self.plan.teacher_image_size,
                workers=self.settings.workers,
                device=self.settings.device,
                resume=True,
                progress=lambda now: self.show(
                    "labels",
                    now.done / max(now.total, 1),
                    f"{now.done}/{now.total} images, {now.crops_per_second:.0f} crops/s",
                ),
            )
        agreement = agreement_of(store)
        said = "" if agreement is None else f", right on {agreement:.1%} of them"
        self.say(f"labels  {len(store):,} images x {store.crops_per_image} crops{said}")
        self.show.finished("labels")
        return {"crops_per_image": store.crops_per_image, "agreement": agreement}

    def students(self) -> dict[str, Any]:
        runs = [self._run("student", seed) for seed in range(self.settings.seeds)]
        return self._told("student", runs)

    def baseline(self) -> dict[str, Any] | None:
        if not self.settings.baseline:
            self.show.finished("student")
            return None
        runs = [self._run("baseline", seed) for seed in range(self.settings.seeds)]
        self.show.finished("student")
        return self._told("baseline", runs)

    def deliver(
        self,
        teacher: dict[str, Any],
        labels: dict[str, Any],
        student: dict[str, Any],
        baseline: dict[str, Any] | None,
    ) -> dict[str, Any]:
        with self.state.timed("deliver"):
            model = self._export()
            figures: dict[str, Figures] = {}
            for name in ("student", "baseline")[: 1 + (baseline is not None)]:
                figures[name] = figures_of(
                    self.out / name, self.seen.val, self.settings.workers, self.settings.device
                )
            taught = self._load()
            figures["teacher"] = teacher_figures(taught, self.seen.val, self.settings.workers)
            speeds: dict[str, float] = {
                "teacher": milliseconds(taught.module, taught.image_size, taught.device)
            }
            for name, one in (("student", student), ("baseline", baseline)):
                if one is not None:
                    speeds[name] = one["ms_per_image"]
            sizes: dict[str, int] = {
                "teacher": sum(p.numel() for p in taught.module.parameters()),
                **{n: student["parameters"] for n in ("student", "baseline") if n in figures},
            }
        spent = {
            name: self.state.seconds(name) for name in ("look", *_LOADS, "baseline", "deliver")
        }
        result = {
            "teacher": {**teacher, "seconds": spent["teacher"]},
            "labels": {**labels, "seconds": spent["labels"]},
            "student": {**student, "seconds": spent["student"]},
            "baseline": None if baseline is None else {**baseline, "seconds": spent["baseline"]},
            "model": str(model) if model else None,
            "run": str(self.out / "student"),
            "report": str(self.out / REPORT),
            "seconds": sum(spent.values()),
            "plan": self.plan.to_dict(),
            "commands": self.commands,
        }
        page = write_report(
            seen=self.seen,
            plan_lines=plan_lines(self.plan),
            result=result,
            spent=spent,
            figures=figures,
            sizes=sizes,
            speeds=speeds,
            next_commands=next_commands(self.out, model),
        )
        write_whole(self.out / REPORT, page.encode())
        write_json(self.out / RESULT, result)
        return result

    def _run(self, name: str, seed: int) -> Path:
        """Train one student; the first seed's folder has the plain name."""
        suffix = f"-{seed}" if seed else ""
        recipe = self.out / f"{name}{suffix}.yaml"
        tree = self._recipe(name, seed)
        text = f"# Written by ferkd distill: the {name}\n" + yaml.safe_dump(tree, sort_keys=False)
        write_whole(recipe, text.encode())
        folder = self.out / f"{name}{suffix}"
        self.say(f"{name} $ {shlex.join(['ferkd', 'train', str(recipe), '--out', str(folder)])}")
        runs = self.settings.seeds * (1 + self.settings.baseline)
        place = seed + (self.settings.seeds if name == "baseline" else 0)
        total = 1

        def progress(line: dict[str, Any]) -> None:
            nonlocal total
            if line["kind"] == "start":
                total = line["steps"]
                if "regions" in line:
                    self.say(f"{name} {line['regions']}")
            note = f"{line['step']}/{total} steps"
            if "top1" in line:
                note += f", top-1 {line['top1']:.1%}"
            self.show("student", (place + line["step"] / total) / runs, f"{name} {note}")

        with self.state.timed(name):
            train(load_recipe(recipe), folder, resume=True, progress=progress)
        return folder

    def _recipe(self, name: str, seed: int) -> dict[str, Any]:
        plan, student = self.plan, parse_student(self.settings.student)
        images = self.seen.images + self.seen.unlabelled
        steps = max(1, round(plan.epochs * images / BATCH))
        known = student.pretrained or student.weights is not None
        tree: dict[str, Any] = {
            "method": "hard" if name == "baseline" else "ferkd",
            "seed": seed,
            "data": {
                "images": self.seen.labelled if name == "baseline" else self.seen.train,
                "val": self.seen.val,
                "image_size": plan.image_size,
                "batch_size": BATCH,
                "crops_per_image": plan.crops_per_image,
                "workers": self.settings.workers,
                "cache": plan.cache,
            },
            "student": student.model_dump(mode="json", exclude_none=True),
            "optimizer": {"name": "adamw", "lr": 5e-4, "layer_decay": 0.8}
            if known
            else {"name": "adamw", "lr": 4e-3},
            "schedule": {"steps": steps, "warmup": 0.1},
            "ema": round(min(0.999, max(0.9, 1 - 10 / steps)), 4),
            "device": self.settings.device,
            "evaluation": {"every_epochs": max(plan.epochs / 10, 0.1)},
        }
        if name == "baseline":
            tree["loss"] = {"label_smoothing": 0.0}  # the stronger of the hard labels
            tree["evaluation"]["every_epochs"] *= images / self.seen.images
        else:
            tree["data"]["store"] = str((self.out / "labels").absolute())
        return tree

    def _told(self, name: str, runs: list[Path]) -> dict[str, Any]:
        found = [read_json(run / "result.json", "result of a run") for run in runs]
        mean = {key: sum(one[key] for one in found) / len(found) for key in ("top1", "nll", "ece")}
        model, config = load_run(runs[0])
        device = torch.device("cpu")
        speed = milliseconds(model, config.image_size, device)
        several = {"seeds": [one["top1"] for one in found]} if len(found) > 1 else {}
        parameters = sum(p.numel() for p in model.parameters())
        self.say(
            f"{name} {mean['top1']:.1%} on val, {parameters / 1e6:.2f} M parameters, "
            f"{speed:.1f} ms an image on this machine's CPU"
        )
        return {
            "name": config.architecture,
            **mean,
            "parameters": parameters,
            "ms_per_image": speed,
            **several,
        }

    def _load(self) -> Teacher:
        size = None if self.prepared.network else self.plan.teacher_image_size
        loaded = load_teacher(self.teacher_spec, image_size=size, device=self.settings.device)
        return loaded.for_folders(self.seen.classes)

    def _export(self) -> Path | None:
        """The exported model; None where this version has no exporter."""
        if "deliver" not in self.commands:
            return None
        from ferkd.product.export import export

        self.say(f"deliver $ {self.commands['deliver']}")
        folder = self.out / "model"
        if folder.exists():
            shutil.rmtree(folder)
        export(self.out / "student", folder)
        return folder


def next_commands(out: Path, model: Path | None) -> list[str]:
    """The three commands that come next."""
    store = shlex.quote(str(out / "labels"))
    if model is None:
        run = shlex.quote(str(out / "student"))
        return [f"ferkd evaluate {run} IMAGES", f"ferkd inspect {store} --html labels.html"]
    return [
        f"ferkd predict {shlex.quote(str(model))} PHOTO.jpg",
        f"ferkd export {shlex.quote(str(out / 'student'))} --to onnx --onnx",
        f"ferkd inspect {store} --html labels.html",
    ]


def _prepared(
    settings: Settings, out: Path, state: _State, progress: Progress | None, say: Say
) -> Prepared:
    if "plan" in state.content:
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

        seen, _, plan, network = _settle(settings, out / "data", tell)
    state.save(look=seen.to_dict(), plan=plan.to_dict())
    return Prepared(seen, plan, network)


def _settle(
    settings: Settings, work: Path, tell: Callable[[int, int, str], None] | None
) -> tuple[Look, Rates, Plan, Student | None]:
    """Look at the images, find out what the teacher needs, and plan."""
    seen = look(settings, work, progress=tell)
    teacher, network, own = _what_teacher(settings, seen)
    student = parse_student(settings.student)
    *sizes, why = image_sizes(settings, seen, student, own)
    both = (int(sizes[0]), int(sizes[1]))
    rates = measure_rates(settings, seen, network, teacher, both)
    plan = make_plan(
        settings, seen, rates, sizes=both, why_sizes=str(why), fine_tune=network is not None
    )
    return seen, rates, plan, network


def _what_teacher(settings: Settings, seen: Look) -> tuple[Teacher | None, Student | None, int]:
    """The teacher where its classes are the folders', else the network to fine-tune; and its own
    image size."""
    parse_spec(settings.teacher)
    loaded = load_teacher(settings.teacher, device=settings.device)
    try:
        matched = loaded.for_folders(seen.classes)
        probe(matched, _source(seen))
        return matched, None, loaded.image_size
    except InputError as error:
        if not settings.fine_tune:
            raise InputError(
                f"{error}. --no-fine-tune was given: leave it out, and its head is fine-tuned"
            ) from None
    return None, network_of(settings.teacher), loaded.image_size


def _source(seen: Look) -> Any:
    from ferkd.images import open_images

    return open_images(seen.labelled)


@contextmanager
def _claimed(out: Path, settings: Settings, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Take a folder, or refuse it; nothing but a distillation's own files is ever removed."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    marker = out / MARKER
    used = out.exists() and any(
        file.name != LOCK and not is_temporary(file.name) for file in out.iterdir()
    )
    if used and not marker.is_file():
        raise InputError(f"{out} is not empty and not a distillation's folder; give another --out")
    if used and not resume and not overwrite:
        raise InputError(
            f"{out} holds a distillation already; continue it with --resume, replace it with "
            "--overwrite, or give another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); give another --out") from error
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out} is being written by another process; wait for it") from None
    try:
        wanted = settings.to_dict()
        if used and overwrite:
            for path in out.iterdir():
                name = path.name.partition("-")[0]
                if path.is_dir() and not path.is_symlink() and name in _FOLDERS:
                    shutil.rmtree(path)
                elif path.name in _FILES or path.suffix == ".yaml":
                    path.unlink()
        if used and resume:
            before = read_json(marker, "distillation").get("settings", {})
            changed = [key for key in wanted if before.get(key) != wanted[key]]
            if changed:
                raise InputError(
                    f"{out} was begun with other settings ("
                    + ", ".join(f"{k} was {before.get(k)!r}, now {wanted[k]!r}" for k in changed)
                    + "); resume with the same ones, or start again with --overwrite"
                )
        else:
            write_json(marker, {"settings": wanted})
        yield
    finally:
        lock.release()
        (out / LOCK).unlink(missing_ok=True)
