"""A finished run as a folder that others open: timm, ONNX Runtime, TorchScript, ferkd predict."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ferkd.models.student import ModelConfig, load_run
from ferkd.product import bundle
from ferkd.product.card import card
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, write_json, write_whole, writing
from ferkd.system.plain import read_json, read_yaml
from ferkd.system.results import Result
from ferkd.system.storage import local_path
from ferkd.training.checkpoint import save_weights

if TYPE_CHECKING:
    from ferkd.product.graphs import Takes

log = logging.getLogger("ferkd")

_FIGURES = ("method", "student", "epochs", "steps", "top1", "top5", "nll", "ece", "brier")


@dataclass(frozen=True, eq=False, kw_only=True)
class Exported(Result):
    """The folder ``model`` and its files, the figures of the run, and how each form compares with
    torch on the images ``compared_on``."""

    model: str
    files: list[str]
    method: str | None = None
    student: str | None = None
    epochs: float | None = None
    steps: int | None = None
    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    parameters: int
    bytes: int
    compared_on: dict[str, Any] | None = None
    torchscript: dict[str, Any] | None = None
    onnx: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


def export(
    run: str | Path,
    to: str | Path,
    *,
    onnx: bool = False,
    uint8: bool = False,
    photograph: bool = False,
    int8: bool = False,
    calibrate: str | Path | None = None,
    torchscript: bool = False,
    images: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model of a finished run to the folder ``to``; returns what was written.

    Always ``model.safetensors`` and ``config.json`` (timm loads them), ``labels.txt`` and a
    ``README.md`` with the measured figures. ``onnx`` adds ``model.onnx``, any number of images at
    a time; with ``uint8`` it takes the pixels uint8 [N, S, S, 3] and normalises them itself, with
    ``photograph`` one whole upright photograph uint8 [H, W, 3], which it cuts and resizes too.
    ``int8`` adds ``model.int8.onnx``, measured beside the other on ``images`` and calibrated on
    every second one of them, or on the crops of the label store ``calibrate`` of the run's images.
    ``torchscript`` adds a traced module. Each is compared with torch on real ``images`` (class
    folders; unset, the run's validation images). The folder appears when it is complete. Raises
    InputError for what is no finished run, for a folder in use, and where an answer differs.
    """
    run, to = local_path(run, "run"), local_path(to)
    takes = _takes(onnx, uint8, photograph, int8)
    if calibrate is not None and not int8:
        raise InputError("--calibrate is about int8; give --int8 with it")
    model, config = load_run(run)
    _check_target(to, overwrite)
    checked = _images(run, images) if onnx or int8 or torchscript else None
    ranges = None if calibrate is None else _stored(run, calibrate, config)
    make_folder(to.parent)
    with writing(to.parent):
        work = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        folder = work / to.name
        make_folder(folder)
        written = _write(run, folder, model, config, checked, takes, int8, ranges, torchscript)
        _check_target(to, overwrite)  # again: meanwhile others may have written there
        _put(folder, to, work / f"{to.name}.old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Exported(model=str(to), **written)


def _put(folder: Path, to: Path, aside: Path) -> None:
    """Rename a folder into place; an older one goes ``aside``, whole, and returns if that fails."""
    with writing(to):
        if to.exists():
            os.rename(to, aside)
        try:
            os.rename(folder, to)
        except BaseException:
            if aside.exists():
                os.rename(aside, to)
            raise


def _takes(onnx: bool, uint8: bool, photograph: bool, int8: bool) -> Takes | None:
    """What the ONNX file is to take; None where there is to be none."""
    for name, given in (("--uint8", uint8), ("--photograph", photograph)):
        if given and not (onnx or int8):
            raise InputError(f"{name} is about ONNX; give --onnx with it")
    if photograph and (uint8 or int8):
        other = "--uint8" if uint8 else "--int8"
        raise InputError(
            f"--photograph and {other} exclude each other: eight bits are too few for a resize, "
            "and a photograph is uint8 already; export twice, to two folders"
            if int8
            else f"--photograph and {other} exclude each other; give one"
        )
    if not (onnx or int8):
        return None
    return "photograph" if photograph else "pixels" if uint8 else "normalised"


def _stored(run: Path, store: str | Path, config: ModelConfig) -> NDArray[np.uint8]:
    """Crops of a label store of the images that a run was trained on."""
    from ferkd.product.quantised import stored_crops

    images = _recipe(run).get("images")
    if not isinstance(images, str):
        raise InputError(
            f"{run} does not tell its images, of which {store} holds crops; calibrate on --images "
            "instead, without --calibrate"
        )
    return stored_crops(str(store), images, config)


def _check_target(to: Path, overwrite: bool) -> None:
    if to.exists() and not to.is_dir():
        raise InputError(f"{to} is a file; give a folder with --to")
    held = {file.name for file in to.iterdir()} if to.exists() else set()
    if not held:
        return
    if not bundle.is_bundle(to) or held - set(bundle.FILES):
        raise InputError(f"{to} holds other files; give a new or empty folder with --to")
    if not overwrite:
        raise InputError(
            f"{to} holds an exported model; replace it with --overwrite, or give another --to"
        )


def _images(run: Path, given: str | Path | None) -> str:
    """The images to compare answers on: those given, else the run's own."""
    if given is not None:
        return str(given)
    data = _recipe(run)
    named = data.get("val") or data.get("images")
    if not isinstance(named, str):
        raise InputError(
            f"{run} does not tell its images, on which the export is compared with torch; give "
            "--images DIR"
        )
    return named


def _recipe(run: Path) -> dict[str, Any]:
    """What the recipe of a run says of its data; nothing where there is none."""
    folder = run if run.is_dir() else run.parent
    try:
        data = read_yaml(folder / "recipe.yaml", "recipe").get("data")
    except OSError:
        data = None
    return data if isinstance(data, dict) else {}


def _write(
    run: Path,
    folder: Path,
    model: nn.Module,
    config: ModelConfig,
    images: str | None,
    takes: Takes | None,
    int8: bool,
    ranges: NDArray[np.uint8] | None,
    torchscript: bool,
) -> dict[str, Any]:
    names = bundle.class_names(config)
    bundle.refuse_odd_names(names)
    save_weights(folder / bundle.WEIGHTS, model)
    write_whole(folder / bundle.LABELS, bundle.labels(names))
    arguments = config.model_args
    if config.architecture.startswith("timm/"):
        arguments = bundle.timm_model_args(folder, config, model)
    figures = _figures(run, model, folder)
    if images is not None:
        from ferkd.product import graphs

        pixels, targets = graphs.crops(images, config)
        figures |= {"compared_on": {"images": len(pixels), "of": images}}
        if torchscript:
            figures["torchscript"] = graphs.torchscript(
                model, config, pixels, folder / bundle.TORCHSCRIPT
            )
        if takes is not None:
            figures["onnx"] = graphs.onnx(
                model, config, pixels, folder / bundle.ONNX, takes=takes, images=images
            )
        if int8:
            from ferkd.product.quantised import int8 as quantise

            figures["int8"] = quantise(
                config, pixels, targets, folder / bundle.ONNX, folder / bundle.INT8, ranges
            )
    write_whole(folder / bundle.CARD, card(config, figures, _command(run)).encode())
    others = [name for name in bundle.FILES if name != bundle.CONFIG and (folder / name).is_file()]
    record = bundle.Record(
        model=config,
        files={name: bundle.sha256(folder / name) for name in others if name != bundle.CARD},
        figures=figures,
    )
    written = {
        **bundle.timm_config(config, arguments),
        "ferkd": record.model_dump(mode="json"),
    }
    write_json(folder / bundle.CONFIG, written)
    return {"files": sorted([*others, bundle.CONFIG]), **figures}


def _figures(run: Path, model: nn.Module, folder: Path) -> dict[str, Any]:
    path = (run if run.is_dir() else run.parent) / "result.json"
    result = read_json(path, "result of a run") if path.is_file() else {}
    return {
        **{key: result[key] for key in _FIGURES if key in result},
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (folder / bundle.WEIGHTS).stat().st_size,
    }


def _command(run: Path) -> str:
    return shlex.join(["ferkd", "export", run.name, "--to", "DIR"])
