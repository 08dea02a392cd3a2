"""Where and in which precision a model runs, and how a uint8 batch becomes its input."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.system.errors import InputError

logger = logging.getLogger("ferkd")

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_CACHED = 1 << 21  # bytes that are worked on at a time

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device to use; "auto" is the first CUDA device if there is one, else the CPU.

    Raises InputError for an unknown device or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device {name!r} is not known; use auto, cpu, cuda, cuda:N or mps"
        ) from None
    missing = {
        "cuda": device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count(),
        "mps": device.type == "mps" and not torch.backends.mps.is_available(),
    }
    if missing.get(device.type, device.type not in ("cpu", "cuda", "mps")):
        raise InputError(f"device {name!r} is not available on this machine; use auto or cpu")
    return device


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass; "auto" is bfloat16 on a CUDA device with it, else float32.

    Warns of bf16 on a CPU that has to emulate it. Raises InputError for fp16 off CUDA, where
    gradients cannot be scaled.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name == "fp16" and device.type != "cuda":
        raise InputError(
            f"precision fp16 needs a CUDA device, and the device is {device.type}; "
            "use bf16, fp32 or auto"
        )
    if name not in _DTYPES:
        raise InputError(f"precision {name!r} is not known; use auto, fp32, bf16 or fp16")
    emulated = torch.backends.cpu.get_cpu_capability() == "AVX2"  # x86 without AVX-512
    if name == "bf16" and device.type == "cpu" and emulated:
        logger.warning(
            "precision bf16: this CPU (AVX2) has no instructions for it and can be ten times "
            "slower than with fp32; use fp32 or auto"
        )
    return _DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context that runs a forward pass in ``dtype``; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def send(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """What is on the host on ``device``, without waiting for a CUDA device as plain copies do."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def few_rows(rows: Tensor, group: int = 1) -> Iterator[slice]:
    """The rows of a batch in parts to work through one after the other; all at once but on a CPU.

    On the CPU a part stays in the processor's cache from one pass over it to the next, and what is
    worked out on the way takes little memory. ``group`` rows are not torn apart.
    """
    few = len(rows)
    if rows.device.type == "cpu":
        few = _CACHED * len(rows) // max(1, rows.nbytes) // group * group
    few = max(few, group)
    return (slice(start, start + few) for start in range(0, len(rows), few))


class Normalise:
    """uint8 images [B, 3, H, W] to the device as float32 (x / 255 - mean) / std.

    The memory format is kept. Always float32: in half precision the subtraction would lose bits,
    and autocast casts the result for the first layer anyway. ``reuse`` gives results on the CPU in
    the same memory at every call, so that the next call overwrites the last result: finding new
    memory for a large batch takes ten times as long as normalising it.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        *,
        reuse: bool = False,
    ) -> None:
        offset, spread = torch.tensor(mean), torch.tensor(std)
        self.device = device = torch.device(device)
        self._reuse = reuse and device.type == "cpu"
        self._memory = torch.empty(0)
        self._scale = (1 / (255 * spread)).to(device)
        self._shift = (-offset / spread).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        pixels = images.permute(0, 2, 3, 1)
        if not pixels.is_contiguous():
            scale, shift = self._scale[:, None, None], self._shift[:, None, None]
            return images.to(torch.float32).mul_(scale).add_(shift)
        # Channels last: an inner loop over whole rows is ten times as fast as one over 3 channels.
        width = pixels.shape[2]
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        given = pixels.flatten(2)
        rows = self._room(pixels).view(given.shape)
        for some in few_rows(rows):
            rows[some].copy_(given[some]).mul_(scale).add_(shift)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def _room(self, pixels: Tensor) -> Tensor:
        if not self._reuse:
            return torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        if self._memory.numel() < pixels.numel():
            with torch.inference_mode(False):  # for evaluation and training alike
                self._memory = torch.empty(pixels.numel(), dtype=torch.float32)
        return self._memory[: pixels.numel()]
