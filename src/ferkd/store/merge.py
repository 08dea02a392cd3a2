"""Several teachers' stores of the same crops as one: the labels of an ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd import __version__
from ferkd.store import manifest as manifests
from ferkd.store.derive import Progress, chunks, decoded, refuse_inside, rewrite
from ferkd.store.reader import IMAGE, LabelStore
from ferkd.store.records import RecordFormat
from ferkd.store.soft import SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.system.errors import InputError

Rule = Literal["probs", "logits"]
RULES = ("probs", "logits")
_LOWEST = -80.0  # log-probabilities stay finite, as in SoftLabels.from_logits


def accuracy_weights(accuracies: Sequence[float]) -> list[float]:
    """CV-DD's weights of a committee: softmax(accuracy / 10), accuracies in percent.

    Raises InputError for numbers outside 0..100, and for what look like fractions.
    """
    if not accuracies or not all(0 <= a <= 100 for a in accuracies) or max(accuracies) <= 1:
        raise InputError(
            f"accuracies {list(accuracies)}: give each teacher's accuracy in percent, as in "
            "64.0,60.6"
        )
    weights = (torch.tensor(accuracies, dtype=torch.float64) / 10).softmax(0)
    return [float(w) for w in weights]


def combine(
    labels: Sequence[SoftLabels],
    weights: Sequence[float],
    rule: Rule = "probs",
    targets: Tensor | None = None,
) -> SoftLabels:
    """The labels [B] of an ensemble from its members' labels of the same B crops.

    ``rule="probs"`` is the weighted mean of probabilities (MEAL V2), ``"logits"`` the softmax of
    the weighted mean of logits (CV-DD); ``weights`` are above 0 and need not sum to 1. ``targets``
    int64 [B] (-1 none) say which class ``true_log_prob`` is of.

    Exact when every member holds all classes. Else the result stores each class that a member
    stores, and the true class; where a member does not know such a class it counts with the mean
    of that member's other classes, its tail spread evenly. The result's tail rests on the same
    mean: its mass at T = 1 keeps the sum of the probabilities exact, and at T = 2 and 4 the
    members' tails are taken to be of the same shape (exact when they are).
    """
    share = torch.tensor(weights, dtype=torch.float64)
    log_share = (share / share.sum()).log()[:, None, None]
    members = [_member(label, targets) for label in labels]

    def pool(values: Tensor) -> Tensor:  # [M, B, n] log-probabilities -> [B, n], unnormalised
        if rule == "probs":
            return (values + log_share).logsumexp(0)
        return (values * log_share.exp()).sum(0)

    num_classes = labels[0].num_classes
    keys, known = _union(labels, members)
    log_probs = pool(torch.stack([m.look_up(keys) for m in members]))
    log_probs = log_probs.masked_fill(~known, -math.inf)
    rest = num_classes - known.sum(1, keepdim=True)
    temperatures = torch.tensor(TAIL_TEMPERATURES, dtype=torch.float64)
    tail = rest.log() + pool(torch.stack([m.other for m in members])) / temperatures
    tail = tail.masked_fill(rest == 0, -math.inf)  # also where a member's is not known
    total = torch.logaddexp(log_probs.logsumexp(1), tail[:, 0])[:, None]
    log_probs, tail = log_probs - total, tail - total / temperatures
    true = None
    if targets is not None:
        of_target = (keys == 2 * targets[:, None]) & known
        true = log_probs.masked_fill(~of_target, -math.inf).amax(1)
        true = true.masked_fill(~of_target.any(1), math.nan).float()
    return SoftLabels(keys // 2, log_probs.float(), tail.float(), num_classes, true)


class _Member(NamedTuple):
    """One teacher's labels, ready for look-up.

    A key is twice a class, plus 1 in an empty slot; ``keys`` [B, k] ascend. ``other`` [B, 3] is
    the log-probability of a class that is not stored: the log of the power mean over them, with
    exponent 1 / T, at each of the tail's temperatures.
    """

    keys: Tensor
    log_probs: Tensor
    other: Tensor

    def look_up(self, keys: Tensor) -> Tensor:
        """Log-probabilities [B, n] of the classes with keys [B, n]."""
        at = torch.searchsorted(self.keys, keys).clamp_max(self.keys.shape[1] - 1)
        found = self.keys.gather(1, at) == keys
        return torch.where(found, self.log_probs.gather(1, at), self.other[:, :1])


def _member(labels: SoftLabels, targets: Tensor | None) -> _Member:
    if targets is not None:
        labels = labels.with_truth(targets)
    empty = ~torch.isfinite(labels.log_probs)
    keys, order = (2 * labels.classes + empty).sort(1)
    unstored = labels.num_classes - (~empty).sum(1, keepdim=True)
    temperatures = torch.tensor(TAIL_TEMPERATURES, dtype=torch.float64)
    other = temperatures * (labels.tail.double() - unstored.clamp_min(1).log())
    log_probs = labels.log_probs.double().gather(1, order)
    return _Member(keys, log_probs.clamp_min(_LOWEST), other.clamp_min(_LOWEST))


def _union(labels: Sequence[SoftLabels], members: Sequence[_Member]) -> tuple[Tensor, Tensor]:
    """Keys [B, n] of all classes that a member stores, and which of them count (each once)."""
    num_classes = labels[0].num_classes
    if any(label.k == num_classes for label in labels):
        keys = 2 * torch.arange(num_classes).expand(len(labels[0]), -1).contiguous()
        return keys, torch.ones_like(keys, dtype=torch.bool)
    keys = torch.cat([m.keys for m in members], 1).sort(1).values
    first = torch.ones_like(keys, dtype=torch.bool)
    first[:, 1:] = keys[:, 1:] != keys[:, :-1]
    return keys, first & (keys % 2 == 0)


def merge(
    stores: Sequence[str | Path | LabelStore],
    out: str | Path,
    *,
    rule: Rule = "probs",
    weights: Sequence[float] | None = None,
    top_k: int | None = None,
    values: str | None = None,
    signal: str | None = None,
    into: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LabelStore:
    """Combine stores that label the same crops of the same images by different teachers.

    ``rule`` and the treatment of classes outside a top-k: see :func:`combine`; ``weights`` one a
    store, equal if None. ``top_k`` and ``values`` None take the largest k and the finest number
    type of the stores. Make such stores with ``label(..., boxes_from=STORE)``. The manifest's
    teacher lists each member with its weight, teacher, software and its manifest's SHA-256.
    With ``into`` the result is a signal more of the finished store ``out``, which may be one of
    those combined: ``merge(["S#a", "S#b"], "S", signal="both", into=True)``.
    Everything is compared before the first byte is written; raises InputError naming the first
    difference.
    """
    opened = [LabelStore.open(store) for store in stores]
    shares = _shares(opened, rule, weights)
    if not into:
        refuse_inside(out, opened)
    largest = max(store.record.k for store in opened)  # InputError where a signal is to be chosen
    # What ``out`` has of its own labels does not matter: they may be of other classes.
    check_same_crops([*opened, LabelStore(out).of_kinds("features")] if into else opened)
    first = opened[0]
    if top_k is not None and not 1 <= top_k <= largest:
        raise InputError(
            f"top_k is {top_k}; the stores hold at most {largest}: give 1 to {largest}"
        )
    finest = max(
        (s.record.values for s in opened), key=lambda v: RecordFormat(1, 2, v).dtype.itemsize
    )
    all_known = any(store.record.full for store in opened)
    mass_only = not all_known and any(store.record.tail == "mass" for store in opened)
    form = RecordFormat.choose(
        top_k or largest,
        first.num_classes,
        values or finest,
        "mass" if mass_only else "tempered",
    )
    decoders = dict.fromkeys(store.geometry.images.decoder for store in opened)
    settings = first.settings.model_copy(
        update={
            "record": manifests.Record(**vars(form)),
            "crops": next((s for s in opened if _imported(s)), first).settings.crops,
            "images": first.geometry.images.model_copy(update={"decoder": "; ".join(decoders)}),
            "teacher": _provenance(opened, shares, rule),
            "class_names": next((s.class_names for s in opened if s.class_names), ()),
            "software": f"ferkd {__version__}, torch {torch.__version__}",
        }
    )

    def records(rows: NDArray[np.int64]) -> NDArray[Any]:
        new = np.empty((len(rows), first.crops_per_image), form.dtype)
        width = sum(store.record.k for store in opened)
        for some in chunks(len(rows), first.crops_per_image * width):
            new[some] = _combined(opened, shares, rule, rows[some], form)
        return new

    return rewrite(
        first,
        out,
        settings,
        records,
        signal=signal,
        into=into,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _combined(
    stores: Sequence[LabelStore],
    weights: Sequence[float],
    rule: Rule,
    rows: NDArray[np.integer],
    form: RecordFormat,
) -> NDArray[Any]:
    crops = np.arange(stores[0].crops_per_image)
    records = [store.records(rows[:, None], crops) for store in stores]
    labels = [decoded(s, rows, r) for s, r in zip(stores, records, strict=True)]
    targets = np.repeat(stores[0].truth(rows), len(crops))
    whole = combine(labels, weights, rule, torch.from_numpy(targets))
    return form.encode(whole).reshape(records[0].shape)


def _shares(
    stores: Sequence[LabelStore], rule: str, weights: Sequence[float] | None
) -> list[float]:
    """One weight a store, of sum 1."""
    if len(stores) < 2:
        raise InputError(f"{len(stores)} store to merge; give two or more")
    if rule not in RULES:
        raise InputError(f"rule {rule!r} is not one of {', '.join(RULES)}")
    given = [1.0] * len(stores) if weights is None else [float(w) for w in weights]
    if len(given) != len(stores) or not all(0 < w < math.inf for w in given):
        raise InputError(
            f"weights {given} for {len(stores)} stores; give one number above 0 for each"
        )
    return [w / sum(given) for w in given]


def _provenance(
    stores: Sequence[LabelStore], weights: Sequence[float], rule: Rule
) -> dict[str, Any]:
    specs = (str(store.settings.teacher.get("spec", "unknown")) for store in stores)
    return {
        "spec": f"merge of {', '.join(specs)}",
        "rule": rule,
        "num_classes": stores[0].num_classes,
        "members": [
            {
                "weight": weight,
                "teacher": store.settings.teacher,
                "software": store.settings.software,
                "record": store.settings.labels.model_dump(),
                "manifest_sha256": store.identity,
            }
            for store, weight in zip(stores, weights, strict=True)
        ],
    }


def check_same_crops(stores: Sequence[LabelStore]) -> None:
    """Raise InputError, naming the first difference, unless all label the same crops.

    Compared: the number of classes, their names and whether they are the folders, the images (ids,
    content, ground truth, sizes), and each crop's box, flip and resize rule; imported labels fit
    any rule.
    """
    first = stores[0]
    for other in stores[1:]:
        difference = _difference(first, other)
        if difference:
            raise InputError(
                f"{other.path} does not label the same crops as {first.path}: {difference}; label "
                "the same images with --boxes-from (for maps: with a grid of the same size)"
            )


def _difference(a: LabelStore, b: LabelStore) -> str | None:
    pairs: list[tuple[str, object, object]] = [
        ("classes", a.num_classes, b.num_classes if b.has("labels") else a.num_classes),
        ("the cells of maps", a.geometry.crops.grid, b.geometry.crops.grid),
        ("crops per image", a.crops_per_image, b.crops_per_image),
        ("EXIF orientation used", a.geometry.images.exif, b.geometry.images.exif),
    ]
    if not (_imported(a) or _imported(b)):
        pairs.append(("the resize rule", a.geometry.crops.rule, b.geometry.crops.rule))
    own, others = (s.class_names if s.has("labels") else () for s in (a, b))
    if a.has("labels") and b.has("labels"):
        what = "whether its classes are the images' folders"
        pairs.append((what, a.settings.targets, b.settings.targets))
    if own and others:
        names = zip(own, others, strict=False)
        pairs += [(f"class {i}", x, y) for i, (x, y) in enumerate(names)]
    for what, of_a, of_b in pairs:
        if of_a != of_b:
            return f"{what}: {of_b!r}, not {of_a!r}"
    return _other_image(a, b) or _other_crop(a, b)


def _imported(store: LabelStore) -> bool:
    return store.geometry.crops.rule.startswith(manifests.IMPORTED_RULE)


def _other_image(a: LabelStore, b: LabelStore) -> str | None:
    if a.manifest.geometry.content[:2] == b.manifest.geometry.content[:2]:
        return None  # the files are the same, by their checksums
    for row, (id_a, id_b) in enumerate(zip(a.ids, b.ids, strict=False)):
        if id_a != id_b:
            return f"image {row} is {id_b}, not {id_a}"
    if len(a) != len(b):
        return f"it has {len(b)} images, not {len(a)}"
    for name in IMAGE.names or ():
        differing = np.flatnonzero(a.images[name] != b.images[name])
        if len(differing):
            row = int(differing[0])
            of_a, of_b = (int(store.images[name][row]) for store in (a, b))
            return f"the {name} of {a.ids[row]} is {of_b}, not {of_a}"
    return None


def _other_crop(a: LabelStore, b: LabelStore) -> str | None:
    crops = np.arange(a.crops_per_image)
    if a.manifest.geometry.content == b.manifest.geometry.content:
        return None
    for some in chunks(len(a), len(crops) * 8):
        rows = np.arange(some.start, some.stop)[:, None]
        in_a, in_b = a.boxes(rows, crops), b.boxes(rows, crops)
        same = (in_a == in_b).all(2) & (a.flips(rows, crops) == b.flips(rows, crops))
        if not same.all():
            row, crop = (int(i[0]) for i in np.nonzero(~same))
            boxes = (f"{boxes[row, crop].tolist()}" for boxes in (in_b, in_a))
            return f"crop {crop} of {a.ids[some.start + row]} is {', not '.join(boxes)} or mirrored"
    return None
