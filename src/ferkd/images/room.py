"""Memory for large images: few are decoded at a time, whatever the number of worker threads.

A file of a few kilobytes may hold 175 million pixels, and each worker may meet one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ferkd.system.errors import InputError
from ferkd.system.memory import free_memory

LARGE = 16_000_000  # pixels; what is smaller takes memory that nobody has to count
_PATIENCE = 20.0  # seconds in which others may give memory back
_LOOK_AGAIN = 0.2


class NoRoom(InputError):
    """Memory does not suffice for an image. The message tells its size: the caller adds the id."""


class _Room:
    """The large images of this process that are being decoded, and the bytes that they may take."""

    def __init__(self) -> None:
        self._free_again = threading.Condition()
        self._decoding = self._taken = self._limit = 0

    def take(self, pixels: int, needed: int) -> None:
        with self._free_again:
            latest = time.monotonic() + _PATIENCE
            while True:
                if self._decoding == 0:  # half of what is free now, but one always, where it fits
                    free = free_memory()
                    self._limit = max(free // 2, needed)
                    if needed <= free:
                        break
                    if time.monotonic() > latest:
                        raise NoRoom(
                            f"decoding its {pixels} pixels takes about {needed / 1e9:.2g} GB of "
                            f"memory, and {free / 1e9:.2g} GB are free; use fewer workers, free "
                            "memory, or remove the image"
                        )
                elif self._taken + needed <= self._limit:
                    break
                self._free_again.wait(_LOOK_AGAIN)
            self._decoding += 1
            self._taken += needed

    def give(self, needed: int) -> None:
        with self._free_again:
            self._decoding -= 1
            self._taken -= needed
            self._free_again.notify_all()


_ROOM = _Room()
if hasattr(os, "register_at_fork"):  # a child has none of the threads that were decoding
    os.register_at_fork(after_in_child=_ROOM.__init__)  # type: ignore[misc]


@contextmanager
def room(pixels: int, bytes_a_pixel: int) -> Iterator[None]:
    """Decode an image of so many pixels here; large ones wait until memory suffices, else NoRoom.

    ``bytes_a_pixel``: what decoding takes at its height.
    """
    if pixels < LARGE:
        yield
        return
    _ROOM.take(pixels, pixels * bytes_a_pixel)
    try:
        yield
    finally:
        _ROOM.give(pixels * bytes_a_pixel)


@contextmanager
def named(image_id: str | Callable[[], str], source: str) -> Iterator[None]:
    """Add an image's id, or what tells it, and its source's name to a NoRoom raised inside."""
    try:
        yield
    except NoRoom as error:
        called = image_id if isinstance(image_id, str) else image_id()
        raise InputError(f"{called} of {source}: {error}") from None
