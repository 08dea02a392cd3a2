"""Pictures of a coloured blot on grey, and a teacher that tells its colour where it sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ferkd.models.teacher import Inputs, Teacher

# What a page must show as text: markup, quotes, a reading direction turned, another script, emoji.
HOSTILE = ("\"'><b>bold", "<script>alert(1)<", "שלום \u202e gpj", "🌷 & co", "plain")
COLOURS = ((220, 40, 40), (40, 190, 40), (50, 60, 220), (220, 200, 40), (190, 40, 200))


def write_blots(root: Path, names: Sequence[str], each: int, wrong: int = 0, seed: int = 0) -> set:
    """``each`` pictures of 96 x 72 for each class; of a class the first ``wrong`` show the blot of
    the next one. Returns the ids of these."""
    rng = np.random.default_rng(seed)
    planted = set()
    for number, name in enumerate(sorted(names)):
        for index in range(each):
            image = rng.normal(120, 12, (72, 96, 1)).repeat(3, 2)
            shown = (number + (index < wrong)) % len(names)
            at = int(rng.integers(18, 78)), int(rng.integers(16, 56))
            cv2.circle(image, at, int(rng.integers(9, 17)), COLOURS[shown], -1)
            file = root / name / f"{index:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]
            file.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
            if index < wrong:
                planted.add(f"{name}/{index:03}.jpg")
    return planted


class Colours(nn.Module):
    """Logits by how much of a crop has the hue of each class: sure of a blot, at chance without."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        hues = torch.tensor(COLOURS[:classes]) / 255
        self.register_buffer("hues", nn.functional.normalize(hues - hues.mean(1, keepdim=True)))

    def forward(self, images: Tensor) -> Tensor:
        tint = images - images.mean(1, keepdim=True)
        alike = torch.einsum("bchw,kc->bkhw", tint, self.hues)
        return 60 * nn.functional.relu(alike - 0.15).mean((2, 3))


def colours(classes: int) -> Teacher:
    """That teacher, of crops of 24 pixels."""
    return Teacher(Colours(classes), Inputs(image_size=24, mean=(0.0,) * 3, std=(1.0,) * 3))
