"""What the command line shows: progress on stderr, results on stdout, names made visible."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ferkd.system import text as texts
from ferkd.system.storage import masked

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal


class Meter:
    """Progress of one task: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, title: str, bar: Progress | None) -> None:
        self._title, self._bar = title, bar
        self._task = bar.add_task(title, total=None, count="", note="") if bar else None
        self._begun = 0.0
        self._first: float | None = None  # where this run began, which a resumed one does not at 0
        self._shown = -math.inf
        self._finished = False

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` is done; ``note`` is for rates and losses."""
        if self._first is None:
            self._first, self._begun = done, time.monotonic()
        if self._bar is not None and self._task is not None:
            count, note = f"{done:.0f}/{total:.0f}", escape(texts.name(note))
            self._bar.update(self._task, completed=done, total=total, count=count, note=note)
            return
        now = time.monotonic()
        finishing = done >= total and not self._finished  # said once, however often it is heard
        if now - self._shown >= _PLAIN_SECONDS or finishing:
            self._shown = now
            self._finished = done >= total
            said = f"{self._title}: {done:.0f}/{total:.0f} {note}".rstrip()
            say(said + self._left(done, total, now))

    def _left(self, done: float, total: float, now: float) -> str:
        gained = done - (self._first or 0)
        if gained <= 0 or done >= total:
            return ""
        return f", {(now - self._begun) / gained * (total - done):.0f} s left"


@contextmanager
def meter(title: str) -> Iterator[Meter]:
    """A progress display that is cleared away at the end."""
    if not sys.stderr.isatty():
        yield Meter(title, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Meter(title, bar)


def expanded(argument: str) -> str:
    """An argument with the ~ of a path expanded as a shell does, which leaves it in quotes and
    behind ``--out=``; a path that begins with ~ is written ``./~``."""
    option, equals, value = argument.partition("=")
    if argument.startswith("~"):
        return os.path.expanduser(argument)
    if argument.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return argument


@contextmanager
def continuing(*, resume: bool = True) -> Iterator[None]:
    """On Ctrl-C, say the command that goes on; ``resume``: with --resume, not as it was given."""
    try:
        yield
    except KeyboardInterrupt:
        words = [masked(word) for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
        line = shlex.join(["ferkd", *words, *["--resume"] * resume])
        say(f"interrupted; to continue: {line}")
        raise


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(texts.lines(text), file=sys.stderr, flush=True)


def show(result: Mapping[str, Any] | list[Any], text: str, as_json: bool) -> None:
    """The result on stdout: one JSON value, or text for people."""
    if as_json:  # JSON has an escape of its own for what the terminal cannot show
        text = texts.to_json(
            result, ascii=not (sys.stdout.encoding or "").lower().startswith("utf")
        )
    print(texts.lines(text))


def table(rows: list[tuple[str, Any]]) -> str:
    """Names and values as two aligned columns, each pair a line whatever the names hold."""
    shown = [(texts.name(name), texts.name(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)
