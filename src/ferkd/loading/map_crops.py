"""Fresh random crops with labels pooled from label maps: ReLabel's training.

The label of a crop is RoIAlign of its box on the image's map of log-probabilities, pooled to one
cell, and softmax afterwards. Pooling weighs each cell by a row's times a column's share, so it is
a matrix product over the cells. A constant per cell cancels in the softmax, so log-probabilities
do what ReLabel's logits do. Source: Yun et al., "Re-labeling ImageNet", CVPR 2021.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ferkd.crops import CropDistribution
from ferkd.images import ImageSource, Picture
from ferkd.loading.crop_sources import Chosen, FreshCrops, LabelledImages, Placed
from ferkd.store import LabelStore, SoftLabels
from ferkd.system.errors import InputError

_ALL_UP_TO = 32  # classes that are all kept where nothing else is said
_KEPT = 16  # of more classes


class MapCrops:
    """New random crops at every visit, as :class:`FreshCrops` draws them, labelled by maps.

    ``top_k`` classes of each pooled label are kept, the others join its tail (None: all of up to
    32 classes, else 16). In a batch the maps of its images are written out as float32 [images,
    cells, C]: 12.5 MB for 64 images, 7 x 7 cells and 1000 classes. Raises InputError for a store
    of crops, and as :class:`LabelledImages` does.
    """

    replaceable = False

    def __init__(
        self,
        images: ImageSource,
        store: LabelStore,
        *,
        distribution: CropDistribution | None = None,
        seed: int = 0,
        top_k: int | None = None,
    ) -> None:
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; keep at least 1 class of a pooled label")
        self.store = store
        self._labelled = LabelledImages(images, store, "grid")
        self._fresh = FreshCrops(images, distribution=distribution, seed=seed)
        self.top_k = top_k or kept_classes(store.num_classes)

    def __len__(self) -> int:
        return len(self.store)

    def image(self, row: int) -> tuple[int, str]:
        return self._labelled.image(row)

    def choose(self, rows: NDArray[np.int64], visits: NDArray[np.int64], m: int) -> Chosen:
        crops = visits[:, None] * m + np.arange(m)
        return Chosen(rows, crops, self._labelled.targets(rows))

    def check(self, row: int, picture: Picture) -> None:
        self._labelled.check(row, picture)

    def boxes(self, chosen: Chosen, sizes: NDArray[np.int64]) -> Placed:
        self._labelled.check_sizes(chosen.rows, sizes)
        return self._fresh.boxes(replace(chosen, rows=self._labelled.places[chosen.rows]), sizes)

    def labels(
        self, chosen: Chosen, placed: Placed, sizes: NDArray[np.int64]
    ) -> tuple[SoftLabels, None]:
        grid, (n, m) = self.store.geometry.crops, chosen.crops.shape
        weights = roi_weights(placed.boxes, sizes[:, None], grid.rows, grid.columns)
        records = self.store.records(chosen.rows[:, None], np.arange(grid.count))
        cells = self.store.decode(records.reshape(-1), np.repeat(chosen.rows, grid.count))
        maps = dense_log_probs(cells).reshape(n, grid.count, -1)
        pooled = torch.bmm(torch.from_numpy(weights).to(maps.dtype), maps).flatten(0, 1)
        targets = torch.from_numpy(np.repeat(chosen.targets, m))
        return SoftLabels.from_logits(pooled, targets, self.top_k).with_truth(targets), None

    def features(self, chosen: Chosen) -> None:
        return None


def kept_classes(num_classes: int) -> int:
    """How many classes of a pooled label are kept where nothing else is said."""
    return num_classes if num_classes <= _ALL_UP_TO else _KEPT


def roi_weights(boxes: ArrayLike, sizes: ArrayLike, rows: int, columns: int) -> NDArray[np.float64]:
    """The share of each cell of a grid in RoIAlign of a box: float64 [..., rows * columns].

    ``boxes`` int [..., 4] as (top, left, height, width) in pixels, inside images of ``sizes``
    [..., 2] (height, width); the leading axes broadcast. As torchvision's ``roi_align`` to one
    cell with ``aligned=True`` and the default number of samples, one for each begun cell of the
    box's height and width. Shares sum to 1. Mirroring a crop does not change them.
    """
    box, size = np.asarray(boxes), np.asarray(sizes)
    down = _shares(box[..., 0], box[..., 2], size[..., 0], rows)
    across = _shares(box[..., 1], box[..., 3], size[..., 1], columns)
    both = down[..., :, None] * across[..., None, :]
    return both.reshape(*both.shape[:-2], rows * columns)


def _shares(
    start: NDArray[np.integer], length: NDArray[np.integer], side: NDArray[np.integer], cells: int
) -> NDArray[np.float64]:
    """The share of each cell of one axis, [..., cells]: evenly spaced samples, each shared by the
    two cells whose centres lie around it, or all the edge cell's beyond the last centre."""
    side = side.astype(np.int64)
    samples = -(-length.astype(np.int64) * cells // side)  # rounded up, without float rounding
    numbers = np.arange(int(samples.max(initial=1)))
    used = numbers < samples[..., None]
    places = (numbers + 0.5) / samples[..., None] * length[..., None] + start[..., None]
    places = np.clip(places * cells / side[..., None] - 0.5, 0, cells - 1)
    near = np.maximum(0, 1 - np.abs(places[..., None] - np.arange(cells)))
    return np.asarray((near * used[..., None]).sum(-2) / samples[..., None])


def dense_log_probs(labels: SoftLabels) -> Tensor:
    """Log-probabilities of all classes, float32 [B, C]; unstored ones share the tail evenly."""
    filled = torch.isfinite(labels.log_probs)
    unstored = labels.num_classes - filled.sum(1)
    other = labels.tail[:, 0] - unstored.clamp_min(1).log()
    # One column more takes the empty slots, whose class says nothing.
    out = other[:, None].repeat(1, labels.num_classes + 1)
    classes = torch.where(filled, labels.classes, labels.num_classes)
    return out.scatter_(1, classes, labels.log_probs)[:, : labels.num_classes]
