"""What a label store holds, in figures: sizes, regions, reliability, suspicious labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.calibration.regions import Mining, Region, Regions, mine, scores_of
from ferkd.calibration.temperature import fit_temperature
from ferkd.images import ImageSource, decode, open_images
from ferkd.loading.crop_sources import match, without_labels
from ferkd.store import LabelStore
from ferkd.study.suspicious import judge, listing, write_csv
from ferkd.system.results import Result

SUSPICIOUS = 20  # images listed at most


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection(Result):
    """Figures of a store.

    ``suspicious`` lists the images whose ground truth the teacher denies most surely
    (`ferkd.study.suspicious`), ``denied`` counts all that it denies. ``reliability`` is the curve
    that thresholds were read off. Shares are 0 .. 1.
    """

    store: str
    images: int
    skipped: list[dict[str, Any]]
    kind: str
    map_grid: str | None = None
    crops_per_image: int
    classes: int
    bytes_per_crop: float
    record: dict[str, Any]
    teacher: dict[str, Any]
    calibration: str
    mean_weight: float | None
    thresholds: list[float]
    threshold_source: str
    regions: dict[str, float]
    images_without_ground_truth: int
    images_with_all_crops_discarded: int
    teacher_right: float | None
    label_temperature: dict[str, float] | None
    histogram: dict[str, list[float]]
    suspicious: list[dict[str, Any]]
    denied: int
    reliability: dict[str, list[float]] | None = None
    note: str | None = None
    images_without_labels: int | None = None
    truth: dict[str, Any] | None = None


def inspect(
    store: str | Path | LabelStore,
    regions: Regions | None = None,
    truth: str | Path | None = None,
    images: str | Path | ImageSource | None = None,
) -> Inspection:
    """Figures of a store: the JSON object of ``ferkd inspect``.

    With ``images`` also how many of them have no labels. ``truth`` is the truth file of planted
    scenes: adds how well the scores find what was planted.
    """
    opened = LabelStore.open(store)
    mining = mine(opened, regions)
    settings = opened.settings
    settings_of = regions or Regions()
    scores, correct = scores_of(opened, settings_of.score)
    known = opened.targets >= 0
    counts, edges = np.histogram(scores[~np.isnan(scores)], bins=20, range=(0, 1))
    crops = len(opened) * opened.crops_per_image
    judged = judge(opened)
    doubted = judged.ranked()
    fitted = None if settings.crops.is_map else fit_temperature(opened)
    more: dict[str, Any] = dict(settings.crops.grid)
    if mining.evidence is not None and mining.evidence.reliability is not None:
        curve = asdict(mining.evidence.reliability)
        more["reliability"] = {name: values.tolist() for name, values in curve.items()}
    if images is not None:
        source = open_images(images, targets=settings.targets)
        more["images_without_labels"] = without_labels(source, opened)
    if truth is not None:
        from ferkd.study.scenes.planted import against_truth, read_truth

        more["truth"] = against_truth(opened, read_truth(truth))
    return Inspection(
        store=str(opened.path),
        images=len(opened),
        skipped=[s.model_dump() for s in opened.manifest.skipped],
        kind="map" if settings.crops.is_map else "crops",
        crops_per_image=opened.crops_per_image,
        classes=opened.num_classes,
        bytes_per_crop=opened.bytes_on_disk / max(1, crops),
        record=settings.labels.model_dump(),
        teacher=settings.teacher,
        calibration=settings_of.calibration,
        mean_weight=mining.mean_weight,
        thresholds=list(mining.thresholds),
        threshold_source=mining.evidence.reason if mining.evidence else "fixed",
        regions=mining.shares,
        images_without_ground_truth=mining.without_target,
        images_with_all_crops_discarded=mining.rescued,
        teacher_right=float(correct[known].mean()) if known.any() else None,
        label_temperature=None if fitted is None else asdict(fitted),
        histogram={"edges": edges.tolist(), "counts": counts.tolist()},
        suspicious=listing(opened, judged, doubted[judged.denied[doubted]][:SUSPICIOUS]),
        denied=int(judged.denied.sum()),
        note=mining.note,
        **more,
    )


def write_page(
    store: str | Path | LabelStore,
    path: Path,
    *,
    images: str | Path | ImageSource | None = None,
    regions: Regions | None = None,
    pictures: int = 120,
) -> None:
    """The inspector as one self-contained HTML page; with the images also some of them."""
    from ferkd.study.inspector.page import prepare
    from ferkd.study.inspector.page import write_page as write

    opened = LabelStore.open(store)
    source = None if images is None else open_images(images, targets=opened.settings.targets)
    named = str(images) if isinstance(images, str | Path) else ""
    write(prepare(opened, source, regions, named), path, pictures)


def write_suspicious(store: str | Path | LabelStore, path: Path) -> int:
    """Write all labels that the teacher denies as CSV, the most suspicious first; how many."""
    opened = LabelStore.open(store)
    judged = judge(opened)
    rows = judged.ranked()
    denied = rows[judged.denied[rows]]
    write_csv(path, listing(opened, judged, denied))
    return len(denied)


def confidence(store: LabelStore, mining: Mining, regions: Regions) -> Any:
    """The report's panel of confidence, regions and reliability."""
    from ferkd.study import report

    scores, correct = scores_of(store, regions.score)
    known = store.targets >= 0
    kept = ""
    if mining.rescued:
        kept = (
            f"By these scores nothing would be left of {mining.rescued:,} images; they are kept "
            f"whole, so training never draws {mining.never_drawn:.1%} of all crops."
        )
    curve = mining.evidence.reliability if mining.evidence else None
    return report.confidence_panel(
        scores,
        mining.by_score(),
        thresholds=(*mining.thresholds,) if regions.scale == "probability" else None,
        correct=correct if known.all() and len(known) else None,
        reliability=None
        if curve is None
        else report.Reliability(
            *(v.tolist() for v in (curve.s, curve.rate, curve.low, curve.high))
        ),
        classes=store.num_classes,
        score=regions.score,
        note=kept,
    )


