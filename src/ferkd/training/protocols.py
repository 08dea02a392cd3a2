"""What the trainer asks of the things that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ferkd.store import SoftLabels


@runtime_checkable
class Stateful(Protocol):
    """A loss that remembers: its state is saved in checkpoints.

    The state is made of tensors, numbers, strings and containers of them only.
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Witness(Protocol):
    """A loss that can say what is wrong where the student is not to blame for a loss that
    is not finite; None where it is."""

    def complaint(self) -> str | None: ...


class BatchLike(Protocol):
    """What the trainer takes of a batch: images uint8 [B, 3, S, S], labels, and int64 [B] each:
    targets, rows (the image) and crops (its crop number). One whose ``raw`` are whole images
    (`ferkd.loading.batch.Batch`) has its crops cut on the device; ``features`` are stored ones."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> SoftLabels | None: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def crops(self) -> Tensor: ...


class StepLoader(Protocol):
    """A stream of batches addressed by step: the same step is always the same batch."""

    def batches(self, start: int, stop: int) -> Iterator[Any]: ...
