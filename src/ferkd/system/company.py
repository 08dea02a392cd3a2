"""How much other work this machine did meanwhile: whether seconds measured here may be compared."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")  # Linux; elsewhere nothing is known


class Company:
    """A clock that also reads how many cores others kept busy since it was made.

    Others are all processes but this one and its children that have ended, and on a virtual
    machine the share of the cores that it was not given.
    """

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def others(self) -> float | None:
        """Cores busy with other work on average; None where the system does not tell."""
        busy = _busy()
        wall = time.perf_counter() - self._wall
        if busy is None or self._busy is None or wall <= 0:
            return None
        return max(0.0, (busy - self._busy) - (_own() - self._own)) / wall


def _busy() -> float | None:
    """Seconds that all cores together spent at work or were kept from this machine."""
    try:
        fields = _STAT.read_text().splitlines()[0].split()
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[1:9])
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    return sum(os.times()[:4])
