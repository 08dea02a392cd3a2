"""A batch of crops as the loader gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ferkd.crops.device import RawImages, cut_batch
from ferkd.images import Unreadable
from ferkd.store import SoftLabels
from ferkd.system.trees import tree_node


@tree_node("unreadable")
@dataclass(frozen=True)
class Batch:
    """B = n * m crops; the m crops of an image are consecutive rows.

    - ``images`` uint8 [B, 3, S, S], channels last in memory.
    - ``labels`` the calibrated soft labels; None for hard-label training.
    - ``targets`` int64 [B], -1 for none.
    - ``rows`` int64 [B], the image's place in the loader's images.
    - ``crops`` int64 [B], the crop's number.
    - ``regions`` int8 [B] or None.
    - ``unreadable`` the images that others stand in for.
    - ``raw`` the whole images, where their crops are still to be :meth:`cut`; ``images`` is then
      [B, 3, 0, 0].
    - ``features`` float32 [B, d], a teacher's stored features of the crops; None where none were
      asked for.

    A batch is a node of torch's pytrees, as its labels are. What others' trainers do to every
    tensor of a batch reaches these.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor
    regions: Tensor | None = None
    unreadable: tuple[Unreadable, ...] = ()
    raw: RawImages | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor | SoftLabels]:
        """Images, then labels (targets where there are none): ``for images, labels in loader``."""
        return iter((self.images, self.targets if self.labels is None else self.labels))

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Batch:
        """Some rows, as a tensor is indexed along its first axis; whole images are cut before."""
        return self._cut()._map(lambda t: t[index])

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """The rows of several batches of one kind, one after the other."""
        parts = [part._cut() for part in parts]
        labels = [part.labels for part in parts if part.labels is not None]
        regions = [part.regions for part in parts if part.regions is not None]
        features = [part.features for part in parts if part.features is not None]
        if {len(labels), len(regions), len(features)} - {0, len(parts)}:
            raise ValueError(
                "only some of the batches have labels, regions or features; give one kind"
            )
        return Batch(
            images=torch.cat([part.images for part in parts]),
            labels=SoftLabels.cat(labels) if labels else None,
            targets=torch.cat([part.targets for part in parts]),
            rows=torch.cat([part.rows for part in parts]),
            crops=torch.cat([part.crops for part in parts]),
            regions=torch.cat(regions) if regions else None,
            features=torch.cat(features) if features else None,
            unreadable=tuple(skipped for part in parts for skipped in part.unreadable),
        )

    def _cut(self) -> Batch:
        if self.raw is not None:
            raise ValueError("the crops of this batch are not cut yet; take rows of batch.cut()")
        return self

    def cut(self) -> Batch:
        """The batch with its crops, cut on the device that it is on; itself if it has them.

        ``batch.to("cuda", non_blocking=True).cut()`` sends whole images and cuts them there.
        """
        if self.raw is None:
            return self
        return replace(self, images=cut_batch(self.raw), raw=None)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by PyTorch's DataLoader)."""
        pinned = replace(self, labels=None)._map(lambda t: t.pin_memory())
        return replace(pinned, labels=None if self.labels is None else self.labels.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=function(self.images),
            labels=None if self.labels is None else self.labels.map(function),
            targets=function(self.targets),
            rows=function(self.rows),
            crops=function(self.crops),
            regions=None if self.regions is None else function(self.regions),
            raw=None if self.raw is None else self.raw.map(function),
            features=None if self.features is None else function(self.features),
        )
