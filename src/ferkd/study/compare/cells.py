"""The tables of a comparison in words: one source for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ferkd.study.report.model import Cell, Table
from ferkd.system.tables import aligned
from ferkd.system.text import name as visible

Rows = Mapping[str, Mapping[str, Any]]


def tables(rows: Rows, baseline: str | None) -> tuple[Table, Table]:
    """The two tables of a budget: what was reached, and what it cost."""
    return _accuracy(rows, baseline), _cost(rows, baseline)


def _accuracy(rows: Rows, baseline: str | None) -> Table:
    figures = (("top1", "percent"), ("top5", "percent"), ("nll", "number"), ("ece", "percent"))
    head = ["seeds", "top-1, %", "top-5, %", "NLL", "ECE, %"]
    best = {key: _best(rows, key, form) for key, form in figures}
    compared = baseline in rows and len(rows) > 1
    if compared:
        head.append(f"top-1 against {baseline}, points")
        head.append(f"NLL against {baseline}")
    body = {}
    for name, row in rows.items():
        cells = [Cell(str(len(row["seeds"])))]
        for key, form in figures:
            text, deviation = _worded(row[f"{key}_mean"], form), row[f"{key}_std"]
            note = "" if deviation is None else f"± {_worded(deviation, form)}"
            cells.append(Cell(text, note, best[key] == text))
        if compared:
            cells.append(_difference(row.get("top1_difference"), 100, 1))
            cells.append(_difference(row.get("nll_difference"), 1, 3))
        body[name] = tuple(cells)
    words = "Mean ± sample deviation over the seeds, of the final evaluation."
    if compared:
        words += (
            f" Differences are paired by seed; in brackets Student's 95 % interval: one that holds"
            f" 0 does not tell the method from {baseline}."
        )
    return Table("What was reached", words, tuple(head), body)


def _cost(rows: Rows, baseline: str | None) -> Table:
    head = ["steps", "decodes", "crops", "seconds"]
    goal = next((row["goal"] for row in rows.values() if row.get("goal") is not None), None)
    words = "A decode is an image read once, however many crops it shows; seconds are of training."
    if goal is not None:
        head += [f"{unit} to {100 * goal:.1f} %" for unit in ("steps", "decodes", "seconds")]
        words += (
            f" The last columns say when the mean curve first has {baseline}'s final top-1, "
            f"{100 * goal:.1f} %, and which share of {baseline}'s whole run that is; - where it "
            "never has."
        )
    body = {}
    for name, row in rows.items():
        cells = [Cell(_count(row[key])) for key in ("steps", "decodes", "crops")]
        cells.append(Cell(_seconds(row["seconds"]), _spread(row)))
        if goal is not None:
            cells += _reached(row["reach"])
        body[name] = tuple(cells)
    return Table("What it cost", words, tuple(head), body)


def _spread(row: Mapping[str, Any]) -> str:
    return "" if row["seconds_std"] is None else f"± {_seconds(row['seconds_std'])}"


def _reached(reach: Mapping[str, Any] | None) -> list[Cell]:
    if reach is None:
        return [Cell("-")] * 3
    cells = []
    for key in ("steps", "decodes", "seconds"):
        share = reach[f"{key}_share"]
        text = _seconds(reach[key]) if key == "seconds" else _count(reach[key])
        cells.append(Cell(text, "" if share is None else f"{100 * share:.0f} %"))
    return cells


def _difference(found: Mapping[str, Any] | None, scale: float, digits: int) -> Cell:
    if found is None:
        return Cell("-")
    if found["mean"] == found["low"] == found["high"] == 0:  # every pair, not their mean alone
        return Cell("equal")
    text = f"{scale * found['mean']:+.{digits}f}"
    if found["low"] is None:
        return Cell(text)
    low, high = (f"{scale * found[end]:+.{digits}f}" for end in ("low", "high"))
    return Cell(text, f"[{low}, {high}]")


def _best(rows: Rows, key: str, form: str) -> str | None:
    """How the best mean reads, so that rounding makes no winner; None where all read alike."""
    means = [m for row in rows.values() if (m := row[f"{key}_mean"]) is not None]
    if len({_worded(m, form) for m in means}) < 2:
        return None
    return _worded(max(means) if key.startswith("top") else min(means), form)


def _worded(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if form == "percent" else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plain(table: Table) -> str:
    """A table as aligned text."""
    lines = [("method", *map(visible, table.head))]
    lines += [(visible(n), *(_joined(cell) for cell in cells)) for n, cells in table.rows.items()]
    return aligned(lines)


def _joined(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".rstrip()


def print_rich(title: str, shown: Sequence[Table], remarks: Sequence[str]) -> None:
    """The tables on a terminal, the best means in bold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    for table in shown:
        heading = escape(visible(f"{title}: {table.title.lower()}"))
        drawn = RichTable(title=heading, title_justify="left")
        drawn.add_column("method", overflow="fold")
        for word in table.head:
            drawn.add_column(escape(visible(word)), justify="right")
        for name, cells in table.rows.items():
            words = [
                f"[bold]{escape(_joined(c))}[/bold]" if c.best else escape(_joined(c))
                for c in cells
            ]
            drawn.add_row(escape(visible(name)), *words)
        console.print(drawn)
    for remark in remarks:
        console.print(escape(visible(remark)))
