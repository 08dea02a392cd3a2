"""Ctrl-C and a scheduler's stop become a request, honoured between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NotBegun(KeyboardInterrupt):
    """An interrupt after which all is as it was before the call: there is nothing to continue."""


class Interrupt:
    """Within the context, SIGINT and SIGTERM set ``requested`` instead of stopping the process.

    The second signal acts as usual. Off the main thread, where Python allows no handlers, the
    context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A loading worker forked from this process: Ctrl-C reaches it too, but it is the
            # training process that stops it, by SIGTERM if it has to.
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
