"""Work that runs ahead of whoever takes its results, in order and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

_T = TypeVar("_T")


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """``count`` threads to decode and cut in; what was not begun is dropped at the end.

    OpenCV's own threads are off meanwhile: they would only fight over the same cores.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    pool = ThreadPoolExecutor(count, "ferkd-worker")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(before)


def ahead(futures: Iterator[Future[_T]], depth: int) -> Iterator[_T]:
    """The futures' results in order, with at most ``depth`` more begun than are taken."""
    waiting: deque[Future[_T]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
