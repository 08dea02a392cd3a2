"""``ferkd compare``: run what is missing, then the numbers of what is finished."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferkd.study.bench.measuring import machine
from ferkd.study.compare.checks import check_data, check_finished, other_settings
from ferkd.study.compare.execute import Failure, Progress, Say, run_suite
from ferkd.study.compare.folder import check_folder, finished, locked, wanted_runs, write_suite
from ferkd.study.compare.runs import Run, group_runs, other_data, other_terms
from ferkd.study.compare.suite import Suite, did_you_mean
from ferkd.study.compare.summary import remarks, summarise
from ferkd.system.errors import InputError
from ferkd.system.storage import local_path


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    ``result`` is plain data for JSON: "methods" (of the last budget), "budgets", "baseline",
    "suite", "notes", "failures", "machine", "date", "command". ``titles`` are the budgets' names
    in words, ``groups`` the runs.
    """

    result: dict[str, Any]
    groups: Mapping[str, Mapping[str, Sequence[Run]]]
    titles: Mapping[str, str]
    failures: Sequence[Failure] = field(default=())


def compare_suite(
    suite: Suite,
    out: Path,
    *,
    name: str,
    only: Sequence[str] = (),
    budgets: Sequence[str] = (),
    jobs: int = 1,
    report_only: bool = False,
    baseline: str | None = None,
    say: Say = lambda line: None,
    progress: Progress = lambda done, total, note: None,
) -> Compared:
    """Bring the runs of ``suite`` in the folder ``out`` to their ends and compare them.

    ``name`` is what the suite is called in the result, ``only`` keeps some methods and ``budgets``
    some budgets, ``jobs`` runs that many processes at a time, ``report_only`` runs nothing. Raises
    InputError before anything is written, KeyboardInterrupt on an interrupt, with all runs' states
    saved.
    """
    out = local_path(out)
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: it must be at least 1")
    baseline = baseline or suite.baseline
    if baseline not in suite.methods:
        raise InputError(
            f"--baseline {baseline}: no such method; {did_you_mean(baseline, suite.methods)}"
        )
    wanted = wanted_runs(suite, out, only, budgets)
    check_folder(suite, out, report_only=report_only)
    failures: list[Failure] = []
    if not report_only:
        check_finished(suite, wanted)
        check_data(suite, wanted)
        with locked(out):
            write_suite(suite, out)
            failures = run_suite(suite, wanted, jobs=jobs, say=say, progress=progress)
    if not any(run.finished for run in wanted) and not failures:
        raise InputError(f"{out} holds no finished run of this suite; run it without --report-only")
    # Methods that were not asked for stay out of the table, but the baseline belongs to it.
    shown = wanted_runs(suite, out, [*only, baseline] if only else (), budgets)
    groups = finished(suite, shown)
    missing = {
        budget: [run.folder.name for run in shown if run.budget == budget and not run.finished]
        for budget in groups
    }
    titles = {key: f"{key}: {budget}" for key, budget in suite.budgets.items()}
    result = _result(groups, baseline, missing, name)
    for key, found in result["budgets"].items():
        budget = suite.budgets[key]
        found |= {"count": budget.count, "amount": budget.amount}
        found["remarks"] += other_terms(groups[key], baseline)
        found["remarks"] += [
            f"{name} was made with other settings: {'; '.join(lines)}"
            for name, lines in other_settings(suite, [r for r in shown if r.budget == key]).items()
        ]
    result["failures"] = {failure.run.name: failure.message for failure in failures}
    return Compared(result, groups, titles, failures)


def compare_runs(folders: Sequence[Path], *, baseline: str | None = None) -> Compared:
    """Compare finished runs, grouped by method and by what differs in their recipes.

    ``baseline`` is the name of a group; by default ``hard`` where there is one, else the first.
    Raises InputError.
    """
    found = group_runs([local_path(folder) for folder in folders])
    names = list(dict.fromkeys(name for group in found.budgets.values() for name in group))
    if baseline is None:
        hard = [n for n in names if n == "hard" or n.startswith("hard ")]
        baseline = (hard or names)[0]
    elif baseline not in names:
        raise InputError(f"--baseline {baseline}: no such group; {did_you_mean(baseline, names)}")
    result = _result(found.budgets, baseline, {}, None)
    result["notes"] = list(found.notes)
    return Compared(result, found.budgets, {name: name for name in found.budgets})


def _result(
    groups: Mapping[str, Mapping[str, Sequence[Run]]],
    baseline: str,
    missing: Mapping[str, Sequence[str]],
    suite: str | None,
) -> dict[str, Any]:
    budgets: dict[str, Any] = {}
    for name, methods in groups.items():
        rows = summarise(methods, baseline)
        notes = remarks(rows, baseline, missing.get(name, ())) + other_data(methods)
        budgets[name] = {"methods": rows, "remarks": notes}
    last = list(budgets)[-1]
    return {
        "methods": budgets[last]["methods"],
        "budget": last,
        "budgets": budgets,
        "baseline": baseline,
        "suite": suite,
        "notes": [],
        "failures": {},
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["ferkd", *sys.argv[1:]]),
    }
