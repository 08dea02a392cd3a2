"""The trial of sampled tails: classes drawn from a teacher's tail against an even one.

A top-k record says the mass of the classes that it does not keep, which are then taken to share it
evenly: a biased label without noise. `Sampled` keeps k classes and draws s more from the teacher's
tail, each with an s-th of the tail's mass: a noisy label that is right in expectation, after the
random-sampling distillation of language models (2025). Both are judged by the gradient that they
give. docs/lab-log.md tells the verdict; the label store keeps even tails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ferkd.store import SoftLabels
from ferkd.store.records import BOX_BYTES, RecordFormat
from ferkd.study.bench.forms import Form, Stored

_BATCHES = (1, 256)  # crops whose gradients are averaged
_ROWS = 64  # crops looked at together


@dataclass(frozen=True)
class Sampled:
    """``k`` classes as our u8 record keeps them, and ``drawn`` of the tail, each a number alone.

    Draws are with replacement and in proportion to the teacher's probabilities, from the classes
    neither kept nor the ground truth, whose own probability is recorded.
    """

    k: int
    drawn: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"top-{self.k} and {self.drawn} drawn, u8"

    def record_bytes(self, num_classes: int) -> int:
        """Of the box and the label: two bytes more for each class drawn."""
        form = RecordFormat.choose(self.k, num_classes, "u8")
        return BOX_BYTES + form.dtype.itemsize + 2 * self.drawn

    def recover(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The probabilities [B, C] in float64 that a student would be given."""
        labels = Stored(self.k, "u8").labels(logits, targets)
        even, known = labels.dense().double(), _kept(labels)
        mass = even.masked_fill(known, 0.0).sum(1, keepdim=True)
        tail = logits.double().softmax(1).masked_fill(known, 0.0)
        # Of a crop without any tail nothing is drawn, and its mass is 0.
        chances = torch.where(tail.sum(1, keepdim=True) > 0, tail, (~known).double())
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.multinomial(chances, self.drawn, replacement=True, generator=generator)
        share = (mass / self.drawn).expand(-1, self.drawn)
        return even.masked_fill(~known, 0.0).scatter_add(1, drawn, share)


def _kept(labels: SoftLabels) -> Tensor:
    """Which classes have a value of their own, bool [B, C]."""
    filled = torch.isfinite(labels.log_probs)
    places = labels.classes.masked_fill(~filled, labels.num_classes)  # of empty slots: none
    every = torch.zeros(len(labels), labels.num_classes + 1, dtype=torch.bool)
    return every.scatter(1, places, True)[:, :-1]


TRIED: tuple[Stored | Sampled, ...] = (
    Stored(5, "u8"),
    Sampled(3, 3),
    Sampled(1, 6),
    Stored(10, "u8"),
    Sampled(5, 7),
    Sampled(2, 11),
)


def gradient_errors(
    chunks: Iterable[tuple[Tensor, Tensor]],
    forms: Sequence[Form | Sampled] = TRIED,
    batches: Sequence[int] = _BATCHES,
) -> list[dict[str, Any]]:
    """One row a form that keeps fewer than all C classes: bytes, and the error of a gradient.

    That of the bias of an untrained student's last layer, whose answer is even: for logits [B, C]
    it is the mean of 1 / C - p over the batch. ``error`` is |g' - g| / |g| by the crops of a
    batch, root of the mean squares over the batches. Crops are dealt to batches in turn, since a
    store's neighbours are of one class; what does not fill a batch is left out.
    """
    found = list(chunks)
    logits, targets = (torch.cat(column) for column in zip(*found, strict=True))
    crops, num_classes = logits.shape
    rows = []
    for form in forms:
        if form.k is None or form.k + 1 >= num_classes:
            continue
        missed = {size: _Batches(size, crops, num_classes) for size in batches}
        for start in range(0, crops, _ROWS):
            some = logits[start : start + _ROWS]
            exact = some.double().softmax(1)
            error = form.recover(some, targets[start : start + _ROWS]) - exact
            for batch in missed.values():
                batch.add(start, error, 1 / num_classes - exact)
        rows.append(
            {
                "form": form.name,
                "record_bytes": form.record_bytes(num_classes),
                "error": {size: batch.error() for size, batch in missed.items()},
            }
        )
    return rows


class _Batches:
    """Sums over the crops of each batch of ``size``: crop i is of batch i modulo their number."""

    def __init__(self, size: int, crops: int, num_classes: int) -> None:
        self.count = crops // size
        self._whole = self.count * size
        self._wrong = torch.zeros(self.count, num_classes, dtype=torch.float64)
        self._right = torch.zeros_like(self._wrong)

    def add(self, first: int, wrong: Tensor, right: Tensor) -> None:
        """Rows [n, C] of the crops from ``first`` on."""
        numbers = torch.arange(first, min(first + len(wrong), self._whole))
        if len(numbers):
            self._wrong.index_add_(0, numbers % self.count, wrong[: len(numbers)])
            self._right.index_add_(0, numbers % self.count, right[: len(numbers)])

    def error(self) -> float | None:
        """Root of the mean squares of ``wrong`` over that of ``right``; None without a batch."""
        if not self.count:
            return None
        return float((self._wrong.square().sum() / self._right.square().sum()).sqrt())