def gallery(
    store: LabelStore,
    images: ImageSource,
    mining: Mining,
    pictures: int = 8,
    objects: dict[str, tuple[int, int, int, int]] | None = None,
) -> Any:
    """The report's gallery: some images with their crops coloured by region, and single crops.

    Images are spread over the classes; ``objects`` are true boxes by id, drawn where known.
    """
    from ferkd.study import report

    places = match(images, store)
    names = store.class_names or tuple(map(str, range(store.num_classes)))
    scores, _ = scores_of(store)
    all_crops = np.arange(store.crops_per_image)
    items = []
    thumbs: dict[Region, list[Any]] = {region: [] for region in Region}
    for row in _spread(store, mining, pictures):
        regions = mining.by_score(row)
        image = decode(images.read(int(places[row])), exif=store.geometry.images.exif)
        labels = store.labels(row, all_crops)
        top = [
            [(names[c], float(p)) for c, p in zip(classes, probs, strict=True)][:3]
            for classes, probs in _ranked(labels)
        ]
        boxes, flips = store.boxes(row, all_crops), store.flips(row, all_crops)
        target = names[store.targets[row]] if store.targets[row] >= 0 else ""
        name = store.ids[row]
        items.append(
            report.gallery_item(
                image,
                boxes,
                flips,
                regions,
                scores[row],
                name=name,
                target=target,
                top=top,
                object_box=(objects or {}).get(name),
            )
        )
        for region in Region:
            chosen = np.flatnonzero(regions == region)
            if len(chosen):
                crop = int(chosen[len(chosen) // 2])
                thumbs[region].append(
                    report.crop_thumb(
                        image,
                        boxes[crop],
                        bool(flips[crop]),
                        int(region),
                        float(scores[row, crop]),
                        name=name,
                        target=target,
                        top=top[crop],
                    )
                )
    return report.Gallery(tuple(items), tuple(t for listed in thumbs.values() for t in listed))


def _ranked(labels: Any) -> list[tuple[list[int], list[float]]]:
    order = labels.log_probs.argsort(1, descending=True)
    classes = labels.classes.gather(1, order)
    return list(
        zip(classes.tolist(), labels.log_probs.gather(1, order).exp().tolist(), strict=True)
    )


def _spread(store: LabelStore, mining: Mining, count: int) -> list[int]:
    """Rows of images with the most varied regions, one class after the other."""
    variety = np.array([len(np.unique(r)) for r in mining.by_score()])
    queues = [
        sorted(np.flatnonzero(store.targets == t), key=lambda r: (-variety[r], r))
        for t in np.unique(store.targets)
    ]
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, len(store)):
        chosen += [int(q[depth]) for q in queues if depth < len(q)]
        depth += 1
    return chosen[:count]
