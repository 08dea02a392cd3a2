"""Worker processes that load: how they start, and what they need of the system."""

from __future__ import annotations

import multiprocessing
import os
from typing import Literal

import cv2

from ferkd.system.errors import InputError

WorkerKind = Literal["threads", "processes"]

# Each tensor of a batch that a worker process hands over is an open file on both sides: 10 a batch,
# 2 batches ahead, and the worker's pipes.
_FILES_PER_WORKER, _FILES_BESIDE = 24, 16


def forking(workers: int) -> str:
    """The way to start workers that share this process's memory."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"data.cache ram with {workers} worker processes needs processes that share memory, "
            "which this system does not have; use worker_kind threads or data.cache: disk"
        )
    return "fork"


def check_open_files(workers: int) -> None:
    """Refuse worker processes that may run out of open files: they would wait for ever."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    listing = "/proc/self/fd"
    opened = len(os.listdir(listing)) if os.path.isdir(listing) else _FILES_BESIDE
    needed = opened + _FILES_BESIDE + _FILES_PER_WORKER * workers
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        raise InputError(
            f"worker processes: {workers} need about {needed} open files, and {allowed} are "
            "allowed; allow more (ulimit -n 4096), use fewer workers, or worker_kind threads"
        )


def one_thread(worker: int) -> None:
    """Workers are the parallelism; threads inside each would only fight over the cores."""
    cv2.setNumThreads(0)
