"""How fast a network labels and trains by batch size: what the default of labelling rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time
from typing import Any

import torch
from torch import nn

from ferkd.labelling.settings import default_batch
from ferkd.models.teacher import load_teacher
from ferkd.study.bench.label import forwards
from ferkd.study.bench.measuring import in_turns, machine, seconds_of, summary
from ferkd.system.compute import autocast, resolve_precision
from ferkd.system.errors import InputError
from ferkd.system.tables import markdown as table

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_LEAST_CROPS = 32  # of a turn, so that small batches are not timed by one call


def bench_batch(
    *,
    model: str = "timm/tf_efficientnet_lite0?random=0",
    image_size: int = 112,
    batches: Sequence[int] = BATCHES,
    precision: str = "auto",
    device: str = "auto",
    repeats: int = 3,
) -> dict[str, Any]:
    """Crops per second of labelling (from uint8 crops to logits) and of training steps (forward,
    backward, AdamW) by batch size, the sizes taking turns.

    Beside the clock's there are rates per second of this process's CPU, which company on the
    machine changes less. ``value`` is the labelling rate at the default batch of the device.
    Raises InputError for counts out of range.
    """
    if not batches or min(batches) < 1 or repeats < 1:
        raise InputError(f"batches {list(batches)} and {repeats} repeats must be at least 1")
    teacher = load_teacher(model, image_size=image_size, device=device, precision=precision)
    chosen = default_batch(teacher.device.type, image_size)
    cpu: dict[str, list[float]] = {}
    sides: dict[str, Callable[[int], float]] = {}
    for batch in sorted({*batches, chosen}):
        for what, call in (
            ("labelling", forwards(teacher, batch)[1]),
            ("training", _step(teacher.module, batch, image_size, teacher.device, precision)),
        ):
            name = f"{what}, {batch}"
            sides[name] = _rate(call, batch, teacher.device, cpu.setdefault(name, []))
    found = {
        name: summary(values) for name, values in in_turns(sides, repeats, uncounted=1).items()
    }
    by_cpu = {name: summary(values[1:])["median"] for name, values in cpu.items()}
    return {
        "benchmark": "batch",
        "value": found[f"labelling, {chosen}"]["median"],
        "unit": "crops per second",
        "baselines": {name: side["median"] for name, side in found.items()},
        "ratios": {},
        "targets": {},
        "details": {
            "model": model,
            "image_size": image_size,
            "default_batch": chosen,
            "precision": teacher.precision,
            "device": str(teacher.device),
            "repeats": repeats,
            "crops_per_second": found,
            "crops_per_cpu_second": by_cpu,
        },
        "machine": machine(),
    }


def markdown(result: dict[str, Any]) -> str:
    """The rates as a table, the device's default marked."""
    details = result["details"]
    clock, cpu = details["crops_per_second"], details["crops_per_cpu_second"]
    head = ["batch", "labelling, crops/s", "per CPU second", "training, crops/s", "per CPU second"]
    lines = []
    for batch in sorted({int(name.partition(", ")[2]) for name in clock}):
        mark = " (default)" if batch == details["default_batch"] else ""
        cells = [
            f"{rates:.1f}"
            for what in ("labelling", "training")
            for rates in (clock[f"{what}, {batch}"]["median"], cpu[f"{what}, {batch}"])
        ]
        lines.append([f"{batch}{mark}", *cells])
    return table(head, lines, figures=True)


def _rate(
    call: Callable[[], object], batch: int, device: torch.device, cpu: list[float]
) -> Callable[[int], float]:
    times = max(1, _LEAST_CROPS // batch)

    def measure(turn: int) -> float:
        def several() -> None:
            for _ in range(times):
                call()

        begun = process_time()
        seconds = seconds_of(several, device)
        cpu.append(times * batch / max(process_time() - begun, 1e-9))
        return times * batch / seconds

    return measure


def _step(
    module: nn.Module, batch: int, size: int, device: torch.device, precision: str
) -> Callable[[], object]:
    """A training step on one batch that is on the device already."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(batch, dtype=torch.int64, device=device)
    dtype = resolve_precision(precision, device)  # type: ignore[arg-type]

    def step() -> None:
        module.train(batch > 1)  # BatchNorm takes no single crop
        with autocast(device, dtype):
            logits = module(images)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
