"""What the trainer tells while it works, in words: for a bar, and for lines beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# (done, total, note): where a task is.
Advance = Callable[[float, float, str], None]
# A display of one task by its title, for as long as the context lasts.
Meter = Callable[[str], AbstractContextManager[Advance]]


@contextmanager
def no_meter(title: str) -> Iterator[Advance]:
    """The display of who does not look."""
    yield lambda done, total, note: None


def on_a_bar(advance: Advance, say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """Takes the trainer's lines (`ferkd.training.train`): steps, loss, rate and top-1 go to
    ``advance``, what was found in the labels or kept in a cache to ``say``."""
    steps, note, evaluated = 0, "", ""

    def progress(line: dict[str, Any]) -> None:
        nonlocal steps, note, evaluated
        if line["kind"] == "start":
            steps = line["steps"]
            for what in ("regions", "cache"):
                if what in line:
                    say(f"{what}: {line[what]}")
        elif line["kind"] == "eval":
            evaluated = f", top-1 {line['top1']:.2%}"
        elif line["kind"] == "labels":
            say(f"from step {line['from_step']}: the labels of {line['images']} images")
        else:
            rate = line["crops"] / line["seconds"] if line["seconds"] else 0.0
            note = f"steps, loss {line['loss']:.3f}, {rate:.0f} crops/s"
        advance(line["step"], steps, note + evaluated)

    return progress
