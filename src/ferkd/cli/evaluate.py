"""The command ``ferkd evaluate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ferkd.cli.console import show, table
from ferkd.cli.options import Device, Json, Precision, Workers
from ferkd.system.errors import InputError


def register(app: typer.Typer) -> None:
    """Add ``ferkd evaluate``."""
    app.command()(evaluate)


def evaluate(
    run: Annotated[
        str, typer.Argument(help="A run's folder or its weights; with --knn, --probe a teacher.")
    ],
    images: Annotated[str, typer.Argument(help="A folder of class folders.")],
    knn: Annotated[
        bool, typer.Option("--knn", help="Judge the features by their nearest neighbours.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Judge the features by a linear probe on them.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="Images that both learn from [four fifths of the images].")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="The teacher's labels of these images: adds agreement.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the run's own if unset.")] = None,
    crop_fraction: Annotated[
        float | None, typer.Option(help="Central crop, share of a side.")
    ] = None,
    class_map: Annotated[
        str | None, typer.Option(help="File of folder and the run's class, or: sorted, natural.")
    ] = None,
    batch_size: int = 256,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Measure accuracy and calibration of a run on images.

    With --knn and --probe its frozen features too, or those of a teacher named as for ferkd
    label, or of a run that was trained without classes.
    """
    from ferkd.evaluating.embedding import has_classes, judge
    from ferkd.evaluating.run import evaluate as run_evaluation

    features = knn or probe
    if reference is not None and not features:
        raise InputError("--reference is what --knn and --probe learn from; give one of these")
    common: dict[str, Any] = {
        "image_size": image_size,
        "crop_fraction": crop_fraction,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
        "precision": precision,
    }
    result: dict[str, Any] = {}
    if not features or has_classes(run):
        result |= run_evaluation(run, images, store=store, class_map=class_map, **common)
    if features:
        result |= judge(run, images, reference=reference, knn=knn, probe=probe, **common)
    rows = [(k, _short(v)) for k, v in result.items() if k != "per_class"]
    if per_class := result.get("per_class"):
        rows.append(("right, by class", ""))
        rows += [(f"  {name}", _short(v)) for name, v in per_class.items()]
    show(result, table(rows), as_json)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
