"""What the loss costs: soft cross-entropy from sparse labels beside the same from dense ones.

Both sides get the same logits and top-5 labels and give the loss and its gradient. Peak memory on
the CPU is exact: the sum of all allocations and releases that torch's profiler saw, in their
order, temporary arrays inside operators included; on CUDA it is torch's own peak. What was there
before, the logits, is not in it: both sides need those, and the gradient, which is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ferkd.objectives import soft_cross_entropy
from ferkd.study.bench.made_up import random_labels
from ferkd.study.bench.measuring import (
    Target,
    described,
    in_turns,
    machine,
    seconds_of,
    summary,
    synchronise,
)
from ferkd.system.compute import resolve_device
from ferkd.system.errors import InputError
from ferkd.system.tables import markdown as table

SPARSE, DENSE = "sparse", "dense recovery"
_LARGE, _USUAL = 21_841, 1000


def bench_loss(
    *,
    classes: Sequence[int] = (_USUAL, _LARGE),
    batch: int = 256,
    top_k: int = 5,
    temperature: float = 1.0,
    device: str = "auto",
    rounds: int | None = None,
    repeats: int = 20,
) -> dict[str, Any]:
    """Milliseconds and peak bytes of the loss of ``batch`` rows, forward and backward.

    Dense recovery writes the labels out, [batch, classes], and takes torch's cross-entropy.
    ``rounds`` is how often a side runs in a turn (None: for about
    100 million logits, at most 200 times). ``value`` is
    the sparse side's time at the first number of classes. Raises InputError for counts out of
    range.
    """
    if not classes or min(batch, repeats, top_k, rounds or 1) < 1 or min(classes) <= top_k:
        raise InputError(
            f"batch {batch}, {repeats} repeats, {rounds} rounds and top-{top_k} must be at least "
            f"1, and classes {list(classes)} more than {top_k}"
        )
    where = resolve_device(device)
    rows = [
        _compared(count, batch, top_k, temperature, where, rounds, repeats) for count in classes
    ]
    first = rows[0]["milliseconds"]
    return {
        "benchmark": "loss",
        "value": first[SPARSE]["median"],
        "unit": f"milliseconds, {classes[0]} classes",
        "baselines": {DENSE: first[DENSE]["median"]},
        "ratios": {DENSE: first[DENSE]["median"] / first[SPARSE]["median"]},
        "targets": described(_targets(rows)),
        "details": {
            "batch": batch,
            "top_k": top_k,
            "temperature": temperature,
            "device": str(where),
            "repeats": repeats,
            "memory": "torch.cuda.max_memory_allocated"
            if where.type == "cuda"
            else "allocations and releases seen by torch.profiler",
            "rows": rows,
        },
        "machine": machine(),
    }


def _compared(
    classes: int,
    batch: int,
    top_k: int,
    temperature: float,
    device: torch.device,
    rounds: int | None,
    repeats: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shown = torch.from_numpy(rng.integers(0, classes, batch))
    labels = random_labels(shown, classes, rng, k=top_k, known=False).to(device)
    noise = torch.from_numpy(rng.normal(0, 2, (batch, classes))).float()
    logits = noise.to(device).requires_grad_()
    times = rounds or min(200, max(1, 100_000_000 // (batch * classes)))

    def sparse() -> Tensor:
        return soft_cross_entropy(logits, labels, temperature=temperature)

    def dense() -> Tensor:
        return F.cross_entropy(logits / temperature, labels.dense(temperature))

    def plain() -> Tensor:
        return F.cross_entropy(logits, labels.dense())

    losses = {SPARSE: sparse, DENSE: plain if temperature == 1 else dense}
    steps = {name: _step(loss, logits) for name, loss in losses.items()}

    def timed(step: Callable[[], None]) -> Callable[[int], float]:
        def several() -> None:
            for _ in range(times):
                step()

        return lambda turn: seconds_of(several, device) / times * 1000

    milliseconds = in_turns({n: timed(s) for n, s in steps.items()}, repeats, uncounted=1)
    # A run in its own allocations first: libraries set up their own in the first one.
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    array = batch * classes * 4
    return {
        "classes": classes,
        "milliseconds": {name: summary(values) for name, values in milliseconds.items()},
        "time_ratio": _median(milliseconds[DENSE]) / _median(milliseconds[SPARSE]),
        "array_bytes": array,
        "peak_bytes": {
            "with the gradient": peaks,
            "with the gradient and the logits": {n: p + array for n, p in peaks.items()},
            "without either": {n: p - array for n, p in peaks.items()},
        },
        "peak_ratio": peaks[DENSE] / peaks[SPARSE],
        "peak_ratio_with_logits": (peaks[DENSE] + array) / (peaks[SPARSE] + array),
    }


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that ``action`` holds at a time beside those held before."""
    if device.type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    found: Any = seen.profiler
    changes = [
        (event.start_ns(), event.nbytes())
        for event in found.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return int(max(held, default=0))


def _step(loss: Callable[[], Tensor], logits: Tensor) -> Callable[[], None]:
    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        logits.grad = None

    return step


def _targets(rows: Sequence[dict[str, Any]]) -> dict[str, Target]:
    found = {}
    for row in rows:
        if row["classes"] == _USUAL:
            found[f"time of {DENSE} / time, {_USUAL} classes"] = Target(1.0, row["time_ratio"])
        if row["classes"] == _LARGE:
            found[f"peak memory of {DENSE} / peak memory, {_LARGE} classes"] = Target(
                2.0, row["peak_ratio"]
            )
    return found


def _median(values: list[float]) -> float:
    return summary(values)["median"]


def markdown(result: dict[str, Any]) -> str:
    """The report of `bench_loss` as a Markdown table."""
    head = ["side", "classes", "ms", "peak MB, with the gradient", "and the logits"]
    lines = []
    for row in result["details"]["rows"]:
        for name, time in row["milliseconds"].items():
            sizes = [f"{peaks[name] / 1e6:.2f}" for peaks in row["peak_bytes"].values()]
            lines.append([name, row["classes"], f"{time['median']:.3f}", *sizes])
    return table([*head, "without either"], lines, figures=True)
