"""How sure the teacher is of the crops of a store, of all of them or of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.calibration.ranks import row_chunks
from ferkd.store.reader import LabelStore
from ferkd.store.soft import SoftLabels

Score = Literal["max_prob", "true_prob"]
Scale = Literal["probability", "image_quantile"]
ALL_UP_TO = 1 << 27  # crops whose scores are all looked at: 6.5 bytes of memory each, 0.9 GB
SAMPLED = 1 << 21  # crops that stand for more


def sample_rows(images: int, crops: int) -> NDArray[np.int64] | None:
    """The images of a sample, rising, the same ones each time; None where all are looked at.

    One image of each stretch of the store, at a random place in it: ids are sorted, so that every
    class is there in proportion.
    """
    if images * crops <= ALL_UP_TO:
        return None
    count = min(images, max(1, SAMPLED // crops))
    edges = np.linspace(0, images, count + 1).astype(np.int64)
    widths = np.diff(edges)
    return edges[:-1] + np.random.default_rng(images).integers(0, widths)


def score_of(labels: SoftLabels, targets: Tensor | None, score: Score) -> Tensor:
    """The teacher's confidence in each crop, float32 [B]; NaN for true_prob without a target."""
    if score == "max_prob":
        return labels.max_prob()
    if targets is None:
        return torch.full_like(labels.log_probs[:, 0], math.nan)
    return labels.prob_of(targets)


def image_quantiles(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each score's rank among its image's crops, (rank + 1/2) / n with ties averaged; [N, n]."""
    below = (scores[:, None, :] < scores[:, :, None]).sum(2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)
    ranks = (below + equal / 2) / scores.shape[1]
    return np.where(np.isnan(scores), np.nan, ranks).astype(np.float32)


def scores_of(
    store: LabelStore,
    score: Score = "max_prob",
    scale: Scale = "probability",
    sample: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Confidence of every crop, float32 [N, crops], and whether the teacher's answer is right; of
    the images ``sample`` [N] where it is given."""
    count, crops = len(store) if sample is None else len(sample), store.crops_per_image
    scores, correct = np.empty((count, crops), np.float32), np.empty((count, crops), bool)
    for rows in row_chunks(count, crops):
        numbers = np.arange(rows.start, rows.stop) if sample is None else sample[rows]
        labels, targets = _labels_of(store, numbers)
        scores[rows] = _scaled(labels, targets, score, scale, crops)
        correct[rows] = (labels.top1() == targets).numpy().reshape(-1, crops)
    return scores, correct


def all_scores(
    store: LabelStore, score: Score, scale: Scale
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The confidences of all images, some rows at a time."""
    crops = store.crops_per_image
    for rows in row_chunks(len(store), crops):
        labels, targets = _labels_of(store, np.arange(rows.start, rows.stop))
        yield rows, _scaled(labels, targets, score, scale, crops)


def _scaled(
    labels: SoftLabels, targets: Tensor, score: Score, scale: Scale, crops: int
) -> NDArray[np.float32]:
    values = score_of(labels, targets, score).numpy().reshape(-1, crops)
    return image_quantiles(values) if scale == "image_quantile" else values


def _labels_of(store: LabelStore, rows: NDArray[np.int64]) -> tuple[SoftLabels, Tensor]:
    """All crops' labels of some images, and their targets, int64 [n * crops]."""
    labels = store.labels(rows[:, None], np.arange(store.crops_per_image))
    return labels, torch.from_numpy(np.repeat(store.truth(rows), store.crops_per_image))
