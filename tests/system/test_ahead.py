"""Work ahead: in order, bounded, and OpenCV's own threads off for as long as anybody works."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import cv2
import pytest

from ferkd.system.threads import ahead, workers


def test_results_come_in_order_and_no_more_than_depth_are_begun_ahead():
    begun = []

    def futures():
        for number in range(7):
            begun.append(number)
            future: Future[int] = Future()
            future.set_result(number)
            yield future

    taken = []
    for result in ahead(futures(), 2):
        taken.append(result)
        assert len(begun) == min(7, len(taken) + 2)
    assert taken == list(range(7))


@pytest.fixture
def two_threads():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


def test_opencv_gets_its_threads_back_when_the_last_user_is_done(two_threads):
    first, second = workers(1), workers(1)
    first.__enter__()
    assert cv2.getNumThreads() == 1
    second.__enter__()
    first.__exit__(None, None, None)  # not nested: the first to begin ends first
    assert cv2.getNumThreads() == 1
    second.__exit__(None, None, None)
    assert cv2.getNumThreads() == 2


def test_what_was_not_begun_is_dropped_and_no_thread_stays(two_threads):
    gate, ran = threading.Event(), []
    with pytest.raises(KeyboardInterrupt), workers(1) as pool:
        pool.submit(gate.wait)
        pool.submit(ran.append, 1)
        threading.Timer(0.1, gate.set).start()
        raise KeyboardInterrupt
    assert not ran and cv2.getNumThreads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("ferkd-worker")]
