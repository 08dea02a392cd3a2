"""Which of several processes this one is, and what they tell each other."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import distributed

from ferkd.system.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """Process ``rank``, from 0, of ``world_size`` that work on one job."""

    rank: int = 0
    world_size: int = 1

    def part(self, count: int) -> slice:
        """This process's equal part of ``count`` things that lie in a row."""
        each = count // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)


def launched() -> int:
    """How many processes a launcher such as torchrun says that there are, 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


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
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    if launched() > 1:
        raise InputError(
            f"WORLD_SIZE is {launched()}, but there is no process group, so every process would "
            "get the same batches; call torch.distributed.init_process_group first, or give rank "
            "and world_size"
        )
    return Ranks()


def refuse_several(what: str) -> None:
    """Raise InputError where several processes would each do the whole of ``what``."""
    group = distributed.is_available() and distributed.is_initialized()
    size = distributed.get_world_size() if group else launched()
    if size > 1:
        raise InputError(
            f"{what} runs on one process, and {size} were started, each of which would do all of "
            "it; start it without torchrun, or unset WORLD_SIZE"
        )
