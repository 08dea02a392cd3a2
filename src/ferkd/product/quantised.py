"""An exported model in eight bits: static quantisation, its loss measured."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkd.crops import cut
from ferkd.images import decode, open_images
from ferkd.loading.crop_sources import match
from ferkd.models.student import ModelConfig
from ferkd.product.graphs import COMPARED, INPUT, Session, batches, require, save
from ferkd.store import LabelStore


def stored_crops(
    store: str, images: str, config: ModelConfig, count: int = COMPARED
) -> NDArray[np.uint8]:
    """Crops of a label store as a student saw them, uint8 [N, S, S, 3]: one of every image, of
    ``count`` images spread over the store. Raises InputError for images that are not its own."""
    opened, source = LabelStore.open(store), open_images(images)
    places = match(source, opened)
    rows = np.unique(np.linspace(0, len(opened) - 1, min(count, len(opened))).astype(np.int64))
    numbers = np.arange(len(rows)) % opened.crops_per_image
    boxes, flips = opened.boxes(rows, numbers), opened.flips(rows, numbers)
    exif = opened.geometry.images.exif
    cuts = [
        cut(
            *(decode(source.read(int(places[row])), exif=exif), boxes[i], bool(flips[i])),
            config.image_size,
        )
        for i, row in enumerate(rows)
    ]
    return np.stack(cuts)


def int8(
    config: ModelConfig,
    pixels: NDArray[np.uint8],
    targets: NDArray[np.int64],
    path: Path,
    to: Path,
    calibration: NDArray[np.uint8] | None = None,
) -> dict[str, Any]:
    """Quantise the ONNX file ``path`` to int8, statically, and measure what that costs.

    ``calibration`` are the crops uint8 [M, S, S, 3] that calibrate the ranges; without them every
    second one of ``pixels`` does. The others measure: ``agreement`` is how often both files answer
    alike, ``top1`` and ``top1_before`` where classes are known, else None.
    """
    library, _, _ = require("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before = Session(path)
    if calibration is None:
        ranges = pixels[::2]
        held, true = (pixels[1::2], targets[1::2]) if len(pixels) > 1 else (pixels, targets)
    else:
        ranges, held, true = calibration, pixels, targets

    class Crops(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches(before.inputs(ranges)))

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
        save(library, library.load(str(made)), config, to)
    first, second = (Session(file).logits(held).argmax(1) for file in (path, to))
    known = true >= 0
    return {
        "bytes": to.stat().st_size,
        "bytes_before": path.stat().st_size,
        "images": len(held),
        "calibrated_on": f"{len(ranges)} " + ("images" if calibration is None else "stored crops"),
        "agreement": float((first == second).mean()),
        "top1_before": float((first == true)[known].mean()) if known.any() else None,
        "top1": float((second == true)[known].mean()) if known.any() else None,
    }
