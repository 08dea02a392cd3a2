"""The numbers of FKD's label files and ours: coordinates and boxes, probabilities and labels."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ferkd.store.fkd.files import DamagedLabels
from ferkd.store.soft import SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.system.errors import InputError

Kind = Literal["top-k", "smoothing", "hard", "full"]
KINDS = ("auto", "top-k", "smoothing", "hard", "full")
EXACT_HALF_SIDE = 2048  # half precision tells i / n from (i + 1) / n for n up to this
EXACT_HALF_CLASSES = 2049  # it holds every whole number up to 2048

_SUM_SLACK = 2e-3  # how far rounding to half precision may move a sum of probabilities
_LOWEST = math.exp(-80)  # SoftLabels keeps logarithms finite


def boxes_of(
    coords: NDArray[np.floating], height: int, width: int, *, resized: bool = False
) -> NDArray[np.int32]:
    """Boxes int32 [N, 4] (top, left, height, width) in pixels of FKD's relative coords [N, 4].

    A coordinate is a number of pixels over the image's side, rounded to the precision of
    ``coords``. Raises DamagedLabels where it is not such a number (``resized`` allows that and
    rounds), and where a box reaches outside of the image by more than a pixel or, in half
    precision, by more than what that precision may have lost.
    """
    if not ((coords >= 0) & (coords <= 1)).all():  # NaN fails too
        raise DamagedLabels("a coordinate does not lie in 0 .. 1")
    sides = np.array([height, width, height, width])
    scaled = coords.astype(np.float64) * sides
    boxes = np.rint(scaled)
    half = coords.dtype == np.float16
    single = coords if half else coords.astype(np.float32)
    # Half a unit in the last place, and a hair; two units leave room for other orders of rounding.
    lost = np.spacing(single).astype(np.float64) * sides * (0.51 if half else 2.0)
    between = np.abs(scaled - boxes) > lost + 1e-9
    if not resized and between.any():
        crop = int(between.any(1).argmax())
        raise DamagedLabels(
            f"crop {crop} at {coords[crop].tolist()} is not made of whole pixels of this image of "
            f"{height}x{width}: another size or version of it was labelled"
        )
    start = np.minimum(boxes[:, :2], sides[:2] - 1)
    size = np.clip(boxes[:, 2:], 1, sides[:2] - start)
    moved = np.maximum(boxes[:, :2] - start, np.abs(boxes[:, 2:] - size))
    outside = moved > np.maximum(1, np.ceil(lost[:, :2] + lost[:, 2:]))
    if outside.any():
        crop = int(outside.any(1).argmax())
        raise DamagedLabels(
            f"crop {crop}, {boxes[crop].astype(int).tolist()}, reaches outside of the image of "
            f"{height}x{width}"
        )
    return np.concatenate([start, size], 1).astype(np.int32)


def coords_of(
    boxes: NDArray[np.integer], height: ArrayLike, width: ArrayLike, dtype: type[np.floating]
) -> NDArray[np.floating]:
    """FKD's relative coordinates [..., 4] of boxes [..., 4]; sizes broadcast to [...]."""
    sides = np.stack(np.broadcast_arrays(height, width, height, width), -1)
    return (boxes / sides).astype(np.float32).astype(dtype)


def uncertain(boxes: NDArray[np.integer], height: ArrayLike, width: ArrayLike) -> NDArray[np.bool_]:
    """Whether the half precision coordinates of boxes [..., 4] stand for other boxes too, [...]."""
    here, below, above = (coords_of(boxes + by, height, width, np.float16) for by in (0, -1, 1))
    return np.asarray(((here == below) | (here == above)).any(-1))


def kind_of(shape: tuple[int, ...], kind: str, num_classes: int | None) -> Kind:
    """The kind of labels [N, ...] of this shape; ``kind`` is one of KINDS. Raises InputError."""
    fits: list[Kind] = []
    if len(shape) == 3 and shape[1] == 2:
        fits.append("top-k")
    if len(shape) == 2 and shape[1] == 2:
        fits.append("smoothing")
    if len(shape) == 1:
        fits.append("hard")
    if len(shape) == 2 and num_classes in (shape[1], None):
        fits.append("full")
    for fit in fits:
        if kind == fit or (kind == "auto" and fits == [fit]):
            return fit
    of = "an unknown number of" if num_classes is None else num_classes
    if kind == "auto" and fits:
        raise InputError(
            f"labels of shape {shape} for {of} classes may be {' or '.join(fits)}; say which with "
            "kind (--kind), or give the number of classes"
        )
    raise InputError(
        f"labels of shape {shape} for {of} classes are not of kind {kind}; FKD's kinds are top-k "
        "[N, 2, k], smoothing [N, 2], hard [N] and full [N, classes]"
    )


def labels_of(labels: NDArray[np.number], kind: Kind, num_classes: int) -> SoftLabels:
    """Soft labels of the N crops of a file, their tail known at temperature 1 only.

    Raises DamagedLabels where a row is not a label: a class that is not one of ``num_classes`` or
    stands there twice, or probabilities that are negative, not finite or of a wrong sum.
    """
    if not np.isfinite(labels).all():
        raise DamagedLabels("a label is not finite")
    numbers = labels.astype(np.float64)
    classes: NDArray[np.number]
    if kind == "full":
        probs = numbers
        classes = np.broadcast_to(np.arange(num_classes), probs.shape)
    elif kind == "hard":
        classes, probs = numbers[:, None], np.ones((len(numbers), 1))
    else:
        classes, probs = (n.reshape(len(numbers), -1) for n in (numbers[:, 0], numbers[:, 1]))
    _check_classes(classes, num_classes)
    _check_probabilities(probs, num_classes, full=probs.shape[1] == num_classes)
    tail = torch.full((len(probs), len(TAIL_TEMPERATURES)), math.nan)
    rest = torch.from_numpy(1 - probs.sum(1)).clamp_min(0)
    tail[:, 0] = rest.log().float()
    if probs.shape[1] == num_classes:
        tail[:] = -math.inf
    log_probs = np.log(np.maximum(probs, _LOWEST)).astype(np.float32)
    whole = classes.astype(np.int64)
    return SoftLabels(torch.from_numpy(whole), torch.from_numpy(log_probs), tail, num_classes)


def _check_classes(classes: NDArray[np.number], num_classes: int) -> None:
    wrong = (classes != np.rint(classes)) | (classes < 0) | (classes >= num_classes)
    if wrong.any():
        raise DamagedLabels(f"{classes[wrong][0]:g} is not one of {num_classes} classes")
    ordered = np.sort(classes, 1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise DamagedLabels("a class stands twice in a label")


def _check_probabilities(probs: NDArray[np.float64], num_classes: int, *, full: bool) -> None:
    total = probs.sum(1)
    wrong = (probs < 0).any(1) | (total > 1 + _SUM_SLACK) | (full & (total < 1 - _SUM_SLACK))
    if wrong.any():
        crop = int(wrong.argmax())
        raise DamagedLabels(
            f"crop {crop} has probabilities from {probs[crop].min():g} that sum to "
            f"{total[crop]:g}: FKD's labels hold probabilities of at most 1 together"
        )
    # Of all classes the most probable one is always stored, and it has at least its equal share.
    if (probs.max(1) < (1 - _SUM_SLACK) / num_classes).any():
        raise DamagedLabels(f"a crop has no class of probability 1/{num_classes} or more")
