"""What the command line shows: progress on stderr, results on stdout, names made visible."""

from __future__ import annotations

import datetime
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ferkd.system import text as texts
from ferkd.system.interrupt import NotBegun
from ferkd.system.storage import masked

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal


class _Pace:
    """Seconds left, by the pace of the later half of the time so far.

    A machine gets slower and faster, and a resumed task does not begin at 0. rich's own estimate
    knows the last 30 s alone, which are none where a task tells of itself more rarely.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()  # (time, done), a second or more apart
        self._begun = self._now = self._done = self._total = 0.0

    def update(self, done: float, total: float, now: float) -> None:
        if total != self._total or done < self._done:  # other work: its pace is its own
            self._seen.clear()
        self._done, self._total, self._now = done, total, now
        if not self._seen:
            self._begun = now
        if not self._seen or now - self._seen[-1][0] >= 1:
            self._seen.append((now, done))
        while len(self._seen) > 1 and self._seen[1][0] <= (self._begun + now) / 2:
            self._seen.popleft()

    def left(self, now: float) -> float | None:
        """Seconds left at the time ``now``; None where nothing tells them."""
        if not self._seen:
            return None
        since, first = self._seen[0]
        gained = self._done - first
        if gained <= 0 or self._done >= self._total:
            return None
        whole = (self._now - since) / gained * (self._total - self._done)
        return max(0.0, whole - (now - self._now))


class _LeftColumn(ProgressColumn):
    """The time left as H:MM:SS, counted down between two updates."""

    def render(self, task: Task) -> Text:
        left = task.fields["pace"].left(time.monotonic())
        shown = "-:--:--" if left is None else str(datetime.timedelta(seconds=round(left)))
        return Text(shown, style="progress.remaining")


class Meter:
    """Progress of one task: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, title: str, bar: Progress | None) -> None:
        self._title, self._bar = title, bar
        self._pace = _Pace()
        self._task = (
            bar.add_task(title, total=None, count="", note="", pace=self._pace) if bar else None
        )
        self._shown = -math.inf
        self._finished = False

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` is done; ``note`` is for rates and losses.

        Whole things are counted: a run that is at nine tenths is not done.
        """
        now = time.monotonic()
        self._pace.update(done, total, now)
        count = f"{math.floor(done)}/{total:.0f}"
        if self._bar is not None and self._task is not None:
            note = escape(texts.name(note))
            self._bar.update(self._task, completed=done, total=total, count=count, note=note)
            return
        finishing = done >= total and not self._finished  # said once, however often it is heard
        if now - self._shown >= _PLAIN_SECONDS or finishing:
            self._shown = now
            self._finished = done >= total
            left = self._pace.left(now)
            words = "" if left is None else f", {left:.0f} s left"
            say(f"{self._title}: {count} {note}".rstrip() + words)


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
        _LeftColumn(),
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
    except NotBegun:
        line = shlex.join(["ferkd", *map(masked, sys.argv[1:])])
        say(f"interrupted before anything was replaced; to begin again: {line}")
        raise
    except KeyboardInterrupt:
        words = [masked(word) for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
        line = shlex.join(["ferkd", *words, *["--resume"] * resume])
        say(f"interrupted; to continue: {line}")
        raise


def say(text: str) -> None:
    """A line for people, on stderr: in one write, since a thread's log may come in between two."""
    sys.stderr.write(texts.lines(text) + "\n")
    sys.stderr.flush()


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
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in shown)
