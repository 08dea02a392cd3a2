"""Files that are either whole or absent, and the state that a run continues from."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from ferkd.errors import InputError

VERSION = 1


def temporary(path: Path) -> Path:
    """The name under which a file is written before it takes its own; a kill may leave it."""
    return path.with_name(f".{path.name}.tmp")


def atomic_write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write ``path`` by ``write(file)`` so that a reader or a crash sees the old or the new file.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed.
    """
    unfinished = temporary(path)
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's state dict as safetensors, atomically, on the CPU and contiguous."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    atomic_write(path, lambda file: file.write(safetensors_bytes(state)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state, atomically; tensors, numbers, strings and containers of them only."""
    atomic_write(path, lambda file: torch.save({"version": VERSION, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, onto the CPU, without running any code.

    Raises InputError for a file that is not one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path}: not a readable checkpoint ({cause}); "
            "delete it to start the run anew with --resume"
        ) from None
    found = state.get("version") if isinstance(state, dict) else None
    if found != VERSION:
        raise InputError(
            f"{path}: checkpoint version {found!r}, this ferkd reads {VERSION}; "
            "start the run anew with --overwrite"
        )
    return dict(state)


def random_state() -> dict[str, Any]:
    """The state of torch's random generators (dropout, drop path), CPU and every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the random streams of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
