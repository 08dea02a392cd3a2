"""A model that takes a whole photograph: central square, resize and normalisation in its graph.

The resize is a product of two matrices whose weights the graph computes from the photograph's size,
so that any size goes in and the rule is that of :func:`ferkd.crops.cut`: two pixels are blended
where the square is less than twice the model's side, areas are averaged beyond. Levels are not
rounded to whole ones as there, since near a half two programs would round to different sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ferkd.crops import center_box, cut
from ferkd.models.student import ModelConfig


class Photograph(nn.Module):
    """Maps one photograph uint8 [H, W, 3], RGB and upright, to logits [1, C]."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.model, self.size, self.fraction = model, config.image_size, config.crop_fraction
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.mean, config.std))
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", mean / std)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.square(image) * self.scale - self.offset)  # type: ignore[no-any-return]

    def square(self, image: Tensor) -> Tensor:
        """The central square, levels 0 to 255 as float32 [1, 3, S, S]."""
        rows = torch.arange(image.shape[0], dtype=torch.float64)
        columns = torch.arange(image.shape[1], dtype=torch.float64)
        height, width = rows.amax(0) + 1, columns.amax(0) + 1
        # Python's round, as center_box has it, goes to the even one of two; so does torch's.
        side = torch.round(torch.minimum(height, width) * self.fraction).clamp(min=1)
        down = self._weights(rows, torch.floor((height - side) / 2), side)
        across = self._weights(columns, torch.floor((width - side) / 2), side)
        pixels = image.permute(2, 0, 1).to(torch.float32)
        return (down @ pixels @ across.T).unsqueeze(0)

    def _weights(self, places: Tensor, first: Tensor, side: Tensor) -> Tensor:
        """What each place of a line adds to each of the S pixels made of it: float32 [S, N]."""
        ratio = side / self.size
        pixels = torch.arange(self.size, dtype=torch.float64).unsqueeze(1)
        within = places.unsqueeze(0) - first
        centre = torch.minimum(((pixels + 0.5) * ratio - 0.5).clamp(min=0), side - 1)
        blended = (1 - (within - centre).abs()).clamp(min=0)
        begin, end = pixels * ratio, (pixels + 1) * ratio
        shared = torch.minimum(within + 1, end) - torch.maximum(within, begin)
        averaged = shared.clamp(min=0) / ratio
        return torch.where(ratio >= 2, averaged, blended).to(torch.float32)


def squares(photographs: Sequence[NDArray[np.uint8]], config: ModelConfig) -> NDArray[np.uint8]:
    """The central squares of photographs as training cuts them, uint8 [N, S, S, 3]."""
    size = config.image_size
    cuts = []
    for image in photographs:
        box = center_box(image.shape[0], image.shape[1], config.crop_fraction)
        cuts.append(cut(image, box, False, size))
    return np.stack(cuts)


def example(size: int) -> tuple[Tensor, dict[int, Any]]:
    """A photograph to export with, and which of its sides may be of any length."""
    image = torch.zeros(2 * size + 1, 3 * size, 3, dtype=torch.uint8)
    sides = {0: torch.export.Dim("height", min=2), 1: torch.export.Dim("width", min=2)}
    return image, sides
