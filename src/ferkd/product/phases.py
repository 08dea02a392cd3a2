"""The phases of ``ferkd distill`` after the first: teacher, labels, students, delivery.

Each is an ordinary command's work in a folder of its own, and is passed over where it is finished.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ferkd.images import ImageSource, open_images
from ferkd.labelling.agreement import agreement_of
from ferkd.labelling.run import label
from ferkd.models.student import load_run
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.product.claim import REPORT, RESULT, State
from ferkd.product.commands import Prepared, commands, next_commands, plan_lines
from ferkd.product.export import export
from ferkd.product.figures import Figures, compared, figures_of, milliseconds, teacher_figures
from ferkd.product.planning import Plan
from ferkd.product.recipe import student_recipe
from ferkd.product.report import write_report
from ferkd.product.result import Distilled, LabelsResult, StudentResult, TeacherResult
from ferkd.product.rule import BASELINE, Facts, Row, choose
from ferkd.product.settings import Settings, parse_student
from ferkd.system.files import write_json, write_whole
from ferkd.system.plain import read_json
from ferkd.training import train
from ferkd.training.finetune import PROBING, FineTuning, fine_tune
from ferkd.training.recipe import load_recipe

PHASES = ("look", "teacher", "labels", "student", "baseline", "deliver")
Progress = Callable[[float, float, str], None]
Say = Callable[[str], None]


class Display:
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


class Work:
    """The phases after the first; each passes over what is finished."""

    def __init__(
        self,
        settings: Settings,
        out: Path,
        prepared: Prepared,
        state: State,
        show: Display,
        say: Say,
    ) -> None:
        self.settings, self.out, self.prepared = settings, out, prepared
        self.seen, self.plan = prepared.seen, prepared.plan
        self.state, self.show, self.say = state, show, say
        self.commands = commands(settings, out, prepared)
        self._speed: float | None = None  # of the student, ms an image

    @property
    def teacher_spec(self) -> str:
        fine_tuned = self.prepared.network is not None
        return str(self.out / "teacher") if fine_tuned else self.settings.teacher

    def teacher(self) -> TeacherResult:
        plan, network = self.plan, self.prepared.network
        if network is None:
            with self.state.timed("teacher"):
                found = teacher_figures(self._load(), self.seen.val, self.settings.workers)
            self.say(
                f"teacher {self.settings.teacher}: its classes are the folders', "
                f"{found.top1:.1%} on val as it is"
            )
            self.show.finished("teacher")
            return TeacherResult(spec=self.settings.teacher, top1=found.top1, probe_top1=None)
        self.say(f"teacher $ {self.commands['teacher']}")
        rates = plan.rates
        probing = rates.answer / (rates.answer + plan.teacher_epochs * rates.teacher)

        def progress(done: int, total: int, note: str) -> None:
            share = done / max(total, 1)
            share = probing * share if note == PROBING else probing + (1 - probing) * share
            self.show("teacher", share, f"{done}/{total} {note}")

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
                progress=progress,
            )
        kept = f"the best after {result.kept_step} steps" if result.kept_step else "the probe"
        if 0 < result.kept_share < 1:
            kept = f"{result.kept_share:.0%} of the weights after {result.steps} steps"
            kept += ", the rest the probe's"
        self.say(
            f"teacher {result.top1:.1%} on val ({kept}; its linear probe {result.probe_top1:.1%})"
        )
        self.show.finished("teacher")
        return TeacherResult(
            spec=self.settings.teacher, top1=result.top1, probe_top1=result.probe_top1
        )

    def labels(self) -> LabelsResult:
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
        return LabelsResult(crops_per_image=store.crops_per_image, agreement=agreement)

    def students(self, agreement: float | None) -> StudentResult:
        known = parse_student(self.settings.student)
        row = choose(
            Facts(
                classes=len(self.seen.classes),
                images=self.seen.images,
                unlabelled=self.seen.unlabelled,
                agreement=agreement,
                pretrained=known.pretrained or known.weights is not None,
                epochs=self.plan.epochs,
            )
        )
        self.say(f"student by method {row.method}: {row.reason}")
        runs = [self._run("student", row, seed) for seed in range(self.settings.seeds)]
        return replace(self._told("student", runs), method=row.method, reason=row.reason)

    def baseline(self) -> StudentResult | None:
        if not self.settings.baseline:
            self.show.finished("student")
            return None
        runs = [self._run("baseline", BASELINE, seed) for seed in range(self.settings.seeds)]
        self.show.finished("student")
        return self._told("baseline", runs)

    def deliver(
        self,
        teacher: TeacherResult,
        labels: LabelsResult,
        student: StudentResult,
        baseline: StudentResult | None,
    ) -> Distilled:
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
                    speeds[name] = one.ms_per_image
            sizes: dict[str, int] = {
                "teacher": sum(p.numel() for p in taught.module.parameters()),
                **{n: student.parameters for n in ("student", "baseline") if n in figures},
            }
        spent = {
            name: self.state.seconds(name)
            for name in ("look", "teacher", "labels", "student", "baseline", "deliver")
        }
        difference = baseline and compared(figures["student"], figures["baseline"])
        result = Distilled(
            teacher=replace(teacher, seconds=spent["teacher"]),
            labels=replace(labels, seconds=spent["labels"]),
            student=replace(student, seconds=spent["student"]),
            baseline=None if baseline is None else replace(baseline, seconds=spent["baseline"]),
            difference=difference or None,
            model=str(model),
            run=str(self.out / "student"),
            report=str(self.out / REPORT),
            seconds=sum(spent.values()),
            plan=self.plan.to_dict(),
            commands=self.commands,
        )
        page = write_report(
            seen=self.seen,
            plan_lines=plan_lines(self.plan),
            result=result,
            spent=spent,
            figures=figures,
            sizes=sizes,
            speeds=speeds,
            next_commands=next_commands(self.out),
        )
        write_whole(self.out / REPORT, page.encode())
        write_json(self.out / RESULT, result)
        return result

    def _run(self, name: str, row: Row, seed: int) -> Path:
        """Train one student; the first seed's folder has the plain name."""
        suffix = f"-{seed}" if seed else ""
        recipe = self.out / f"{name}{suffix}.yaml"
        tree = student_recipe(self.settings, self.out, self.seen, self.plan, row, seed)
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

    def _told(self, name: str, runs: list[Path]) -> StudentResult:
        found = [read_json(run / "result.json", "result of a run") for run in runs]
        mean = {key: sum(one[key] for one in found) / len(found) for key in ("top1", "nll", "ece")}
        model, config = load_run(runs[0])
        device = torch.device("cpu")
        if self._speed is None:  # the baseline is the same network: measured once, on one machine
            self._speed = milliseconds(model, config.image_size, device)
        speed = self._speed
        parameters = sum(p.numel() for p in model.parameters())
        self.say(
            f"{name} {mean['top1']:.1%} on val, {parameters / 1e6:.2f} M parameters, "
            f"{speed:.1f} ms an image on this machine's CPU"
        )
        answer, share = _commonest(open_images(self.seen.val))
        if mean["top1"] <= share:
            self.say(
                f"note    {name} is right no more often than who always answers {answer} "
                f"({share:.1%}); give a larger --budget"
            )
        return StudentResult(
            name=config.architecture,
            **mean,
            parameters=parameters,
            ms_per_image=speed,
            seeds=[one["top1"] for one in found] if len(found) > 1 else None,
        )

    def _load(self) -> Teacher:
        size = None if self.prepared.network else self.plan.teacher_image_size
        loaded = load_teacher(self.teacher_spec, image_size=size, device=self.settings.device)
        return loaded.for_folders(self.seen.classes)

    def _export(self) -> Path:
        self.say(f"deliver $ {self.commands['deliver']}")
        folder = self.out / "model"
        export(self.out / "student", folder, overwrite=True)  # what a user put there stays
        return folder


def _commonest(images: ImageSource) -> tuple[str, float]:
    """The class that most of the images have, and their share."""
    counts = np.bincount(images.targets[images.targets >= 0], minlength=len(images.class_names))
    most = int(counts.argmax())
    return images.class_names[most], float(counts[most] / counts.sum())
