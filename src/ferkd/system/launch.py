"""What a launcher such as torchrun says of the processes that it started; torch is not needed."""

from __future__ import annotations

import os

from ferkd.system.errors import InputError


class SaidByTheFirst(InputError):
    """What the first process refused, raised on the others: it has been said once."""


def launched() -> int:
    """How many processes a launcher says that there are, 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def is_first() -> bool:
    """Whether this process is the first, or the only one, that a launcher started."""
    return launched() == 1 or os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Whether this process is the first, or the only one, on its machine."""
    return launched() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def restarts() -> int:
    """How often torchrun has started these processes again after one of them died."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def refuse_several(what: str) -> None:
    """Raise InputError where several processes would each do the whole of ``what``."""
    if launched() > 1:
        raise InputError(
            f"{what} runs on one process, and {launched()} were started, each of which would do "
            "all of it; start it without torchrun, or unset WORLD_SIZE"
        )
