"""Label maps (ReLabel): a convolutional teacher's answer at every position of a whole image.

The image is resized whole, the network's last features [D, h, w] are kept unpooled, and the
classifier head is applied to each position: one soft label for each of the h x w cells of a grid
over the image. Source: Yun et al., "Re-labeling ImageNet: from Single to Multi-Labels, from Global
to Localized Labels", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ferkd.crops import CUT_RULE
from ferkd.models.committee import Committee
from ferkd.models.teacher import Teacher
from ferkd.store.manifest import Crops
from ferkd.system.errors import InputError

_REMEDY = (
    "a label map needs a convolutional network with features [B, channels, rows, columns] and a "
    "head of its own, as timm's ResNets, EfficientNets and ConvNeXts have them; give one of these "
    "(timm/NAME, or a run of one), or label crops (--kind crops)"
)
_CLOSE = 1e-2  # of the largest logit; the two ways may differ by their rounding, in bf16 as well


def grid_boxes(heights: ArrayLike, widths: ArrayLike, rows: int, columns: int) -> NDArray[np.int32]:
    """The cells of a grid over whole images, in whole pixels: int32 [N, rows * columns, 4].

    ``heights`` and ``widths`` [N] in pixels. Cell j is row j // columns, column j % columns, as
    (top, left, height, width): its true edges, rounded to the nearest pixel (halves up). In an
    image with fewer pixels than cells the cells overlap, each of at least one pixel.
    """
    top, height = _spans(np.asarray(heights), rows)
    left, width = _spans(np.asarray(widths), columns)
    sides = [
        np.repeat(top, columns, 1),
        np.tile(left, rows),
        np.repeat(height, columns, 1),
        np.tile(width, rows),
    ]
    return np.stack(sides, -1).astype(np.int32)


def _spans(pixels: NDArray[Any], cells: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each of the cells of a side begins and how long it is, [N, cells]."""
    side = pixels.astype(np.int64)[:, None]
    edges = (2 * np.arange(cells + 1) * side + cells) // (2 * cells)
    start = np.minimum(edges[:, :-1], side - 1)
    return start, np.maximum(edges[:, 1:], start + 1) - start


class MapTeacher:
    """A teacher that labels the cells of whole images; tried once on a black image.

    ``rows`` and ``columns`` are the grid's. Raises InputError for a teacher without spatial
    features, and for one whose head, applied to its features, is not its own answer.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.sizes = (teacher.image_size,)
        self.num_classes = teacher.num_classes
        size = teacher.image_size
        black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        self._network = _ByCell(teacher.module, teacher.spec)
        by_parts = self._tried(black, self._network.whole)
        own = teacher(black)
        if float((by_parts - own).abs().max()) > _CLOSE * max(1.0, float(own.abs().max())):
            raise InputError(
                f"teacher {teacher.spec} answers otherwise than its head does to its features; "
                f"{_REMEDY}"
            )
        by_cell = self._tried(black, self._network)
        self.rows, self.columns = self._network.grid
        if by_cell.shape != (self.cells, self.num_classes):
            raise InputError(
                f"the head of teacher {teacher.spec} gives {list(by_cell.shape)} for {self.cells} "
                f"positions and {self.num_classes} classes; {_REMEDY}"
            )

    def describe(self) -> dict[str, Any]:
        """What a store records of the teacher."""
        return self.teacher.describe()

    @property
    def cells(self) -> int:
        """Cells of a map."""
        return self.rows * self.columns

    @property
    def crops(self) -> Crops:
        """The grid, as a label store records it."""
        return Crops(
            kind="grid", count=self.cells, rows=self.rows, columns=self.columns, rule=CUT_RULE
        )

    def __call__(self, images: Mapping[int, Tensor]) -> Tensor:
        """Logits float32 [B * rows * columns, C] for whole images uint8 [B, 3, S, S] at size S.

        The cells of an image follow each other, row by row. Where the head is linear, their mean
        is the teacher's answer to the whole image.
        """
        return self.teacher.answers(images[self.sizes[0]], self._network, each=self.cells)

    def _tried(self, black: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            return self.teacher.answers(black, network, each=None)
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"the head of teacher {self.teacher.spec} cannot be applied to its features "
                f"({cause}); {_REMEDY}"
            ) from error


def map_teacher(committee: Committee) -> MapTeacher:
    """The one teacher of a label map; raises InputError for several."""
    if len(committee.members) > 1:
        raise InputError(
            f"{len(committee.members)} teachers for one label map; make a store with each and join "
            "them with ferkd merge"
        )
    return MapTeacher(committee.members[0])


class _ByCell:
    """Normalised images [B, 3, S, S] to the head's logits at each position; ``grid`` as last met.

    Raises InputError for a module without features [B, D, h, w] and a head.
    """

    def __init__(self, module: nn.Module, spec: str) -> None:
        for name in ("forward_features", "forward_head"):
            if not callable(getattr(module, name, None)):
                raise InputError(f"teacher {spec} has no {name}; {_REMEDY}")
        self._module: Any = module  # timm's two halves are not part of nn.Module's type
        self._spec = spec
        self.grid = (0, 0)

    def __call__(self, pixels: Tensor) -> Tensor:
        features = self._features(pixels)
        cells = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1], 1, 1)
        return cast(Tensor, self._module.forward_head(cells))

    def whole(self, pixels: Tensor) -> Tensor:
        """The head's logits for all positions together, [B, C]."""
        return cast(Tensor, self._module.forward_head(self._features(pixels)))

    def _features(self, pixels: Tensor) -> Tensor:
        features = self._module.forward_features(pixels)
        shape = list(features.shape) if isinstance(features, Tensor) else []
        # Some networks keep channels last, where positions would be taken for channels.
        channels = getattr(self._module, "num_features", shape[1] if len(shape) == 4 else 0)
        if len(shape) != 4 or shape[1] != channels:
            got = shape or type(features).__name__
            raise InputError(f"teacher {self._spec} has features {got}; {_REMEDY}")
        self.grid = (shape[2], shape[3])
        return cast(Tensor, features)
