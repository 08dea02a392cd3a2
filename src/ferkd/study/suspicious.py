"""Images whose ground truth the teacher denies: wrong labels, or pictures of something else.

The teacher saw each image in many crops, and some of them show nothing of the object. So each crop
counts with its reliability r(s), how often the teacher is right at that confidence
(`ferkd.calibration.reliability`), and p(c) is the mean of the crops' probabilities by these
weights. An image is the more suspicious the more often the likeliest other class is likelier than
the one that it lies under: log(max p(c) / p(given)), in nats. Above 0 the teacher contradicts. The
ratio found more planted errors than the difference, most of all with a teacher that learnt from
them (docs/inspector.md).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.calibration.regions import scores_of
from ferkd.calibration.reliability import reliability, weights_of
from ferkd.store import LabelStore
from ferkd.system.files import make_folder, write_whole
from ferkd.system.text import cell

_LEAST = 1e-6  # a probability that counts: labels of some classes leave the others out
_NUMBERS = 1 << 22  # probabilities held at a time
COLUMNS = (
    "rank",
    "row",
    "id",
    "labelled",
    "teacher_says",
    "suspicion",
    "mean_probability",
    "probability_of_label",
    "crops_that_say_so",
)


@dataclass(frozen=True)
class Judged:
    """The teacher's word on each image of a store; arrays [N].

    ``given`` is the ground truth, -1 for none; ``other`` the likeliest class that it is not;
    ``p_given`` and ``p_other`` their weighted mean probabilities; ``votes`` the share of the crops
    whose first class is ``other``. Without a ground truth ``other`` is the teacher's answer and
    ``p_given`` NaN.
    """

    given: NDArray[np.int64]
    other: NDArray[np.int64]
    p_given: NDArray[np.float32]
    p_other: NDArray[np.float32]
    votes: NDArray[np.float32]

    @property
    def suspicion(self) -> NDArray[np.float32]:
        """log(p(other) / p(given)), [N], each at least `_LEAST`; NaN without a ground truth."""
        return np.log(self.p_other.clip(_LEAST) / self.p_given.clip(_LEAST))

    @property
    def denied(self) -> NDArray[np.bool_]:
        """Whether the teacher contradicts the ground truth, [N]."""
        return self.suspicion > 0

    def ranked(self) -> NDArray[np.int64]:
        """The rows of all images with a ground truth, the most suspicious first."""
        rows = np.flatnonzero(self.given >= 0)
        return rows[np.argsort(-self.suspicion[rows], kind="stable")]


def judge(
    store: LabelStore, scored: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None
) -> Judged:
    """What the teacher says of every image of ``store``, in one walk over its labels and, without
    ``scored``, what `scores_of` says of the largest probability, in another."""
    scores, correct = scored or scores_of(store)
    targets = store.truth(slice(None))
    known = targets >= 0
    weights = np.full(scores.shape, 255, np.uint8)
    if known.any():
        weights = weights_of(reliability(scores, correct, known=known), scores)
    del scores, correct, scored
    count, classes = store.crops_per_image, store.num_classes
    found = Judged(
        targets,
        np.zeros(len(store), np.int64),
        np.full(len(store), np.nan, np.float32),
        np.zeros(len(store), np.float32),
        np.zeros(len(store), np.float32),
    )
    step = max(1, _NUMBERS // max(1, classes))
    for chunk, _, labels in store.scan():
        for start in range(chunk.start, chunk.stop, step):
            rows = slice(start, min(start + step, chunk.stop))
            first = (start - chunk.start) * count
            some = labels[first : first + (rows.stop - rows.start) * count]
            mean = _mean(some, weights[rows], classes)
            _judge_rows(found, rows, mean, some.top1().numpy().reshape(-1, count))
    return found


def mean_probabilities(store: LabelStore, weights: NDArray[np.uint8]) -> NDArray[np.float32]:
    """p(c) of every image, float32 [N, C], by ``weights`` uint8 [N, crops] of its crops."""
    parts = [
        _mean(labels, weights[rows], store.num_classes).numpy() for rows, _, labels in store.scan()
    ]
    return np.concatenate(parts) if parts else np.zeros((0, store.num_classes), np.float32)


def _mean(labels: Any, weights: NDArray[np.uint8], classes: int) -> torch.Tensor:
    """Weighted mean of the stored probabilities, float32 [n, C]; where all weights are 0, plain."""
    weight = torch.from_numpy(weights).float()
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, torch.ones_like(weight))
    weight = (weight / weight.sum(1, keepdim=True)).reshape(-1, 1)
    image = torch.arange(len(weights)).repeat_interleave(weights.shape[1])[:, None]
    mean = torch.zeros(len(weights) * classes)
    mean.index_add_(
        0, (image * classes + labels.classes).ravel(), (labels.log_probs.exp() * weight).ravel()
    )
    return mean.reshape(len(weights), classes)


def _judge_rows(found: Judged, rows: slice, mean: torch.Tensor, answers: NDArray[np.int64]) -> None:
    given = torch.from_numpy(found.given[rows])
    known = given >= 0
    at = given.clamp_min(0)[:, None]
    own = mean.gather(1, at)[:, 0]
    others = mean.scatter(1, at, torch.where(known[:, None], -1.0, own[:, None]))
    p_other, other = others.max(1)
    found.other[rows] = other.numpy()
    found.p_other[rows] = p_other.clamp_min(0).numpy()
    found.p_given[rows] = own.masked_fill(~known, torch.nan).numpy()
    found.votes[rows] = (answers == other.numpy()[:, None]).mean(1)


def listing(store: LabelStore, judged: Judged, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The evidence on the images ``rows``, one JSON object each."""
    names = store.class_names or tuple(map(str, range(store.num_classes)))
    return [
        {
            "row": row,
            "id": store.ids[row],
            "labelled": names[judged.given[row]],
            "teacher_says": names[judged.other[row]],
            "suspicion": float(judged.suspicion[row]),
            "mean_probability": float(judged.p_other[row]),
            "probability_of_label": float(judged.p_given[row]),
            "crops_that_say_so": float(judged.votes[row]),
        }
        for row in rows.tolist()
    ]


def write_csv(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the ranking as CSV, whole or not at all, for people and spreadsheets.

    A name that a spreadsheet would run as a formula gets an apostrophe before it, and controls are
    written out: ``row`` is the key for programs, the image's place in the store.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, entry in enumerate(entries, 1):
        cells = [rank, *(entry[column] for column in COLUMNS[1:])]
        writer.writerow([_cell(value) for value in cells])
    make_folder(path.parent)
    write_whole(path, out.getvalue().encode())


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4f}"
    return cell(value) if isinstance(value, str) else value
