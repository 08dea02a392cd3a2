"""What storing a soft label costs: bytes per crop against how much of the label is lost.

`distortion` compares forms of record, ours and FKD's, over the logits of many crops; `tempering`
does so for the labels at other temperatures. All is computed in float64, chunk by chunk (logits
[B, C] and the ground truth, int64 [B], -1 for none); a recovered label is taken as a student would
get it, and nothing of it is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ferkd.store import LabelStore, SoftLabels
from ferkd.study.bench.distortion_tables import markdown as markdown
from ferkd.study.bench.forms import FORMS, Form, Stored, fits, sizes
from ferkd.study.bench.measuring import machine
from ferkd.study.bench.tails import gradient_errors
from ferkd.system.errors import InputError

Chunk = tuple[Tensor, Tensor]  # logits [B, C], ground truth int64 [B]
QUANTILE = 0.999
_ROWS = 64  # crops looked at together: some tens of MB with 20,000 classes
_LARGEST_GAP = (255 / 48) ** 2  # nats: what a u8 code can say at most
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
_TEMPERED = (Stored(5, "u8"), Stored(5, "f16"), Stored(10, "u8"), Stored(None, "f16"))


@dataclass(frozen=True)
class Synthetic:
    """A made-up teacher's labels; see `synthetic_logits`."""

    num_classes: int
    crops: int
    median: float = 0.82  # of the confidence in the class shown
    spread: float = 2.5  # deviation of its log-odds
    decay: float = 1.5  # exponent of the Zipf law over the other classes


_SYNTHETIC = (Synthetic(1000, 16_384), Synthetic(21_841, 2048, median=0.5, spread=2.0))


