"""How the benchmarks measure: sides in turns, medians, targets, and what they were measured on.

All sides of a comparison are timed in turns, in one process, so that what else the machine does
weighs on all alike; a figure is the median over the turns.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from ferkd import __version__
from ferkd.system.settings import check_least


@dataclass(frozen=True)
class Target:
    """A figure that is to be reached: at least (">=") or at most ("<=") ``target``."""

    target: float
    measured: float
    rule: Literal[">=", "<="] = ">="

    @property
    def reached(self) -> bool:
        if self.rule == ">=":
            return self.measured >= self.target
        return self.measured <= self.target

    def describe(self) -> dict[str, Any]:
        """As the benchmarks' JSON says it."""
        return {
            "target": self.target,
            "rule": self.rule,
            "measured": self.measured,
            "reached": self.reached,
        }


def described(targets: Mapping[str, Target]) -> dict[str, dict[str, Any]]:
    """The targets by name, as JSON."""
    return {name: target.describe() for name, target in targets.items()}


def in_turns(
    sides: Mapping[str, Callable[[int], float]], repeats: int, *, uncounted: int = 0
) -> dict[str, list[float]]:
    """What each side gives in each of ``repeats`` turns, after ``uncounted`` turns to warm up.

    A side is called with the number of the turn and returns its figure. Every turn begins with
    another side, so that none always follows the same one. Raises InputError for no repeats.
    """
    check_least(1, repeats=repeats)
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(uncounted + repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            figure = sides[name](turn)
            if turn >= uncounted:
                found[name].append(figure)
    return found


def seconds_of(action: Callable[[], object], device: torch.device | None = None) -> float:
    """The wall-clock seconds that ``action`` takes, the work it leaves on the device included.

    Not by torch.utils.benchmark: its timer calls what it times twice more beforehand and with one
    thread, but sides here are timed in turns, many once a turn, with the threads that they get.
    """
    synchronise(device)
    begun = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device | None) -> None:
    """Wait for a CUDA device's work; nothing to wait for on others."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(values: list[float]) -> dict[str, float]:
    """The median of repeated figures and its neighbours."""
    low, high = np.quantile(values, [0.25, 0.75])
    return {
        "median": statistics.median(values),
        "quartile_1": float(low),
        "quartile_3": float(high),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV and torch with one thread each in this process, as they were afterwards.

    Loaders are compared by what a core does; worker processes have one thread anyway.
    """
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def in_a_fresh_process(function: str, *arguments: Any) -> Any:
    """What ``function`` ("package.module:name") returns in a new interpreter, in JSON both ways.

    For figures of a whole process, such as its memory. Raises RuntimeError when it fails.
    """
    module, _, name = function.partition(":")
    code = (
        f"import json, sys; from {module} import {name}; "
        f"print(json.dumps({name}(*json.loads(sys.argv[1]))))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{function} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_resident() -> int:
    """The largest number of bytes that this process had in memory so far."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> dict[str, int]:
    """This process's resident bytes by kind, from Linux's /proc; empty elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = {line.split(":")[0]: line.split() for line in lines}
    return {
        "private": int(sizes["RssAnon"][1]) * 1024,
        "mapped": int(sizes["RssFile"][1]) * 1024,
    }


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    packages = ("numpy", "torchvision", "timm", "pillow")
    libraries = [f"{name} {version(name)}" for name in packages]
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.system(),
        "software": ", ".join(
            [
                f"ferkd {__version__}, torch {torch.__version__}, opencv {cv2.__version__}",
                *libraries,
            ]
        ),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
