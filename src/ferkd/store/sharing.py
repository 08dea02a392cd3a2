"""A store that several processes write together, each some of its parts.

A part is written by whoever holds its claim, a lock that the system takes back from a process that
dies. Each process has a shard, every n-th part, and takes over the shards of processes that have
begun and died. Who finds every part written joins them; the bytes are those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter
from ferkd.store.claims import CLAIMS, names_of_shards, release
from ferkd.store.reader import LabelStore
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError

_PATIENCE = 600.0  # seconds for another process to write the settings, or to join the parts


@dataclass(frozen=True)
class Shard:
    """The ``index``-th, from 0, of ``count`` processes."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that "0/4" means; raises InputError."""
        index, mark, count = text.partition("/")
        if not (mark and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InputError(f"shard is {text!r}; write 0/4 to 3/4 for the shards of 4 processes")
        return cls(int(index), int(count))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard | None:
        """The shard that a launcher gave this process: torchrun, a SLURM array, srun's tasks.

        None where there is one process alone. Raises InputError for an array that counts in no
        even steps.
        """
        if (count := _number(environment, "WORLD_SIZE", 1)) > 1:
            return cls(_number(environment, "RANK", 0), count)
        shard = cls()
        if "SLURM_ARRAY_TASK_ID" in environment:
            shard = _of_array(environment)
        if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:  # started by srun
            tasks = _number(environment, "SLURM_NTASKS", 1)
            place = _number(environment, "SLURM_PROCID", 0)
            shard = cls(shard.index * tasks + place, shard.count * tasks)
        return shard if shard.count > 1 else None


class SharedWriter(StoreWriter):
    """Writes some parts of a store that others write too. Use as a context manager.

    An existing unfinished store is continued; whoever comes first writes its settings. Without a
    ``shard`` the process claims the parts that it is told to write one by one.
    """

    _shared = True

    def __init__(
        self,
        path: str | Path,
        settings: manifests.Settings,
        total: int,
        *,
        shard: Shard | None,
        signal: str | None = None,
    ) -> None:
        super().__init__(path, settings, total, signal=signal, resume=True)
        self.shard, self._patience = shard, _PATIENCE
        self._mine: FileLock | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            if self.shard is not None and not self.finished():
                self._mine = self._claim_own(self.shard)
        finally:
            # The others are to come in, for the settings are the same for all; a process that
            # wants to be alone sees the claim.
            self._unlock()
        return self

    def _claim_own(self, shard: Shard) -> FileLock | None:
        mine = self._claim(f"shard-{shard.index}-of-{shard.count}")
        if mine is None and not self.finished():
            raise InputError(
                f"shard {shard.index}/{shard.count} of {self.path} is being written by another "
                "process; give each process a shard of its own"
            )
        return mine

    def __exit__(self, *exception: object) -> None:
        if self._mine is not None:
            release(self._mine, remove=exception[0] is None)

    def claimed(self) -> Iterator[int]:
        """The parts that are this process's to write, one claimed at a time."""
        if self.shard is None:
            return
        yield from self._of_shard(self.shard)
        for other in names_of_shards(self.work):
            index, count = (int(number) for number in other.split("-")[1::2])
            if Shard(index, count) == self.shard or self.finished():
                continue
            theirs = self._claim(other)
            if theirs is not None:  # it has died
                yield from self._of_shard(Shard(index, count))
                release(theirs, remove=True)

    def _of_shard(self, shard: Shard) -> Iterator[int]:
        for number in range(shard.index, self.parts, shard.count):
            with self.claiming(number) as mine:
                if mine:
                    yield number

    @contextmanager
    def claiming(self, number: int) -> Iterator[bool]:
        """Hold the claim of a part; whether it is this process's to write."""
        written = self._part(number)
        claim = None if self.finished() or written.exists() else self._claim(f"{number:06d}")
        if claim is None:
            yield False
            return
        try:
            yield not written.exists()
        finally:
            release(claim, remove=True)

    def _claim(self, name: str) -> FileLock | None:
        """The lock of that name; None where another process holds it or the store is finished."""
        lock = FileLock(self.work / CLAIMS / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except OSError:
            if self.finished():
                return None
            raise
        if self.finished():  # since a moment: taking the lock has made its folder again
            release(lock, remove=True)
            self._sweep_finished()
            return None
        return lock

    def _sweep_finished(self) -> None:
        """Remove the folders of claims that came after the store was finished."""
        for folder in (self.work / CLAIMS, self.work):
            if folder != self.path:
                with suppress(OSError):  # another process's claim is in it, which does the same
                    folder.rmdir()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Hold the store's own lock, for whoever joins the parts."""
        try:
            self._lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise InputError(
                f"{self.path} is being joined by another process for a long time; look after it, "
                "then continue with --finish"
            ) from None
        try:
            yield
        finally:
            self._unlock()

    def finish(self) -> LabelStore:
        """Join the parts into the finished store, unless another process has."""
        with self.joining():
            return super().finish()


class SharedSignalWriter(SharedWriter, SignalWriter):
    """Writes some parts of a signal that several processes add to a finished store."""


def _of_array(environment: Mapping[str, str]) -> Shard:
    low = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    high = _number(environment, "SLURM_ARRAY_TASK_MAX", low)
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT", high - low + 1)
    here = _number(environment, "SLURM_ARRAY_TASK_ID", low)
    step = (high - low) // max(1, count - 1) or 1
    index, rest = divmod(here - low, step)
    if rest or (count - 1) * step != high - low or not 0 <= index < count:
        raise InputError(
            f"the SLURM array of {count} tasks from {low} to {high} has no even steps; number it "
            f"0-{count - 1}, or give --shard"
        )
    return Shard(index, count)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else default