def bench_distortion(
    stores: Sequence[str | Path] = (),
    *,
    synthetic: Sequence[Synthetic] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Rate and distortion over real and synthetic labels, and the sizes that follow for ImageNet.

    ``stores`` hold all classes in single precision (`stored_logits`). ``synthetic`` are made-up
    populations; None makes two where no store is given, and none beside one. The headline is of
    the first of ``synthetic``, else of the first store: the mean divergence of the default record
    beside FKD's top-5 in single precision, None where there are too few classes for them.
    """
    if synthetic is None:
        synthetic = () if stores else _SYNTHETIC
    sources: dict[str, Callable[[], Iterator[Chunk]]] = {}
    for path in stores:
        store = LabelStore.open(path)
        sources[f"store {store.path.name}, {store.num_classes} classes"] = stored_logits(store)
    for model in synthetic:
        sources[f"synthetic, {model.num_classes} classes"] = partial(
            synthetic_logits, model, seed=seed
        )
    found: dict[str, dict[str, Any]] = {}
    for name, chunks in sources.items():
        found[name] = {
            "labels": population(chunks()),
            "forms": distortion(chunks()),
            "temperatures": tempering(chunks()),
            "tails": gradient_errors(chunks()),
        }
    headline = f"synthetic, {synthetic[0].num_classes} classes" if synthetic else next(iter(found))
    kl = {row["form"]: row["kl_mean"] for row in found[headline]["forms"]}
    ours, theirs = kl.get("ferkd top-5 u8"), kl.get("FKD top-5 f32")
    return {
        "benchmark": "distortion",
        "value": ours,
        "unit": f"nats, mean KL(teacher || top-5 u8 record), {headline}",
        "baselines": {"FKD top-5 f32": theirs},
        "ratios": {"FKD top-5 f32": ours / theirs if ours is not None and theirs else None},
        "details": {
            "populations": found,
            "temperature_bound": {str(t): temperature_bound(t) for t in (1.0, 2.0, 4.0)},
            "sizes": [row for crops in (50, 500) for row in sizes(crops)],
        },
        "machine": machine(),
    }


def divergence(logits: Tensor, recovered: Tensor) -> Tensor:
    """KL(teacher || recovered) in nats per row, float64 [B]; logits and probabilities [B, C].

    Infinite where a class that the teacher gives mass has none, or less than none. Rows are
    divided by their sum, which takes away float32's rounding of it and nothing else.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    lost = ((recovered <= 0) & (p > 0)).any(1)
    log_q = recovered.clamp_min(0).log() - recovered.sum(1, keepdim=True).log()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    return terms.sum(1).masked_fill(lost, math.inf)


def distortion(
    chunks: Iterable[Chunk], forms: Sequence[Form] = FORMS, *, crops: int = 50
) -> list[dict[str, Any]]:
    """One row a form that fits the number of classes: bytes, and what is lost over all crops.

    ``kl_mean`` and ``kl_p999`` are of KL(teacher || recovered) in
    nats, None where infinite; ``infinite`` is the share of crops whose divergence is, ``kl_finite``
    the mean over the others (None without any). ``argmax_changed`` is the share of crops whose
    most probable class got less than another, ``crops`` the number per image for
    ``bytes_per_crop``.
    """
    kls: dict[str, list[Tensor]] = {}
    changed: dict[str, int] = {}
    fitting: list[Form] = []
    count = num_classes = 0
    for logits, targets in chunks:
        if not count:
            num_classes = logits.shape[1]
            fitting = [f for f in forms if fits(f, num_classes)]
        count += len(logits)
        top = logits.argmax(1, keepdim=True)
        for form in fitting:
            recovered = form.recover(logits, targets)
            kls.setdefault(form.name, []).append(divergence(logits, recovered))
            less = recovered.gather(1, top)[:, 0] < recovered.amax(1)
            changed[form.name] = changed.get(form.name, 0) + int(less.sum())
    rows = []
    for form in fitting:
        kl = torch.cat(kls[form.name]).numpy()
        finite = kl[np.isfinite(kl)]
        rows.append(
            {
                "form": form.name,
                "num_classes": num_classes,
                "crops": count,
                "record_bytes": form.record_bytes(num_classes),
                "bytes_per_crop": form.bytes_per_crop(num_classes, crops),
                "kl_mean": _number(kl.mean()),
                "kl_p999": _number(np.quantile(kl, QUANTILE, method="inverted_cdf")),
                "kl_finite": _number(finite.mean()) if len(finite) else None,
                "infinite": 1 - len(finite) / count,
                "argmax_changed": changed[form.name] / count,
            }
        )
    return rows


def tempering(
    chunks: Iterable[Chunk],
    forms: Sequence[Stored] = _TEMPERED,
    temperatures: Sequence[float] = _TEMPERATURES,
) -> list[dict[str, Any]]:
    """One row a form and temperature T: labels tempered from the record against softmax(z / T).

    Absolute errors of probabilities: of the k stored classes and of all others together
    (``stored_max``, ``stored_mean``; what `temperature_bound` bounds), and of every class
    (``class_max``, ``class_mean``), where the tail's shape is lost as well. ``kl_mean`` and
    ``kl_p999`` are of KL(tempered teacher || tempered record), ``kl_tail`` of the mean is what an
    even tail costs with all else, the ground truth too, exact.
    """
    gathered: dict[tuple[str, float], list[dict[str, Tensor]]] = {}
    for logits, targets in chunks:
        for form in forms:
            if not fits(form, logits.shape[1]):
                continue
            labels = form.labels(logits, targets)
            for t in temperatures:
                gathered.setdefault((form.name, t), []).append(tempered_errors(logits, labels, t))
    rows = []
    for (name, t), parts in gathered.items():
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        rows.append(
            {
                "form": name,
                "temperature": t,
                "stored_max": float(joined["stored_max"].max()),
                "stored_mean": float(joined["stored_mean"].mean()),
                "class_max": float(joined["class_max"].max()),
                "class_mean": float(joined["class_mean"].mean()),
                "kl_mean": float(joined["kl"].mean()),
                "kl_tail": float(joined["kl_tail"].mean()),
                "kl_p999": float(np.quantile(joined["kl"].numpy(), QUANTILE)),
            }
        )
    return rows


def tempered_errors(logits: Tensor, labels: SoftLabels, temperature: float) -> dict[str, Tensor]:
    """The errors of labels tempered at T against softmax(logits / T), float64 [B] each."""
    scaled = logits.double() / temperature
    exact = scaled.softmax(1)
    got = labels.dense(temperature).double()
    error = (got - exact).abs()
    stored = labels.classes[:, :-1] if labels.truth_slot else labels.classes
    is_stored = torch.zeros_like(error, dtype=torch.bool).scatter(1, stored, True)
    rest = (got - exact).masked_fill(is_stored, 0.0).sum(1, keepdim=True)
    parts = torch.cat([error.gather(1, stored), rest.abs()], 1)
    # The slot of the truth is empty, and its class means nothing, where the truth is stored.
    filled = torch.isfinite(labels.log_probs).to(exact.dtype)
    is_known = torch.zeros_like(error).scatter_add(1, labels.classes, filled) > 0
    tail = exact.masked_fill(is_known, 0.0).sum(1, keepdim=True)
    even = tail / (~is_known).sum(1, keepdim=True).clamp_min(1)
    return {
        "stored_max": parts.amax(1),
        "stored_mean": parts.mean(1),
        "class_max": error.amax(1),
        "class_mean": error.mean(1),
        "kl": divergence(scaled, got),
        "kl_tail": divergence(scaled, torch.where(is_known, exact, even)),
    }


def temperature_bound(temperature: float) -> float:
    """The most by which a u8 top-k record may miss a stored class's tempered probability, or the
    total of the others, at a temperature T of 1, 2 or 4, for gaps up to 28.2 nats.

    A gap g is stored as the nearest c with g = (c / 48)^2, so off by at most sqrt(g) / 48 + 1 /
    9216 =: e. A class's exponent is then off by e / T at most, the tail's (stored per T) by e. Two
    distributions whose log-ratio spans d differ by at most tanh(d / 4) at any event.

    The ground truth's slot divides the tail's total and leaves it as it is, but where its share at
    T > 1 is cut to 98 %. There the total is at most 1 / 0.98 of the slot's, which at T = 1 was at
    most 98 % of the tail and so exceeds the tail at T by e / T - (1 - 1 / T) ln 0.98 < e at most.
    """
    e = math.sqrt(_LARGEST_GAP) / 48 + 1 / 9216
    return math.tanh((e / temperature + e) / 4)


def synthetic_logits(model: Synthetic, *, seed: int = 0) -> Iterator[Chunk]:
    """Teacher-like logits in chunks [B, C] float32, and the classes shown.

    Each crop shows a class y, drawn evenly: the ground truth. The confidence p_y has normal
    log-odds with the model's median and spread: many sure crops and a long tail of doubtful ones,
    as random crops are. The rest of the mass goes to the other classes by a Zipf law over their
    rank in y's own fixed order of likely confusions, times log-normal noise whose deviation
    belongs to y:
    log p_c = const - decay * log(rank of c) + deviation_y * normal, deviation_y in 0.6 .. 1.4.
    """
    num_classes, odds = model.num_classes, model.median / (1 - model.median)
    rng = np.random.default_rng([seed, num_classes])
    deviation = rng.uniform(0.6, 1.4, num_classes)
    ranks = np.arange(1, num_classes)
    for start in range(0, model.crops, 256):
        count = min(256, model.crops - start)
        shown = rng.integers(0, num_classes, count)
        log_odds = math.log(odds) + model.spread * rng.standard_normal(count)
        rest = -model.decay * np.log(ranks) + deviation[shown, None] * rng.standard_normal(
            (count, num_classes - 1)
        )
        logits = np.empty((count, num_classes))
        for i, y in enumerate(shown):
            order = np.random.default_rng([seed, num_classes, y]).permutation(num_classes)
            logits[i, order[order != y]] = rest[i]
            logits[i, y] = log_odds[i] + np.logaddexp.reduce(rest[i])
        yield from _split(torch.from_numpy(logits).float(), torch.from_numpy(shown))


def stored_logits(store: LabelStore) -> Callable[[], Iterator[Chunk]]:
    """The logits and targets of a store of all classes, in chunks, as often as it is called."""
    if not store.record.full or store.record.values != "f32":
        raise InputError(
            f"{store.path} holds top-{store.record.k} labels as {store.record.values}; label with "
            "--top-k 0 --values f32 to have the teacher's logits"
        )

    def chunks() -> Iterator[Chunk]:
        for rows, records, labels in store.scan():
            targets = np.repeat(store.targets[rows].astype(np.int64), records.shape[1])
            yield from _split(labels.log_probs, torch.from_numpy(targets))

    return chunks


def _split(logits: Tensor, targets: Tensor) -> Iterator[Chunk]:
    return zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)


def population(chunks: Iterable[Chunk]) -> dict[str, float]:
    """What the labels are like: shares of crops and mean masses."""
    confidence, top5, outside = [], [], []
    for logits, targets in chunks:
        ordered, classes = logits.double().softmax(1).topk(min(5, logits.shape[1]), dim=1)
        confidence.append(ordered[:, 0])
        top5.append(ordered.sum(1))
        outside.append((targets >= 0) & (classes != targets[:, None]).all(1))
    sure = torch.cat(confidence)
    return {
        "crops": len(sure),
        "mean_confidence": float(sure.mean()),
        "share_above_0.9": float((sure > 0.9).double().mean()),
        "share_below_0.3": float((sure < 0.3).double().mean()),
        "mean_top5_mass": float(torch.cat(top5).mean()),
        "truth_outside_top5": float(torch.cat(outside).double().mean()),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
