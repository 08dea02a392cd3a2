"""The folder of an exported model: its files, written whole, read back with suspicion.

``config.json`` is timm's, which ``timm.create_model("local-dir:DIR", pretrained=True)`` reads, with
a part of ours: the model's configuration and the SHA-256 of the other files. A folder whose files
are no longer those is refused: labels or weights that were edited by hand would give wrong names
without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from ferkd.models.student import ModelConfig, Student, build_student
from ferkd.models.weights import load_strict, read_state_dict
from ferkd.system.errors import InputError
from ferkd.system.plain import read_json
from ferkd.system.settings import Part, rule

CONFIG, WEIGHTS, LABELS, CARD = "config.json", "model.safetensors", "labels.txt", "README.md"
ONNX, INT8, TORCHSCRIPT = "model.onnx", "model.int8.onnx", "model.torchscript.pt"
FILES = (WEIGHTS, LABELS, CARD, ONNX, INT8, TORCHSCRIPT, CONFIG)
VERSION = 1


class Record(Part):
    """Our part of config.json."""

    version: int = VERSION
    model: ModelConfig
    files: dict[str, str] = Field(default_factory=dict)  # SHA-256 (hex) by name
    figures: dict[str, Any] = Field(default_factory=dict)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_names(config: ModelConfig) -> tuple[str, ...]:
    """The names of a model's classes; their numbers where it has no names."""
    return config.class_names or tuple(map(str, range(config.num_classes)))


def refuse_odd_names(names: Iterable[str]) -> None:
    """Raise InputError for a class name that a line of labels.txt cannot hold as it is."""
    for name in names:
        if name != " ".join(name.split()):
            raise InputError(
                f"class {name!a} does not fit on a line of {LABELS}: white space in it is more "
                "than single blanks between words; rename it"
            )


def labels(names: Iterable[str]) -> bytes:
    """The bytes of labels.txt: a name a line."""
    return "".join(f"{name}\n" for name in names).encode()


def timm_config(config: ModelConfig, model_args: dict[str, Any]) -> dict[str, Any]:
    """What timm reads of config.json: the network, its head and its preprocessing."""
    size = config.image_size
    return {
        "architecture": config.architecture.partition("/")[2].partition(".")[0],
        "num_classes": config.num_classes,
        "label_names": list(class_names(config)),
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": config.crop_fraction,
            "crop_mode": "center",
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": config.num_classes,
        },
    }


def is_bundle(path: Path) -> bool:
    return path.is_dir() and (path / WEIGHTS).is_file()


def read_record(folder: Path) -> Record:
    """Our part of a folder's config.json, checked against its files. Raises InputError."""
    remedy = f"export the run again, or load the folder by timm.create_model('local-dir:{folder}')"
    try:
        config = read_json(folder / CONFIG, "configuration of an exported model")
        record = Record.model_validate(config["ferkd"])
    except (OSError, KeyError) as error:
        raise InputError(
            f"{folder} is no model that ferkd export wrote ({CONFIG}: {error}); {remedy}"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{folder / CONFIG} was edited or is of another version "
            f"({rule(error.errors()[0]['msg'])}); {remedy}"
        ) from None
    ours = timm_config(record.model, config.get("model_args", {}))
    if record.model.architecture.startswith("timm/"):
        for key, value in ours.items():
            if config.get(key) != value:
                raise InputError(
                    f"{folder / CONFIG} was edited by hand: its {key} is not that of the model "
                    f"that was exported; {remedy}"
                )
    unlisted = {WEIGHTS, LABELS} - set(record.files)
    unlisted |= {n for n in FILES if (folder / n).is_file()} - {CONFIG, CARD, *record.files}
    if unlisted:
        raise InputError(
            f"{folder / CONFIG} does not list {min(unlisted)}, so nothing tells whether it is the "
            f"file that was exported; {remedy}"
        )
    for name, wanted in record.files.items():
        if name not in FILES:  # a name of theirs would be opened
            raise InputError(f"{folder / CONFIG} names a file {name!a}; {remedy}")
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks its {name}; {remedy}")
        if sha256(folder / name) != wanted:
            raise InputError(
                f"{folder / name} is not the file that was exported (its SHA-256 differs): it was "
                f"edited by hand or is damaged; {remedy}"
            )
    if (folder / LABELS).read_bytes() != labels(class_names(record.model)):
        raise InputError(
            f"{folder / CONFIG} was edited by hand: its classes are not those of {LABELS}; {remedy}"
        )
    return record


def load_bundle(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of an exported folder, in eval mode on the CPU. Raises InputError."""
    config = read_record(folder).model
    student = Student(name=config.architecture, model_args=config.model_args)
    model = build_student(student, config.num_classes, image_size=config.image_size)
    load_strict(model, read_state_dict(folder / WEIGHTS), source=str(folder / WEIGHTS))
    return model.eval(), config


def timm_model_args(folder: Path, config: ModelConfig, model: nn.Module) -> dict[str, Any]:
    """The model's arguments with which timm's own loading gives the same answers.

    ``folder`` holds its weights; configurations are written there to try. Raises InputError where
    timm does not load it.
    """
    import timm

    from ferkd.system.files import write_json

    image = torch.linspace(-1, 1, 3 * config.image_size**2)
    image = image.reshape(1, 3, config.image_size, config.image_size)
    with torch.inference_mode():
        wanted = model(image)
    why: object = "its answers differ"
    for more in ({}, {"img_size": config.image_size}):
        arguments = {**config.model_args, **more}
        write_json(folder / CONFIG, timm_config(config, arguments))
        try:
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            with torch.inference_mode():
                found = loaded(image)
        except Exception as error:  # whatever the network's builder raises
            why = error
            continue
        if torch.allclose(found, wanted, rtol=1e-4, atol=1e-4):
            return arguments
    raise InputError(
        f"timm does not load {config.architecture} as it was trained ({why}); use ferkd predict "
        "and ferkd evaluate on the run itself"
    )
