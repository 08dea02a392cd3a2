"""How much a network's frozen features tell of the classes: nearest neighbours and a linear probe.

Both learn from reference images of known classes and are judged on others. The network may be a
run, with or without classes, or any teacher, so a student stands beside its teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from ferkd.evaluating.center_crops import CACHE_BYTES, CenterCrops
from ferkd.evaluating.predictions import match_classes
from ferkd.evaluating.split import held_out
from ferkd.images import ImageSource, open_images
from ferkd.models.heads import WithFeatures, head_of_student
from ferkd.models.student import check_input, finished_run, load_run
from ferkd.system.compute import Normalise, Precision, autocast, resolve_device, resolve_precision
from ferkd.system.errors import InputError
from ferkd.system.results import Result
from ferkd.system.settings import check_least

NEIGHBOURS = 20
SHARPNESS = 0.07  # a neighbour votes with exp(cosine / 0.07)
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # the C of LogisticRegression, on standardised features
HELD_OUT = 0.2  # of the images, where no others are given as reference
_CHOOSING = 5  # every fifth reference image chooses the penalty
_ITERATIONS = 1000


# Central crops by the source's identity, their size and share, and whether EXIF turns them.
Seen = dict[tuple[int, int, float, bool], CenterCrops]


@dataclass(frozen=True)
class Embedder:
    """A frozen network: ``features`` maps uint8 [B, 3, S, S] to float32 [B, d] at its size S."""

    features: Callable[[Tensor], Tensor]
    image_size: int
    crop_fraction: float
    exif: bool = True


@dataclass(frozen=True)
class Embedded:
    """Features float32 [N, d] of images with classes, and these, int64 [N]."""

    features: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Judgement(Result):
    """How well the classes are told by ``features`` numbers an image: top-1 of nearest neighbours
    and of a linear probe (with the penalty ``probe_c``), each where it was asked for."""

    network: str
    features: int
    image_size: int
    judged_images: int
    reference_images: int
    knn_top1: float | None = None
    knn_k: int | None = None
    knn_metric: str | None = None
    probe_top1: float | None = None
    probe_c: float | None = None


def judge(
    network: str | Path,
    images: str | Path | ImageSource,
    *,
    reference: str | Path | ImageSource | None = None,
    knn: bool = True,
    probe: bool = True,
    neighbours: int = NEIGHBOURS,
    image_size: int | None = None,
    crop_fraction: float | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    precision: Precision = "fp32",
    seen: Seen | None = None,
) -> Judgement:
    """Judge the features of ``network``, a run or a teacher's spec, on ``images`` with classes.

    ``reference`` are the images of the same classes that is learnt from; without, four fifths of
    ``images`` are, by their ids, and the other fifth is judged. Features are what the network's
    head is given for the central crop. ``seen``, an empty mapping at first, spares the decoding
    where several networks are judged on the same open sources.
    """
    check_least(1, neighbours=neighbours, batch_size=batch_size)
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise InputError(f"crop_fraction is {crop_fraction:g}; it must be above 0 and at most 1")
    embedder = embedder_of(network, image_size=image_size, device=device, precision=precision)
    fraction = crop_fraction or embedder.crop_fraction

    def embed(source: ImageSource) -> tuple[Tensor, Tensor]:
        key = id(source), embedder.image_size, fraction, embedder.exif
        if seen is None or (crops := seen.get(key)) is None:
            crops = CenterCrops(
                source,
                image_size=embedder.image_size,
                crop_fraction=fraction,
                workers=workers,
                exif=embedder.exif,
                cache_bytes=0 if seen is None else CACHE_BYTES,
            )
        if seen is not None:
            seen[key] = crops
        found = [(embedder.features(p).float().cpu(), r) for p, r in crops.batches(batch_size)]
        if not found:
            raise InputError(f"{source.name} holds no image that can be read; check the path")
        features = torch.cat([f for f, _ in found])
        if not bool(features.isfinite().all()):
            raise InputError(
                f"the features of {network} for {source.name} are not finite; give precision fp32"
            )
        return features, torch.cat([r for _, r in found])

    source = open_images(images)
    features, rows = embed(source)
    if reference is None:
        judged_rows = torch.from_numpy(held_out(source, HELD_OUT))[rows]
        known, judged = _labelled(source, rows, features, judged_rows)
    else:
        others = open_images(reference)
        theirs, places = embed(others)
        known = _of(theirs, torch.from_numpy(others.targets.astype(np.int64))[places])
        targets = torch.from_numpy(source.targets.astype(np.int64))[rows]
        judged = _of(
            features,
            match_classes(targets, source.class_names, others.class_names, source=source.name),
        )
    for side, what in ((known, "to learn from"), (judged, "to judge")):
        if not len(side.targets):
            raise InputError(f"{source.name}: no image with a class {what}; use class folders")
    found: dict[str, Any] = {}
    if knn:
        k = min(neighbours, len(known.targets))
        found |= {
            "knn_top1": _share(nearest(known, judged.features, k), judged.targets),
            "knn_k": k,
            "knn_metric": f"cosine of features of length 1, votes exp(cosine / {SHARPNESS})",
        }
    if probe:
        answers, c = linear_probe(known, judged.features)
        found |= {"probe_top1": _share(answers, judged.targets), "probe_c": c}
    return Judgement(
        network=str(network),
        features=features.shape[1],
        image_size=embedder.image_size,
        judged_images=len(judged.targets),
        reference_images=len(known.targets),
        **found,
    )


def has_classes(network: str | Path) -> bool:
    """Whether ``network`` is a run whose student has classes; a teacher's spec is no run."""
    path = Path(network).expanduser()
    return path.exists() and finished_run(path)[1].num_classes > 0


