"""The commands that bring a model into use: export, predict."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferkd.cli.console import meter, say, show
from ferkd.cli.options import Device, Json, Overwrite, Workers
from ferkd.system import text as texts
from ferkd.system.errors import InputError

if TYPE_CHECKING:
    from ferkd.product.predict import Prediction


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the ``ferkd`` command."""
    app.command()(export)
    app.command()(predict)


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder or its weights.")],
    to: Annotated[Path, typer.Option(help="A new folder for the model.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="model.onnx too.")] = False,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="ONNX takes uint8 pixels and normalises them.")
    ] = False,
    photograph: Annotated[
        bool, typer.Option("--photograph", help="ONNX takes a whole photograph and cuts it itself.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="model.int8.onnx too; its loss is measured.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(help="A label store on whose crops int8 is calibrated.")
    ] = None,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="model.torchscript.pt too.")
    ] = False,
    images: Annotated[
        str | None, typer.Option(help="Compare answers on these [the run's val].")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model that timm, ONNX Runtime and ferkd predict open."""
    from ferkd.product.export import export as write

    result = write(
        run,
        to,
        onnx=onnx,
        uint8=uint8,
        photograph=photograph,
        int8=int8,
        calibrate=calibrate,
        torchscript=torchscript,
        images=images,
        overwrite=overwrite,
    )
    lines = [f"{', '.join(result['files'])} in {to} ({texts.size(result['bytes'])} of weights)"]
    lines += [
        f"{name} against torch on {result['compared_on']['images']} images: largest difference "
        f"{result[key]['difference']:.1e}"
        for key, name in (("onnx", "ONNX"), ("torchscript", "TorchScript"))
        if key in result
    ]
    if "from_training" in result.get("onnx", {}):
        lines.append(
            "its own resize against that of training: largest difference of a logit "
            f"{result['onnx']['from_training']:.1e}"
        )
    if "int8" in result:
        found = result["int8"]
        top1 = (
            ""
            if found["top1"] is None
            else (f"top-1 {found['top1']:.2%} against {found['top1_before']:.2%}, ")
        )
        lines.append(
            f"int8, calibrated on {found['calibrated_on']}: {top1}the same answer in "
            f"{found['agreement']:.2%} of {found['images']} images, "
            f"{texts.size(found['bytes'])} against {texts.size(found['bytes_before'])}"
        )
    lines.append(f"next: ferkd predict {shlex.quote(str(to))} PHOTO.jpg")
    show(result, "\n".join(lines), as_json)


def predict(
    model: Annotated[str, typer.Argument(help="A run, an exported folder, or its model.onnx.")],
    images: Annotated[list[str], typer.Argument(help="Image files and folders.")],
    top_k: Annotated[int, typer.Option(help="Classes an image.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Write a table to this file too.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images of a forward pass.")] = 32,
    workers: Workers = 2,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list on stdout.")] = False,
) -> None:
    """Say what images show, with probabilities."""
    from ferkd.product.predict import Predictions, load_predictor, table
    from ferkd.system.files import make_folder, write_whole

    if csv is not None and csv.exists() and not overwrite:
        raise InputError(f"{csv} exists; give another file or --overwrite")
    predictions = Predictions(
        load_predictor(model, device=device),
        images,
        top_k=top_k,
        batch_size=batch_size,
        workers=workers,
    )
    found = []
    with meter("predicting") as advance:
        for prediction in predictions:
            found.append(prediction)
            advance(len(found), len(predictions), "images")
    try:
        if csv is not None:
            make_folder(csv.parent)
            write_whole(csv, table(found).encode())
    finally:  # a full disk costs the table, not the answers
        if as_json:
            show([prediction.to_dict() for prediction in found], "", True)
        elif found:
            show({}, "\n".join(map(_line, found)), False)
    for skipped in predictions.unreadable:
        say(f"left out {texts.name(skipped.id)}: {texts.name(skipped.reason)}")
    if predictions.unreadable:
        raise InputError(
            f"{len(predictions.unreadable)} of {len(predictions)} files are no images that can be "
            "read; the others are answered"
        )


def _line(found: Prediction) -> str:
    classes = ", ".join(f"{texts.name(name)} {share:.1%}" for name, share in found.classes)
    return f"{texts.name(found.path)}: {classes}"
