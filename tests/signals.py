"""Small teachers, and what adds their signals to a store."""

from __future__ import annotations

from pathlib import Path

import torch

from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore

OPTIONS = {"targets": False, "part_images": 2, "batch_size": 5, "workers": 1}


class Features(torch.nn.Module):
    """A network whose head is a linear layer; its features are the means of the colours."""

    def __init__(self, seed: int, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = torch.nn.Linear(3, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(pixels.mean((2, 3)))


def teacher(seed: int = 0, classes: int = 4) -> Teacher:
    network = Features(seed, classes)
    return Teacher(network, Inputs(image_size=8), spec=f"seed {seed}", device="cpu")


def add(
    images: Path, path: Path, name: str, seed: int = 1, classes: int = 4, **options
) -> LabelStore:
    given = {**OPTIONS, "into": True, "signal": name, **options}
    return label(images, teacher(seed, classes), path, **given)
