"""Which of several processes this one is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ferkd.system.errors import InputError
from ferkd.system.launch import SaidByTheFirst, launched, restarts

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """Process ``rank``, from 0, of ``world_size`` that work on one job."""

    rank: int = 0
    world_size: int = 1

    def part(self, count: int) -> slice:
        """This process's equal part of ``count`` things that lie in a row."""
        each = count // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)


def find_ranks(rank: int | None = None, world_size: int | None = None) -> Ranks:
    """The ranks as given, else of the initialised process group, else of one process alone.

    Raises InputError for ranks that cannot be, and where a launcher started several processes
    that have not found each other: each would then do the whole job.
    """
    if (rank is None) != (world_size is None):
        raise InputError(f"rank is {rank} and world_size {world_size}; give both or neither")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise InputError(
                f"rank is {rank} of a world_size of {world_size}; ranks count from 0 to "
                "world_size - 1"
            )
        return Ranks(rank, world_size)
    if _in_group():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    if launched() > 1:
        raise InputError(
            f"WORLD_SIZE is {launched()}, but there is no process group, so every process would "
            "get the same batches; call torch.distributed.init_process_group first, or give rank "
            "and world_size"
        )
    return Ranks()


@contextmanager
def process_group(cuda: bool) -> Iterator[Ranks]:
    """The ranks of the processes that a launcher started, which find each other meanwhile.

    NCCL carries what lies on CUDA devices, each process having that of its LOCAL_RANK, and gloo
    the rest. A group that there is already is used as it is; one process alone has none.
    """
    if _in_group() or launched() == 1:
        yield find_ranks()
        return
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, rank, world_size = next(distributed.rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # torchrun's store outlives a restart: what processes that died left there would be
            # taken for word of these. The machines of a job count restarts each for itself.
            store = distributed.PrefixStore(f"start {restarts()}", store)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size
        )
    except ValueError as error:  # RANK, MASTER_ADDR or MASTER_PORT is not set
        raise InputError(
            f"WORLD_SIZE is {launched()}, but the processes cannot find each other ({error}); "
            "start them by torchrun, or unset WORLD_SIZE for one process"
        ) from None
    try:
        yield find_ranks()
    finally:
        distributed.destroy_process_group()


def by_first(function: Callable[[], _T]) -> _T:
    """What ``function`` gives or raises on the first process, which alone calls it, on all."""
    if not _in_group() or distributed.get_world_size() == 1:
        return function()
    box: list[Any] = [None]
    failure: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            box = [("value", function())]
        except Exception as error:
            box, failure = [(type(error).__name__, str(error))], error
    distributed.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    kind, value = box[0]
    if kind == "value":
        return value  # type: ignore[no-any-return]
    raise SaidByTheFirst(f"process 0 stopped: {value}")


def gathered(value: _T) -> list[_T]:
    """The ``value`` of every process, in their order, on all."""
    if not _in_group():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def agreed(*flags: bool) -> list[bool]:
    """Which of the ``flags`` any process has raised."""
    if not _in_group() or distributed.get_world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in raised]


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over the processes of float ``values``, which have one shape."""
    if _in_group() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
        values = values / distributed.get_world_size()
    return values


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows of every process one after the other; each has as many. Without a gradient."""
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def padded_rows_of_all(rows: Tensor) -> Tensor:
    """The rows [n, ...] of every process one after the other, whose numbers n may differ.

    Shorter ones travel padded, so that all send alike, and lose the padding on arrival.
    """
    if not _in_group() or distributed.get_world_size() == 1:
        return rows
    shapes = gathered(tuple(rows.shape))
    longest = max(shapes, key=lambda shape: shape[0])
    if longest[0] == 0:
        return rows
    room = rows.new_zeros(longest)
    if len(rows):
        room[: len(rows)] = rows
    parts = rows_of_all(room).split(longest[0])
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])


def as_first(module: nn.Module) -> None:
    """Give the buffers of ``module`` the values that they have on the first process."""
    if _in_group() and distributed.get_world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
