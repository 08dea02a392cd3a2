"""A model as a graph of its own: ONNX, int8 ONNX, TorchScript, each compared with torch."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.images import open_images
from ferkd.models.student import ModelConfig
from ferkd.product import bundle
from ferkd.system.errors import InputError
from ferkd.system.files import whole_file, write_whole

COMPARED = 256  # images that answers are compared on, spread over the set
TOLERANCE = 1e-4  # of logits, relative where they are above 1
INPUT, OUTPUT = "images", "logits"
_BATCH = 32


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


def onnx(
    model: nn.Module,
    config: ModelConfig,
    pixels: NDArray[np.uint8],
    path: Path,
    *,
    uint8: bool = False,
) -> dict[str, Any]:
    """Write the model as ONNX by torch's exporter, for any number of images at a time.

    The file names its classes and its preprocessing in its metadata. Returns the largest
    difference of its logits from torch's under ONNX Runtime. Raises InputError where the packages
    are missing, and where it is above :data:`TOLERANCE`.
    """
    library = _require("onnx", "onnxscript", "onnxruntime")[0]
    size = config.image_size
    shape = (2, size, size, 3) if uint8 else (2, 3, size, size)
    example = torch.zeros(shape, dtype=torch.uint8 if uint8 else torch.float32)
    module = (Normalised(model, config) if uint8 else model).eval()
    for talkative in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    if program is None:
        raise InputError(f"torch exports no ONNX of {config.architecture}")
    _save(library, program.model_proto, config, path)
    with torch.inference_mode():
        wanted = torch.cat(
            [model(torch.from_numpy(batch)) for batch in _batches(normalised(pixels, config))]
        ).numpy()
    found = Session(path).logits(pixels)
    return {
        "difference": _same(found, wanted, "ONNX Runtime"),
        "bytes": path.stat().st_size,
        "uint8": uint8,
    }


def int8(
    config: ModelConfig,
    pixels: NDArray[np.uint8],
    targets: NDArray[np.int64],
    path: Path,
    to: Path,
) -> dict[str, Any]:
    """Quantise the ONNX file ``path`` to int8, statically, and measure what that costs.

    Every second crop calibrates the ranges, the others measure: ``agreement`` is how often both
    files answer alike, ``top1`` and ``top1_before`` where classes are known, else None.
    """
    library, _, _ = _require("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before = Session(path)

    class Crops(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(_batches(before.inputs(pixels[::2])))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "made.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(made),
                Crops(),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        _save(library, library.load(str(made)), config, to)
    held = pixels[1::2] if len(pixels) > 1 else pixels
    first, second = (Session(file).logits(held).argmax(1) for file in (path, to))
    true = targets[1::2] if len(pixels) > 1 else targets
    known = true >= 0
    return {
        "bytes": to.stat().st_size,
        "bytes_before": path.stat().st_size,
        "images": len(held),
        "agreement": float((first == second).mean()),
        "top1_before": float((first == true)[known].mean()) if known.any() else None,
        "top1": float((second == true)[known].mean()) if known.any() else None,
    }


class Session:
    """An ONNX file that :func:`onnx` wrote, under ONNX Runtime on the CPU.

    Raises InputError for a file that is none, or whose metadata do not say what it takes.
    """

    def __init__(self, path: Path) -> None:
        _, _, runtime = _require("onnx", "onnxscript", "onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            held = self._session.get_modelmeta().custom_metadata_map["ferkd"]
            self.config = ModelConfig.model_validate(json.loads(held))
            self._uint8 = self._session.get_inputs()[0].type == "tensor(uint8)"
        except Exception as error:  # its errors are of classes of its own
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{path} is no ONNX file that ferkd export wrote ({type(error).__name__}: "
                f"{cause}); export the run again with --onnx"
            ) from None

    def inputs(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What the graph takes for pixels uint8 [N, S, S, 3]."""
        return pixels if self._uint8 else normalised(pixels, self.config)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits float32 [N, C] of pixels uint8 [N, S, S, 3]."""
        given = self.inputs(pixels)
        return np.concatenate(
            [self._session.run([OUTPUT], {INPUT: batch})[0] for batch in _batches(given)]
        )


def _batches(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), _BATCH):
        yield array[start : start + _BATCH]


def _save(library: Any, proto: Any, config: ModelConfig, path: Path) -> None:
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


def _require(*names: str) -> list[Any]:
    import importlib

    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {error.name}, which is not installed; pip install "
            '"ferkd[onnx]"'
        ) from None
