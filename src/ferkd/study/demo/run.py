"""The whole pipeline in one call: data, teacher, labels, a suite of students, report."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ferkd.images import refuse_inside_images, refuse_other_sources
from ferkd.labelling.run import Progress, label
from ferkd.store import LabelStore
from ferkd.study.compare import Compared, compare_suite
from ferkd.study.demo import data as demo_data
from ferkd.study.demo.sizes import FOLDER, SCENES, Sizes, students, teacher_recipe
from ferkd.study.demo.summary import Demo, DemoResult, methods_of, write_report
from ferkd.system.errors import InputError
from ferkd.system.files import sweep, write_json
from ferkd.system.locks import held
from ferkd.system.plain import read_json
from ferkd.system.storage import local_path
from ferkd.training import folder as folders
from ferkd.training import train
from ferkd.training.progress import Meter, no_meter, on_a_bar
from ferkd.training.result import RunResult

_MARKER, _TIME = "demo.json", "time.json"
_OURS = ("data", "teacher", "labels", "runs", "report.html", "result.json", _TIME, _MARKER)


def run_demo(
    out: Path,
    *,
    images: Path | None = None,
    seeds: int = 1,
    held_out: float = 0.2,
    resume: bool = False,
    overwrite: bool = False,
    sizes: Sizes | None = None,
    say: Callable[[str], None] = print,
    meter: Meter = no_meter,
) -> Demo:
    """Run everything into the folder ``out``; returns what was found.

    ``images`` None makes the embedded scenes; else a folder with ``train`` and ``val``, or class
    folders of which ``held_out`` is set aside. ``seeds`` students are trained by each method.
    ``meter`` shows how far each step is.
    Raises InputError; an interrupted demo continues with ``resume`` and the same settings.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; train at least 1 student by each method")
    sizes = sizes or (SCENES if images is None else FOLDER)
    out = local_path(out)
    if images is not None:
        refuse_other_sources(images, "the demo")
        images = local_path(images, "folder of images")
    refuse_inside_images(out, images)
    if images is not None:
        demo_data.check(images, held_out)
    busy = f"{out} is being written by another ferkd demo; wait for it, or give another --out"
    _claim(out, sizes, images, held_out, resume=resume, overwrite=overwrite, look=True)
    with held(out, busy):
        _claim(out, sizes, images, held_out, resume=resume, overwrite=overwrite)
        with _Clock(out / _TIME) as clock:
            return _run(out, sizes, images, held_out, seeds, say, meter, clock)


class _Clock:
    """Seconds spent on a demo in all, those before interruptions included."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun, self._before = path, time.perf_counter(), 0.0
        if path.is_file():
            self._before = float(read_json(path, "time of a demo").get("seconds", 0.0))

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begun

    def keep(self) -> None:
        """Write the time so far down: what a kill loses is what came after."""
        write_json(self._path, {"seconds": self.seconds})

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(InputError):  # a full disk has been said already
            self.keep()


def _run(
    out: Path,
    sizes: Sizes,
    images: Path | None,
    held_out: float,
    seeds: int,
    say: Callable[[str], None],
    meter: Meter,
    clock: _Clock,
) -> Demo:
    data = demo_data.prepare(out / "data", images, held_out)
    say(f"images: {data.train} and {data.val}")
    teacher = _teacher(out / "teacher", sizes, data, say, meter)
    clock.keep()
    store = _label(out, sizes, data, say, meter)
    clock.keep()
    compared = _students(out, sizes, data, seeds, say, meter, clock)
    mined = write_report(
        out / "report.html",
        sizes=sizes,
        data=data,
        store=store,
        teacher=teacher,
        compared=compared,
        seconds=clock.seconds,
        command=_command(out, images, seeds, held_out),
    )
    result = DemoResult(
        methods=methods_of(compared),
        teacher={key: teacher[key] for key in ("top1", "nll", "ece", "seconds")},
        seeds=seeds,
        plan=sizes.model_dump(mode="json"),
        **mined,
        seconds=clock.seconds,
    )
    write_json(out / "result.json", result)
    return Demo(result, compared)


def _command(out: Path, images: Path | None, seeds: int, held_out: float) -> str:
    """The command that makes such a demo again, in a folder beside this one."""
    words = ["ferkd", "demo", "--out", f"{out}-again"]
    if images is not None:
        words += ["--images", str(images)]
        if not (images / "train").is_dir():
            words += ["--held-out", f"{held_out:g}"]
    return shlex.join([*words, "--seeds", str(seeds)] if seeds > 1 else words)


def _claim(
    out: Path,
    sizes: Sizes,
    images: Path | None,
    held_out: float,
    *,
    resume: bool,
    overwrite: bool,
    look: bool = False,
) -> None:
    """Take a folder for the demo, or refuse it; nothing but a demo's own files is ever removed.

    With ``look`` it is only refused where it would be.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    settings = {
        "plan": sizes.model_dump(mode="json"),
        "images": None if images is None else str(images),
        "held_out": held_out,
    }
    marker = out / _MARKER
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    if out.exists() and any(not folders.is_trace(file.name) for file in out.iterdir()):
        if not marker.is_file():
            raise InputError(f"{out} is not empty and not a demo's folder; give another --out")
        if overwrite:
            for name in () if look else _OURS:
                path = out / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        elif not resume:
            raise InputError(
                f"{out} holds a demo already; continue it with --resume, replace it with "
                "--overwrite, or give another --out"
            )
        elif read_json(marker, "demo's settings") != settings:
            raise InputError(
                f"{out} holds a demo with other settings; give the same ones, or --overwrite"
            )
    if not look:
        sweep(out)
        write_json(marker, settings)


def _teacher(
    out: Path, sizes: Sizes, data: demo_data.Data, say: Callable[[str], None], meter: Meter
) -> RunResult:
    with meter("teacher") as advance:
        progress = on_a_bar(advance, lambda words: say(f"teacher: {words}"))
        # Where the demo is, and whether it was interrupted, is its own business: always resume.
        result = train(teacher_recipe(sizes, data), out, resume=True, progress=progress)
    say(f"teacher: top-1 {result.top1:.1%} after {result.steps} steps")
    return result


def _students(
    out: Path,
    sizes: Sizes,
    data: demo_data.Data,
    seeds: int,
    say: Callable[[str], None],
    meter: Meter,
    clock: _Clock,
) -> Compared:
    suite = students(sizes, data, out / "labels", seeds)
    with meter("students") as advance:

        def progress(done: float, total: float, note: str) -> None:
            if done == int(done):  # a run has ended
                clock.keep()
            advance(done, total, note)

        compared = compare_suite(suite, out / "runs", name="demo", say=say, progress=progress)
    for failure in compared.failures:
        raise failure.error
    return compared


def _label(
    out: Path, sizes: Sizes, data: demo_data.Data, say: Callable[[str], None], meter: Meter
) -> LabelStore:
    last: list[Progress] = []
    with meter("labelling") as advance:

        def progress(now: Progress) -> None:
            last[:] = [now]
            advance(now.done, now.total, f"images, {now.crops_per_second:.0f} crops/s")

        store = label(
            data.train,
            out / "teacher",
            out / "labels",
            crops=sizes.crops,
            image_size=sizes.image_size,
            workers=1,
            resume=True,
            progress=progress,
        )
    rate = f", {last[-1].crops_per_second:.0f} crops/s" if last else ""
    say(f"labels: {len(store)} images x {store.crops_per_image} crops{rate}")
    return store
