"""The folder of a suite: DIR/suite.yaml and DIR/BUDGET/METHOD-SEED, and which runs it wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ferkd.study.compare.runs import Run, read_run
from ferkd.study.compare.suite import Suite, did_you_mean, make_suite
from ferkd.study.compare.trees import flatten
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, write_whole
from ferkd.system.plain import read_yaml
from ferkd.training import folder as folders

SUITE = "suite.yaml"
_LOCK = ".lock"
_HEADER = "# The resolved suite of this folder, written by ferkd compare\n"


@dataclass(frozen=True)
class WantedRun:
    """One run of a suite."""

    budget: str
    method: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.budget}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        return (self.folder / folders.RESULT).is_file()


def wanted_runs(
    suite: Suite, out: Path, only: Sequence[str] = (), budgets: Sequence[str] = ()
) -> list[WantedRun]:
    """All runs, budget by budget and in each seed by seed over the methods.

    So an interrupted suite has compared all methods on as many seeds as it could. ``only`` keeps
    some of the methods, ``budgets`` some of the budgets; raises InputError for an unknown one.
    """
    for name in only:
        if name not in suite.methods:
            raise InputError(f"--only {name}: no such method; {did_you_mean(name, suite.methods)}")
    for name in budgets:
        if name not in suite.budgets:
            raise InputError(
                f"--budget {name}: no such budget; {did_you_mean(name, suite.budgets)}"
            )
    methods = [name for name in suite.methods if not only or name in only]
    return [
        WantedRun(budget, method, seed, out / budget / f"{method}-{seed}")
        for budget in suite.budgets
        if not budgets or budget in budgets
        for seed in suite.seeds
        for method in methods
    ]


def check_folder(suite: Suite, out: Path, *, report_only: bool = False) -> None:
    """Raise InputError unless ``suite`` may run in ``out``: a new folder, or its own.

    A suite that only adds methods, seeds or budgets to the one in the folder may, one with fewer
    seeds and one with another baseline: nothing that was run is changed by it. With
    ``report_only`` it may also lack methods and budgets. What it lacks is left out of the report
    and stays in the folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the suite's runs")
    if not is_suite_folder(out):
        if out.exists() and {file.name for file in out.iterdir()} - {_LOCK}:
            raise InputError(
                f"{out} is not empty and holds no {SUITE} that ferkd compare wrote; give another "
                "--out"
            )
        return
    changed = changes(read_folder(out).to_dict(), suite.to_dict(), lacking=not report_only)
    if changed:
        raise InputError(
            f"{out} holds the runs of another suite:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\ngive the same suite (methods, seeds and budgets may be added), or another --out"
        )


def is_suite_folder(out: Path) -> bool:
    """Whether ferkd compare wrote the folder, which its suite.yaml says in the first line."""
    try:
        return (out / SUITE).read_bytes().startswith(_HEADER.encode())
    except OSError:
        return False


def changes(old: dict[str, Any], new: dict[str, Any], *, lacking: bool = True) -> list[str]:
    """One line for each key of the suite ``old`` that ``new`` changes or (``lacking``) lacks."""
    lines = []
    for part in ("base", "set"):
        lines += _differing(f"suite.{part}", old[part], new[part])
    for part in ("methods", "budgets"):
        for name, entry in old[part].items():
            if name in new[part]:
                lines += _differing(f"suite.{part}.{name}", entry, new[part][name])
            elif lacking:
                lines.append(f"suite.{part}.{name}: in the folder, not in this suite")
    return lines


def _differing(where: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, now = flatten(old), flatten(new)
    absent = object()
    return [
        f"{where}.{key}: {before.get(key, 'unset')!r} in the folder, "
        f"{now.get(key, 'unset')!r} in this suite"
        for key in {**before, **now}
        if before.get(key, absent) != now.get(key, absent)
    ]


def read_folder(out: Path) -> Suite:
    """The suite of a folder. Raises InputError where it cannot be read."""
    path = out / SUITE
    try:
        return make_suite(read_yaml(path, "suite"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); restore it") from None


def write_suite(suite: Suite, out: Path) -> None:
    """Write the resolved suite, atomically; this marks the folder as a suite's.

    Seeds that the folder has and ``suite`` lacks stay in it.
    """
    if is_suite_folder(out):
        seeds = dict.fromkeys([*read_folder(out).seeds, *suite.seeds])
        suite = suite.model_copy(update={"seeds": tuple(seeds)})
    text = _HEADER + yaml.safe_dump(suite.to_dict(), sort_keys=False, allow_unicode=True)
    write_whole(out / SUITE, text.encode())


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the suite's folder, made if need be; InputError when another process holds it."""
    make_folder(out)
    try:
        with FileLock(out / _LOCK).acquire(timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"another ferkd compare runs in {out}; wait for it, or look at what it has finished "
            "with --report-only"
        ) from None


def finished(suite: Suite, wanted: Sequence[WantedRun]) -> dict[str, dict[str, list[Run]]]:
    """The finished runs by budget and method, every budget and method of ``wanted`` present."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for item in wanted:
        group = groups.setdefault(item.budget, {}).setdefault(item.method, [])
        run = read_run(item.folder) if item.finished else None
        if run is not None:
            group.append(run)
    return groups
