"""One student behind OpenCV's resize, on which it was trained, and behind Pillow's antialiased one.

python docs/results/resizes.py RUN VAL
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ferkd.crops import center_box
from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.measures import measure
from ferkd.evaluating.predictions import match_classes, predict
from ferkd.images import open_images
from ferkd.models.student import load_run
from ferkd.system.compute import Normalise

_BATCH = 32


def main(run: str, val: str) -> dict[str, float]:
    """Top-1 and NLL by resize, and the share of equal answers; ``val`` are local class folders."""
    model, config = load_run(run)
    images = open_images(val)
    normalise = Normalise(config.mean, config.std, torch.device("cpu"))
    crops = CenterCrops(images, image_size=config.image_size, crop_fraction=config.crop_fraction)
    found = predict(model, crops, normalise=normalise, batch_size=_BATCH)
    targets = match_classes(
        found.targets, images.class_names, config.class_names, source=images.name
    )
    pixels = np.stack([_by_pillow(Path(val) / images.ids[row], config) for row in found.rows])
    with torch.inference_mode():
        batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(_BATCH)
        pillow = torch.cat([model(normalise(batch)) for batch in batches])
    by = {"opencv": measure(found.logits, targets), "pillow": measure(pillow, targets)}
    same = (found.logits.argmax(1) == pillow.argmax(1)).float().mean()
    return {
        "images": len(targets),
        **{f"{name}_{key}": by[name][key] for name in by for key in ("top1", "nll")},
        "same_answer": float(same),
    }


def _by_pillow(path: Path, config: object) -> np.ndarray:
    fraction, size = config.crop_fraction, config.image_size  # type: ignore[attr-defined]
    image = Image.open(path).convert("RGB")
    top, left, height, width = center_box(image.height, image.width, fraction)
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=1))
