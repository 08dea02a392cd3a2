"""Running the runs of a suite: one after the other in this process, or several processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ferkd.study.compare.folder import WantedRun
from ferkd.study.compare.length import run_length
from ferkd.study.compare.runs import write_company
from ferkd.study.compare.suite import Suite
from ferkd.system.company import Company
from ferkd.system.interrupt import Interrupt
from ferkd.training import folder as folders
from ferkd.training.progress import on_a_bar
from ferkd.training.recipe import load_recipe
from ferkd.training.result import RunResult, read_result
from ferkd.training.run import train

Say = Callable[[str], None]
# (runs done, runs in all, note); a run under way counts as the part of it that is done
Progress = Callable[[float, int, str], None]


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    run: WantedRun
    error: Exception

    @property
    def message(self) -> str:
        """What the run said; a run in a process of its own has worded its error already."""
        own = isinstance(self.error, RunFailed)
        return str(self.error) if own else f"{type(self.error).__name__}: {self.error}"


class RunFailed(RuntimeError):
    """A run's process ended with an error; the message is its own."""


class Stopped(Exception):
    """A run was not begun, or was stopped, because of an interrupt."""


class Execute(Protocol):
    """Trains the recipe in the file to the folder, continuing what is there; its result."""

    def __call__(
        self, recipe: Path, out: Path, *, log: Path, steps: Callable[[float], None]
    ) -> RunResult: ...


def run_suite(
    suite: Suite, wanted: Sequence[WantedRun], *, jobs: int, say: Say, progress: Progress
) -> list[Failure]:
    """Run what is not finished of ``wanted``; returns the runs that failed.

    One run's failure does not stop the others. On SIGINT and SIGTERM the runs under way save
    their state and KeyboardInterrupt is raised; a later call continues them.
    """
    waiting = [run for run in wanted if not run.finished]
    if jobs > 1:
        return _in_processes(suite, waiting, len(wanted), jobs, say, progress)
    failures = []
    done = len(wanted) - len(waiting)
    for run in waiting:

        def steps(share: float, done: int = done, run: WantedRun = run) -> None:
            share = min(share, 0.99)  # the last evaluation and the result are still to come
            progress(done + share, len(wanted), f"runs, {run.name} at {math.floor(100 * share)} %")

        here = _Here(lambda words, run=run: say(f"{run.name}: {words}"))  # type: ignore[misc]
        failure = _one(suite, run, here, say, steps, threading.Lock(), alone=True)
        failures += [failure] if failure else []
        done += 1
        progress(done, len(wanted), "runs")
    return failures


def _one(
    suite: Suite,
    run: WantedRun,
    execute: Execute,
    say: Say,
    steps: Callable[[float], None],
    trials: threading.Lock,
    *,
    alone: bool,
) -> Failure | None:
    """Bring one run to its end; ``alone`` among the runs of this suite or beside others."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with trials:  # a rate that is measured twice would give two seeds two lengths
            length = run_length(suite, run, execute)
        recipe = suite.recipe(run.method, run.seed, length)
        settings = recipe.to_dict()
        if not (run.folder / folders.RECIPE).is_file():
            folders.write_recipe(run.folder, settings)
        folders.prepare(run.folder, settings, resume=True, overwrite=False)
        log = run.folder.with_name(f"{run.folder.name}.log")
        company = Company()
        result = execute(run.folder / folders.RECIPE, run.folder, log=log, steps=steps)
        write_company(run.folder, company.others() if alone else None)
    except Stopped:
        return None
    except Exception as error:  # any failure of a run is that run's alone
        say(f"{run.name} failed")
        return Failure(run, error)
    accuracy = "" if result.top1 is None else f"top-1 {result.top1:.1%}, "
    say(f"{run.name}: {accuracy}{result.steps} steps, {result.seconds:.0f} s")
    return None


@dataclass(frozen=True)
class _Here:
    """Trains in this process; what a run finds in its labels goes to ``say``."""

    say: Say

    def __call__(
        self, recipe: Path, out: Path, *, log: Path, steps: Callable[[float], None]
    ) -> RunResult:
        progress = on_a_bar(lambda done, total, note: steps(done / total), self.say)
        return train(load_recipe(recipe), out, resume=True, progress=progress)


class _Processes:
    """Trains in processes of their own, at most as many at a time as there are threads calling.

    A child has a session of its own, so that a Ctrl-C reaches it once, from here.
    """

    def __init__(self, jobs: int) -> None:
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), **os.environ}
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def __call__(
        self, recipe: Path, out: Path, *, log: Path, steps: Callable[[float], None]
    ) -> RunResult:
        # -P: not the modules that happen to lie in the working directory.
        command = [sys.executable, "-P", "-m", "ferkd", "train", str(recipe), "--out", str(out)]
        with log.open("wb") as said:
            with self._lock:
                if self._stopping:
                    raise Stopped
                child = subprocess.Popen(
                    [*command, "--resume"],
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    stdin=subprocess.DEVNULL,
                    env=self.environment,
                    start_new_session=True,
                )
                self._children.add(child)
            status = child.wait()
            with self._lock:
                self._children.discard(child)
        if status == 0:
            return read_result(out)
        if self._stopping:
            raise Stopped
        raise RunFailed(_last_words(log, status))

    def stop(self, number: int) -> None:
        """Send a signal to all children and start no more."""
        with self._lock:
            self._stopping = True
            for child in self._children:
                child.send_signal(number)


def _in_processes(
    suite: Suite,
    waiting: Sequence[WantedRun],
    total: int,
    jobs: int,
    say: Say,
    progress: Progress,
) -> list[Failure]:
    processes = _Processes(jobs)
    trials = {(run.budget, run.method): threading.Lock() for run in waiting}
    failures: list[Failure] = []
    with ThreadPoolExecutor(jobs) as pool:

        def begin(run: WantedRun) -> Future[Failure | None]:
            lock = trials[run.budget, run.method]
            alone = len(waiting) == 1
            nothing: Callable[[float], None] = lambda share: None  # noqa: E731
            return pool.submit(_one, suite, run, processes, say, nothing, lock, alone=alone)

        try:
            with Interrupt() as interrupt:
                pending = {begin(run) for run in waiting}
                sent = False
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    failures += [f for future in done if (f := future.result()) is not None]
                    if done and not interrupt.requested:
                        progress(total - len(pending), total, "runs")
                    if interrupt.requested and not sent:
                        pending = {run for run in pending if not run.cancel()}
                        processes.stop(signal.SIGINT)
                        sent = True
        except BaseException:  # the second Ctrl-C, or a fault of ours: leave no child behind
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop(signal.SIGTERM)
            raise
    if interrupt.requested:
        raise KeyboardInterrupt
    return failures


def _last_words(log: Path, status: int) -> str:
    """The error message at the end of a run's log."""
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(("error: ", "failed: "))]
    words = "\n".join(lines[starts[-1] :] if starts else lines[-1:])
    return f"{words or 'it said nothing'} (exit status {status}, {log})"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
