"""A run's weights, and the state that it continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from ferkd.system.errors import InputError
from ferkd.system.files import whole_file, write_whole

VERSION = 2  # 1 had the random state of one process, and knew images by their names


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's state dict as safetensors, atomically, on the CPU and contiguous."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_whole(path, safetensors_bytes(state))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state, atomically; tensors, numbers, strings and containers of them only."""
    with whole_file(path) as file:
        torch.save({"version": VERSION, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, onto the CPU, without running any code.

    Raises InputError for a file that is not one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive shows in errors of many classes
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
