"""Weights from elsewhere: reading a state dict, loading it strictly, and its fingerprint.

A checkpoint is untrusted input: safetensors holds tensors only, and everything else goes through
``torch.load(weights_only=True)``, which refuses pickled code. Beyond torch's own list it may make
an ``argparse.Namespace``, a bag of plain values, since timm's and torchvision's training scripts
keep their options beside the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ferkd.system.errors import InputError

# Where training scripts keep the weights inside a checkpoint; averaged weights come first, as
# they are what such scripts evaluate (timm, torchvision's references, DeiT).
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Left in front of every name by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # how torch names what a pickle wanted to call


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in ``path`` on the CPU, unwrapped and without wrapper prefixes.

    Reads safetensors, or a ``torch.save`` file of tensors, bare or under "state_dict_ema",
    "model_ema", "state_dict" or "model". Raises InputError when the file is missing, damaged,
    holds no state dict, or needs pickled code, which is never executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file; give the path of a weights file")
    content = _read(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise InputError(_no_state_dict(path, f"it holds a {type(content).__name__}"))
    state = dict(content)
    state.pop("n_averaged", None)  # the step counter of torch.optim.swa_utils.AveragedModel
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None or not state:
        raise InputError(_no_state_dict(path, f"entry {odd!r} is no tensor" if odd else "empty"))
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"checkpoint {path} is not intact safetensors: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        what = f"needs {refused[1]}" if refused else "is damaged or needs Python objects"
        raise InputError(
            f"checkpoint {path} {what} besides tensors and plain values; ferkd never executes "
            "pickled code. Save the weights alone, where you trust the file: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({_first_line(error)}); give a safetensors file or "
            "one written by torch.save(model.state_dict(), ...)"
        ) from error


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load ``state`` into ``module``, every name and shape exactly.

    Raises InputError that names what is missing, unexpected or of another shape; ``source`` says
    where the state comes from.
    """
    own = module.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", [name for name in own if name not in state]),
            ("unexpected", [name for name in state if name not in own]),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}; name the "
            "architecture, num_classes and image_size that it was trained with"
        )
    module.load_state_dict(state)


def head_classes(module: nn.Module, state: Mapping[str, Tensor], classes: int) -> int:
    """How many classes the head in ``state`` has, for a ``module`` built with ``classes``.

    The head's tensors differ from the module's in the first dimension alone, where the module
    has ``classes``. Unless they agree on one number, the answer is ``classes``.
    """
    sizes = {
        state[name].shape[0]
        for name, own in module.state_dict().items()
        if own.ndim > 0
        and own.shape[0] == classes
        and name in state
        and state[name].ndim == own.ndim
        and state[name].shape[1:] == own.shape[1:]
        and state[name].shape[0] != classes
    }
    return sizes.pop() if len(sizes) == 1 else classes


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and buffers: names in order, dtypes, shapes and bytes.

    Independent of device, memory layout and the order of registration.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _no_state_dict(path: Path, cause: str) -> str:
    return (
        f"checkpoint {path} holds no state dict ({cause}); give a mapping of names to tensors, "
        f"bare or under one of {', '.join(_WRAPPERS)}"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
