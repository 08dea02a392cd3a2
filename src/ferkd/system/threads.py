"""Work that runs ahead of whoever takes its results, in order and bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

_T = TypeVar("_T")


class _OpenCVThreads:
    """OpenCV's own threads, off while anybody works with `workers`.

    The number of threads is one setting of the whole process, and users may overlap in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users, self._before = 0, 0

    def off(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(0)
            self._users += 1

    def back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                cv2.setNumThreads(self._before)


_OPENCV = _OpenCVThreads()


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """``count`` threads to decode and cut in; what was not begun is dropped at the end.

    OpenCV's own threads are off meanwhile: they would only fight over the same cores.
    """
    _OPENCV.off()
    pool = ThreadPoolExecutor(count, "ferkd-worker")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        _OPENCV.back()


def ahead(futures: Iterator[Future[_T]], depth: int) -> Iterator[_T]:
    """The futures' results in order, with at most ``depth`` more begun than are taken."""
    waiting: deque[Future[_T]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
