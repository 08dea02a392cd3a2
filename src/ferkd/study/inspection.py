"""What a label store holds, in figures: sizes, regions, reliability, suspicious labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.calibration.regions import Mining, Region, Regions, mine, scores_of
from ferkd.calibration.temperature import fit_temperature
from ferkd.images import FolderImages, ImageSource, decode, describe_unread, open_images
from ferkd.loading.crop_sources import match, without_labels
from ferkd.store import LabelStore

SUSPICIOUS = 20  # images listed at most


def inspect(
    store: str | Path | LabelStore,
    regions: Regions | None = None,
    truth: str | Path | None = None,
    images: str | Path | ImageSource | None = None,
) -> dict[str, Any]:
    """Figures of a store: the JSON object of ``ferkd inspect``.

    With ``images`` also how many of them have no labels.

    ``suspicious`` lists the images whose crops the teacher most consistently takes for another
    class (mean probability of that class): wrong ground truth, or a picture of something else.
    ``truth`` is the truth file of planted scenes: adds how well the scores find what was planted.
    """
    opened = LabelStore.open(store)
    mining = mine(opened, regions)
    settings = opened.settings
    settings_of = regions or Regions()
    scores, correct = scores_of(opened, settings_of.score)
    known = opened.targets >= 0
    counts, edges = np.histogram(scores[~np.isnan(scores)], bins=20, range=(0, 1))
    crops = len(opened) * opened.crops_per_image
    fitted = None if settings.crops.is_map else fit_temperature(opened)
    result: dict[str, Any] = {
        "store": str(opened.path),
        "images": len(opened),
        "skipped": [s.model_dump() for s in opened.manifest.skipped],
        "kind": "map" if settings.crops.is_map else "crops",
        **settings.crops.grid,
        "crops_per_image": opened.crops_per_image,
        "classes": opened.num_classes,
        "bytes_per_crop": opened.bytes_on_disk / max(1, crops),
        "record": settings.labels.model_dump(),
        "teacher": settings.teacher,
        "calibration": settings_of.calibration,
        "mean_weight": mining.mean_weight,
        "thresholds": list(mining.thresholds),
        "threshold_source": mining.evidence.reason if mining.evidence else "fixed",
        "regions": mining.shares,
        "images_without_ground_truth": mining.without_target,
        "images_with_all_crops_discarded": mining.rescued,
        "teacher_right": float(correct[known].mean()) if known.any() else None,
        "label_temperature": None if fitted is None else asdict(fitted),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "suspicious": _suspicious(opened),
    }
    if mining.evidence is not None and mining.evidence.reliability is not None:
        curve = asdict(mining.evidence.reliability)
        result["reliability"] = {name: values.tolist() for name, values in curve.items()}
    if mining.note:
        result["note"] = mining.note
    if images is not None:
        source = open_images(images, targets=settings.targets)
        result["images_without_labels"] = without_labels(source, opened)
    if truth is not None:
        from ferkd.study.scenes.planted import against_truth, read_truth

        result["truth"] = against_truth(opened, read_truth(truth))
    return result


def _suspicious(store: LabelStore) -> list[dict[str, Any]]:
    found: list[tuple[float, int, int]] = []
    targets = store.targets
    for rows, _, labels in store.scan():
        shape = (rows.stop - rows.start, store.crops_per_image)
        answers = labels.top1().numpy().reshape(shape)
        confidence = labels.max_prob().numpy().reshape(shape)
        for i, row in enumerate(range(rows.start, rows.stop)):
            votes = np.bincount(answers[i], weights=confidence[i], minlength=1) / shape[1]
            answer = int(votes.argmax())
            if targets[row] >= 0 and answer != targets[row] and votes[answer] > 0.5:
                found.append((float(votes[answer]), row, answer))
        found = sorted(found, reverse=True)[:SUSPICIOUS]
    names = store.class_names or tuple(map(str, range(store.num_classes)))
    return [
        {
            "id": store.ids[row],
            "labelled": names[targets[row]],
            "teacher_says": names[answer],
            "mean_probability": share,
        }
        for share, row, answer in found
    ]


def write_page(
    store: str | Path | LabelStore,
    path: Path,
    *,
    images: str | Path | ImageSource | None = None,
    regions: Regions | None = None,
    pictures: int = 8,
) -> None:
    """One self-contained HTML page about a store; with its images also a gallery of crops."""
    from ferkd.study import report

    opened = LabelStore.open(store)
    figures = inspect(opened, regions)
    mining = mine(opened, regions)
    source = None if images is None else open_images(images, targets=opened.settings.targets)
    report.write_report(
        report.Report(
            title=f"{'Label maps' if figures['kind'] == 'map' else 'Label store'} "
            f"{opened.path.name}",
            verdict=mining.describe(),
            facts=(
                report.Fact("Images", f"{len(opened):,}"),
                report.Fact(*_crops_fact(figures)),
                report.Fact("Classes", str(opened.num_classes)),
                report.Fact("Teacher", str(opened.settings.teacher.get("spec", "unknown"))),
                report.Fact("Bytes per crop", f"{figures['bytes_per_crop']:.1f}"),
                *_unread_fact(source),
            ),
            confidence=confidence(opened, mining, regions or Regions()),
            gallery=None if source is None else gallery(opened, source, mining, pictures),
            choices=tuple(
                report.Choice(s["id"], f"labelled {s['labelled']}", f"teacher: {s['teacher_says']}")
                for s in figures["suspicious"]
            ),
        ),
        path,
    )


def _unread_fact(source: ImageSource | None) -> tuple[Any, ...]:
    """A fact about images of kinds that are not read here, where there are any."""
    from ferkd.study import report

    counts = source.unread if isinstance(source, FolderImages) else {}
    return (report.Fact("Not read", describe_unread(counts)),) if counts else ()


def _crops_fact(figures: dict[str, Any]) -> tuple[str, str]:
    if figures["kind"] == "crops":
        return "Crops per image", str(figures["crops_per_image"])
    return "Cells per map", figures["map_grid"]


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