def embedder_of(
    network: str | Path, *, image_size: int | None, device: str, precision: Precision
) -> Embedder:
    """The features of a run or weights file, or of the teacher that a spec names."""
    if not Path(network).expanduser().exists():
        return _of_teacher(str(network), image_size, device, precision)
    model, config = load_run(network, headless=True)
    where, size = resolve_device(device), image_size or config.image_size
    check_input(
        *(model, config.architecture, size, config.num_classes),
        remedy=f"evaluate it at {config.image_size}, the size it was trained for",
    )
    head, _ = head_of_student(model, size, config.num_classes)
    both = WithFeatures(model.to(where), head, nn.Identity(), head_alone=False).eval()
    normalise = Normalise(config.mean, config.std, where)
    dtype = resolve_precision(precision, where)

    def features(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(where, dtype):
            return both(normalise(pixels))[1]

    return Embedder(features, size, config.crop_fraction, config.exif)


def _of_teacher(spec: str, image_size: int | None, device: str, precision: Precision) -> Embedder:
    # Not at the top: they import timm, which judging a run may not need.
    from ferkd.labelling.features import FeatureTeacher
    from ferkd.models.teacher import load_teacher

    teacher = load_teacher(spec, image_size=image_size, device=device, precision=precision)
    features = FeatureTeacher(teacher)
    return Embedder(
        lambda pixels: features({teacher.image_size: pixels}),
        teacher.image_size,
        teacher.crop_fraction,
    )


def nearest(known: Embedded, features: Tensor, k: int) -> Tensor:
    """The class of each of ``features`` [M, d] by its ``k`` nearest neighbours, int64 [M].

    Neighbours are those of the largest cosine and vote with exp(cosine / 0.07); of equal votes the
    lower class wins. Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018.
    """
    bank, classes = normalize(known.features, dim=1), int(known.targets.max()) + 1
    answers = []
    for some in normalize(features, dim=1).split(1024):
        cosines, places = (some @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(some), classes, dtype=torch.float64)
        votes.scatter_add_(1, known.targets[places], (cosines.double() / SHARPNESS).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers)


def linear_probe(known: Embedded, features: Tensor) -> tuple[Tensor, float]:
    """The classes of ``features`` [M, d] by logistic regression on ``known``, and its penalty C.

    scikit-learn's LogisticRegression on features standardised by those known; C is the one of
    :data:`PENALTIES` that is right most often on every fifth known image, the smaller of equal
    ones, and the fit is then made on all. Raises InputError where scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise InputError(
            'the linear probe needs scikit-learn: pip install "ferkd[probe]", or judge by --knn'
        ) from None
    mean, std = known.features.mean(0), known.features.std(0, correction=0).clamp_min(1e-6)

    def scaled(values: Tensor) -> NDArray[np.float64]:
        return ((values - mean) / std).double().numpy()

    x, y = scaled(known.features), known.targets.numpy()
    if len(np.unique(y)) < 2:
        raise InputError("the linear probe needs reference images of at least 2 classes")

    def fitted(c: float, some: NDArray[np.bool_]) -> Any:
        return LogisticRegression(C=c, max_iter=_ITERATIONS).fit(x[some], y[some])

    held = np.arange(len(y)) % _CHOOSING == _CHOOSING - 1
    best, found = -1.0, PENALTIES[1]
    if held.any() and len(np.unique(y[~held])) > 1:
        for c in PENALTIES:
            right = float((fitted(c, ~held).predict(x[held]) == y[held]).mean())
            if right > best:
                best, found = right, c
    answers = fitted(found, np.ones(len(y), bool)).predict(scaled(features))
    return torch.from_numpy(answers.astype(np.int64)), found


def _labelled(
    source: ImageSource, rows: Tensor, features: Tensor, judged: Tensor
) -> tuple[Embedded, Embedded]:
    targets = torch.from_numpy(source.targets.astype(np.int64))[rows]
    return _of(features[~judged], targets[~judged]), _of(features[judged], targets[judged])


def _of(features: Tensor, targets: Tensor) -> Embedded:
    known = targets >= 0
    return Embedded(features[known], targets[known])


def _share(answers: Tensor, targets: Tensor) -> float:
    return float((answers == targets).double().mean())
