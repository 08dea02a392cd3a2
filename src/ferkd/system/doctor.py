"""What this installation is and what is likely wrong with it: the figures of ``ferkd doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd import __version__
from ferkd.system.results import Result

# What each extra brings, by the names under which it is imported.
EXTRAS = {
    "report": ("jinja2",),
    "demo": ("jinja2", "sklearn"),
    "probe": ("sklearn",),
    "tensorboard": ("tensorboard",),
    "hf": ("transformers",),
    "s3": ("s3fs",),
    "exchange": ("pyarrow",),
    "hf-datasets": ("datasets",),
}
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")
_SHARED = Path("/dev/shm")
_SMALL_SHARED = 256 << 20  # bytes: loading workers hand batches over through it
_FEW_FILES = 256


@dataclass(frozen=True, eq=False)
class Installation(Result):
    """What is installed, and on what; of ``extras`` what is missing of each.

    ``problems`` are lines that name the finding and the remedy.
    """

    versions: dict[str, str | None]
    devices: dict[str, Any]
    threads: dict[str, Any]
    limits: dict[str, int | None]
    extras: dict[str, list[str]]
    problems: list[str]


def examine() -> Installation:
    """This installation. Imports torch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices: dict[str, Any] = {
        "cpu": f"{cores or 1} of {os.cpu_count()} cores, {_processor()}",
        "bf16": bool(torch.cpu._is_avx512_bf16_supported()),
    }
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    found: dict[str, Any] = {"devices": devices}
    found["threads"] = {
        "torch": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        **{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")},
    }
    found["limits"] = {"open_files": _open_files(), "shared_memory": _free(_SHARED)}
    return Installation(
        versions={"python": platform.python_version(), **_versions()},
        **found,
        extras={name: missing(modules) for name, modules in EXTRAS.items()},
        problems=problems(found, cores or 1),
    )


def problems(found: Mapping[str, Any], cores: int) -> list[str]:
    """What is likely to go wrong by ``threads``, ``limits`` and ``devices``, each line with its
    remedy."""
    lines = []
    threads, limits, devices = found["threads"], found["limits"], found["devices"]
    if threads["torch"] > cores:
        lines.append(
            f"torch uses {threads['torch']} threads on {cores} cores; set OMP_NUM_THREADS={cores}"
        )
    if threads["load"] is not None and threads["load"] > cores + 0.5:
        remedy = (
            "OMP_NUM_THREADS=1 often is quicker"
            if threads["torch"] > 1
            else "everything takes longer until others end"
        )
        lines.append(f"{threads['load']} processes want {cores} cores; {remedy}")
    if limits["open_files"] is not None and limits["open_files"] < _FEW_FILES:
        lines.append(
            f"only {limits['open_files']} files may be open; raise it with ulimit -n 1024, or "
            "train with data.workers 0"
        )
    if limits["shared_memory"] is not None and limits["shared_memory"] < _SMALL_SHARED:
        lines.append(
            f"{_SHARED} has {limits['shared_memory'] >> 20} MiB free; start the container with "
            "--shm-size 1g, or train with data.workers 0"
        )
    if not any(name.startswith(("cuda", "mps")) for name in devices):
        if shutil.which("nvidia-smi"):
            lines.append(
                "there is an NVIDIA driver, but torch sees no GPU; install the CUDA build of torch "
                "(pytorch.org), or look at CUDA_VISIBLE_DEVICES"
            )
        elif not devices["bf16"]:
            lines.append("no GPU, and this processor emulates bf16 slowly; leave precision at auto")
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        lines.append("the terminal is no UTF-8 one; names are shown escaped (set LANG=C.UTF-8)")
    return lines


def missing(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that cannot be imported."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"ferkd": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _free(path: Path) -> int | None:
    return shutil.disk_usage(path).free if path.is_dir() else None
