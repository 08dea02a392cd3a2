"""A model as a graph of its own: ONNX and TorchScript, each compared with torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.images import UnreadableImage, decode, open_images
from ferkd.models.student import ModelConfig
from ferkd.product import bundle
from ferkd.product.photograph import Photograph, example, squares
from ferkd.system.errors import InputError
from ferkd.system.files import whole_file, write_whole

COMPARED = 256  # images that answers are compared on, spread over the set
TOLERANCE = 1e-4  # of logits, relative where they are above 1
INPUT, OUTPUT = "images", "logits"
_BATCH = 32

# What a graph takes: normalised float32 [N, 3, S, S], or uint8 [N, S, S, 3], or one whole
# photograph uint8 [H, W, 3].
Takes = Literal["normalised", "pixels", "photograph"]


class Normalised(nn.Module):
    """A model that takes pixels uint8 [N, S, S, 3] and normalises them itself."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.model = model
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.mean, config.std))
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", mean / std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        return self.model(pixels * self.scale - self.offset)  # type: ignore[no-any-return]


def normalised(pixels: NDArray[np.uint8], config: ModelConfig) -> NDArray[np.float32]:
    """Pixels uint8 [N, S, S, 3] as a model takes them, float32 [N, 3, S, S]."""
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def crops(images: str, config: ModelConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The central crops uint8 [N, S, S, 3] of real images, and their classes, -1 for unknown."""
    source = open_images(images)
    some = CenterCrops(
        source,
        image_size=config.image_size,
        crop_fraction=config.crop_fraction,
        exif=config.exif,
        cache_bytes=0,
    )
    step = max(1, len(source) // COMPARED)
    found = list(some.batches(_BATCH, range(0, len(source), step)))
    if not found:
        raise InputError(f"{source.name} holds no image that can be read")
    pixels = torch.cat([batch for batch, _ in found]).permute(0, 2, 3, 1).contiguous()
    rows = torch.cat([rows for _, rows in found]).numpy()
    place = {name: number for number, name in enumerate(bundle.class_names(config))}
    names = source.class_names
    known = [place.get(names[t], -1) if t >= 0 and names else -1 for t in source.targets[rows]]
    return pixels.numpy(), np.array(known, np.int64)


def torchscript(
    model: nn.Module, config: ModelConfig, pixels: NDArray[np.uint8], path: Path
) -> dict[str, Any]:
    """Write a traced module; it takes what the model takes. Returns its largest difference."""
    images = torch.from_numpy(normalised(pixels[:_BATCH], config))
    with warnings.catch_warnings():  # torch recommends torch.export, which other programs lack
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            traced = torch.jit.trace(model, images[:2])
            found, wanted = traced(images).numpy(), model(images).numpy()
        with whole_file(path) as file:
            torch.jit.save(traced, file)
    return {"difference": _same(found, wanted, "TorchScript"), "bytes": path.stat().st_size}


def photographs(images: str, config: ModelConfig, count: int = 32) -> list[NDArray[np.uint8]]:
    """Whole images uint8 [H, W, 3], spread over a set, as a graph that cuts them is given them."""
    source = open_images(images)
    found = []
    for place in range(0, len(source), max(1, len(source) // count)):
        try:
            found.append(decode(source.read(place), exif=config.exif))
        except UnreadableImage:  # counted where all are read
            continue
    return found


def onnx(
    model: nn.Module,
    config: ModelConfig,
    pixels: NDArray[np.uint8],
    path: Path,
    *,
    takes: Takes = "normalised",
    images: str = "",
) -> dict[str, Any]:
    """Write the model as ONNX by torch's exporter, for any number of images at a time.

    The file names its classes and its preprocessing in its metadata. Returns the largest
    difference of its logits from torch's under ONNX Runtime; of a graph that takes photographs, on
    whole ones of ``images``, with ``from_training``: the largest difference from the logits of the
    squares that training would have cut, whose levels are whole numbers. Raises InputError where
    the packages are missing, and where torch's answers differ by more than :data:`TOLERANCE`.
    """
    library = require("onnx", "onnxscript", "onnxruntime")[0]
    size = config.image_size
    sides: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    module = model.eval()
    given = torch.zeros(2, 3, size, size)
    if takes == "pixels":
        module, given = Normalised(model, config), torch.zeros(2, size, size, 3, dtype=torch.uint8)
    elif takes == "photograph":
        module, (given, sides) = Photograph(model, config), example(size)
    for talkative in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(
            module.eval(),
            (given,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(sides,),
            verbose=False,
        )
    if program is None:
        raise InputError(f"torch exports no ONNX of {config.architecture}")
    save(library, program.model_proto, config, path)
    more: dict[str, float] = {}
    if takes == "photograph":
        whole = photographs(images, config)
        with torch.inference_mode():
            wanted = torch.cat([module(torch.from_numpy(image)) for image in whole]).numpy()
        found = Session(path).of_photographs(whole)
        trained = _answers(model, squares(whole, config), config)
        more["from_training"] = float(np.abs(found - trained).max())
    else:
        wanted, found = _answers(model, pixels, config), Session(path).logits(pixels)
    return {
        "difference": _same(found, wanted, "ONNX Runtime"),
        "bytes": path.stat().st_size,
        "takes": takes,
        **more,
    }


def _answers(
    model: nn.Module, pixels: NDArray[np.uint8], config: ModelConfig
) -> NDArray[np.float32]:
    """Torch's logits of central squares uint8 [N, S, S, 3]."""
    with torch.inference_mode():
        found: NDArray[np.float32] = torch.cat(
            [model(torch.from_numpy(batch)) for batch in batches(normalised(pixels, config))]
        ).numpy()
    return found


class Session:
    """An ONNX file that :func:`onnx` wrote, under ONNX Runtime on the CPU.

    Raises InputError for a file that is none, or whose metadata do not say what it takes.
    """

    def __init__(self, path: Path) -> None:
        _, _, runtime = require("onnx", "onnxscript", "onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            held = self._session.get_modelmeta().custom_metadata_map["ferkd"]
            self.config = ModelConfig.model_validate(json.loads(held))
            given = self._session.get_inputs()[0]
            uint8 = given.type == "tensor(uint8)"
            self.takes: Takes = (
                "normalised" if not uint8 else "photograph" if len(given.shape) == 3 else "pixels"
            )
        except Exception as error:  # its errors are of classes of its own
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{path} is no ONNX file that ferkd export wrote ({type(error).__name__}: "
                f"{cause}); export the run again with --onnx"
            ) from None

    def inputs(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What the graph takes for pixels uint8 [N, S, S, 3]."""
        return pixels if self.takes == "pixels" else normalised(pixels, self.config)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits float32 [N, C] of pixels uint8 [N, S, S, 3]."""
        given = self.inputs(pixels)
        return np.concatenate(
            [self._session.run([OUTPUT], {INPUT: batch})[0] for batch in batches(given)]
        )

    def of_photographs(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Logits float32 [N, C] of whole photographs uint8 [H, W, 3], of a graph that cuts them."""
        return np.concatenate([self._session.run([OUTPUT], {INPUT: image})[0] for image in images])


def batches(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows of an array, a few at a time."""
    for start in range(0, len(array), _BATCH):
        yield array[start : start + _BATCH]


def save(library: Any, proto: Any, config: ModelConfig, path: Path) -> None:
    """Write a graph in one file, with the model's configuration in its metadata."""
    del proto.metadata_props[:]
    library.helper.set_model_props(proto, {"ferkd": config.model_dump_json()})
    write_whole(path, proto.SerializeToString())


def _same(found: NDArray[Any], wanted: NDArray[Any], what: str) -> float:
    difference = float(np.abs(found - wanted).max())
    limit = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if not difference <= limit:
        raise InputError(
            f"{what} answers otherwise than torch: logits differ by {difference:.2g}, more than "
            f"{limit:.2g}; nothing was exported. Update the package, or export without it"
        )
    return difference


def require(*names: str) -> list[Any]:
    """Modules of the extra ferkd[onnx]. Raises InputError where they are not installed."""
    import importlib

    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {error.name}, which is not installed; pip install "
            '"ferkd[onnx]"'
        ) from None
