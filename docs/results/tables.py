"""The tables of docs/evidence.md and README.md, from the results beside this file.

``python docs/results/tables.py`` writes them anew, ``--check`` only says which are not what the
results say. In a page a table follows a line like::

    <!-- table flowers-small.json budget=short base=hard only=hard,fkd no=reach,nll -->

``budget`` is the result's last unless said; ``base`` is whom differences are taken against, the
result's own baseline unless said; ``only`` keeps methods, in the order given; ``no`` leaves out
columns: ``ece``, ``difference``, ``nll`` (its difference), ``reach``. What a run reached before its
end is known for the result's own baseline only. ``pairs=fkd:ferkd,fkd-weak:ferkd-weak`` makes a row
of each pair instead, the second against the first. ``shares=knn_top1,probe_top1`` makes a table of
these figures of the runs, in percent, each with its difference from ``base``.
``<!-- regimes KIND -->`` is one of the tables of regimes.py beside this file.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferkd.study.compare.summary import paired
from ferkd.system.tables import markdown

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))
import regimes

HERE = Path(__file__).parent
PAGES = (
    HERE.parent / "evidence.md",
    HERE.parent / "what-to-use.md",
    HERE.parents[1] / "README.md",
)
MARK = re.compile(r"<!-- (table|regimes) (?P<file>\S+?)(?P<options>( \S+=\S+)*) -->")
SHARES = {"knn_top1": "nearest neighbours", "probe_top1": "linear probe"}

Rows = dict[str, dict[str, Any]]


def table(file: str, **options: str) -> list[str]:
    """The lines of one table in Markdown."""
    result = json.loads((HERE / file).read_text(encoding="utf-8"))
    rows: Rows = result["budgets"][options.get("budget", result["budget"])]["methods"]
    if "pairs" in options:
        return _pairs(rows, [pair.split(":") for pair in options["pairs"].split(",")])
    base = options.get("base", result["baseline"])
    without = set(options.get("no", "").split(","))
    if base != result["baseline"]:
        without.add("reach")
    names = options["only"].split(",") if "only" in options else list(rows)
    if "shares" in options:
        return _shares(rows, names, base, options["shares"].split(","))
    columns = ["method", "top-1, %", "NLL"]
    columns += [] if "ece" in without else ["ECE, %"]
    columns += [] if "difference" in without else [f"top-1 against {base}, points"]
    columns += [] if {"difference", "nll"} & without else [f"NLL against {base}"]
    columns += [] if "reach" in without else [f"steps to {base}'s final accuracy"]
    seeds = {len(rows[name]["seeds"]) for name in names}
    if len(seeds) > 1:
        columns.insert(1, "seeds")
    lines = [columns]
    for name in names:
        row = rows[name]
        cells = [name, *([str(len(row["seeds"]))] if len(seeds) > 1 else [])]
        cells += [_spread(row, "top1", 100, 1), _spread(row, "nll", 1, 3)]
        cells += [] if "ece" in without else [_spread(row, "ece", 100, 1)]
        if "difference" not in without:
            cells.append(_difference(rows, name, base, "top1", 100, 1))
            cells += [] if "nll" in without else [_difference(rows, name, base, "nll", 1, 3)]
        cells += [] if "reach" in without else [_reach(row)]
        lines.append(cells)
    return _markdown(lines)


def _pairs(rows: Rows, pairs: list[list[str]]) -> list[str]:
    columns = ["pair", "top-1, %", "difference, points", "NLL", "difference"]
    lines = [columns]
    for first, second in pairs:
        cells = [f"{first} / {second}"]
        for key, scale, digits in (("top1", 100, 1), ("nll", 1, 3)):
            both = [_spread(rows[name], key, scale, digits) for name in (first, second)]
            cells += [" / ".join(both), _difference(rows, second, first, key, scale, digits)]
        lines.append(cells)
    return _markdown(lines)


def _shares(rows: Rows, names: list[str], base: str, keys: list[str]) -> list[str]:
    columns = ["network", "seeds"]
    for key in keys:
        columns += [f"{SHARES.get(key, key)}, %", f"against {base}, points"]
    lines = [columns]
    for name in names:
        cells = [name, str(len(rows[name]["seeds"]))]
        for key in keys:
            cells.append(_spread(rows[name], key, 100, 1))
            cells.append(_difference(rows, name, base, key, 100, 1))
        lines.append(cells)
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> list[str]:
    return markdown(lines[0], lines[1:]).splitlines()


def _spread(row: dict[str, Any], key: str, scale: float, digits: int) -> str:
    mean, deviation = row[f"{key}_mean"], row[f"{key}_std"]
    text = f"{scale * mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {scale * deviation:.{digits}f}"


def _difference(rows: Rows, name: str, base: str, key: str, scale: float, digits: int) -> str:
    if name == base:
        return "–"
    ours, theirs = (
        {int(seed): scale * run[key] for seed, run in rows[of]["runs"].items()}
        for of in (name, base)
    )
    found = paired(ours, theirs)
    if found is None:
        return "–"
    text = f"{found['mean']:+.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def _reach(row: dict[str, Any]) -> str:
    found = row["reach"]
    return (
        "never" if found is None else f"{found['steps']:,.0f} ({100 * found['steps_share']:.0f}%)"
    )


def renewed(lines: list[str]) -> Iterator[str]:
    """The page's lines with every marked table as the results have it."""
    place = 0
    while place < len(lines):
        line = lines[place]
        place += 1
        yield line
        if mark := MARK.fullmatch(line):
            options = dict(option.split("=", 1) for option in mark["options"].split())
            made = regimes.table if mark[1] == "regimes" else table
            yield from ["", *made(mark["file"], **options), ""]
            while place < len(lines) and (not lines[place] or lines[place].startswith("|")):
                place += 1


def main() -> int:
    """Write or check; the exit status."""
    differing = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = "".join(f"{line}\n" for line in renewed(text.splitlines()))
        if "--check" not in sys.argv[1:]:
            page.write_text(new, encoding="utf-8")
            continue
        before, after = text.splitlines(), new.splitlines()
        for line in difflib.unified_diff(before, after, page.name, "the results", lineterm=""):
            print(line)
        differing += text != new
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
