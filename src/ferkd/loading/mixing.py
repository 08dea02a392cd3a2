"""Mixing crops and their labels: SelfMix within an image, Mixup and CutMix across a batch.

What is mixed with what is drawn first, as a :class:`Mixture` of partners and shares, and then done
to images and labels: labels are mixed by the share of their pixels, after calibration. A batch of
B = n * m rows holds the m crops of an image in consecutive rows. Sources: FerKD (SelfMix), Zhang
et al. 2018 (Mixup), Yun et al. 2019 (CutMix).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ferkd.store.soft import SoftLabels
from ferkd.system.compute import few_rows, send
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

Operator = Literal["mixup", "cutmix"]


@dataclass(frozen=True)
class Mixture:
    """What each of B rows is mixed with, and how.

    ``partners`` int64 [B]: rows of the same batch. ``shares`` float32 [B] in [0, 1]: what is kept
    of the row itself. ``boxes`` int64 [B, 4] as (top, left, bottom, right): what is pasted over
    it; without them the rows are blended. ``among``: the partners of each so many rows are among
    these rows.
    """

    partners: Tensor
    shares: Tensor
    boxes: Tensor | None = None
    among: int = 1

    def __len__(self) -> int:
        return len(self.partners)

    def of_rank(self, rank: int, world_size: int) -> Mixture:
        """The part of rank ``rank``: an equal slice of the rows, whose partners lie in it."""
        size = len(self) // world_size
        some = slice(rank * size, (rank + 1) * size)
        boxes = None if self.boxes is None else self.boxes[some]
        return Mixture(self.partners[some] - some.start, self.shares[some], boxes, self.among)

    def to(self, device: torch.device) -> Mixture:
        """The mixture on another device."""
        boxes = None if self.boxes is None else send(self.boxes, device)
        return Mixture(send(self.partners, device), send(self.shares, device), boxes, self.among)

    def images(self, images: Tensor, in_place: bool = False) -> Tensor:
        """``images`` uint8 or float [B, 3, H, W], mixed, on the mixture's device.

        With ``in_place`` those that are mixed among a few rows may be written over, which spares
        new memory.
        """

        def mixed(some: slice) -> Tensor:
            own, other = images[some], images[self.partners[some]]
            if self.boxes is None:
                return _blend(own, other, self.shares[some, None, None, None])
            return torch.where(_inside(self.boxes[some], *images.shape[2:]), other, own)

        if images.device.type != "cpu":
            return mixed(slice(None))
        into = images if in_place and self.among > 1 else torch.empty_like(images)
        for some in few_rows(images, self.among):
            into[some] = mixed(some)
        return into

    def labels(self, labels: SoftLabels) -> SoftLabels:
        """B labels, mixed by the shares of their pixels."""
        return labels.mixed(labels[self.partners], self.shares)


class Mix(Part):
    """Which mixing a loader or trainer applies to each batch.

    ``kind``: "none"; "selfmix", partners from the same image, by ``operator``; "mixup" or
    "cutmix", partners from the whole batch. ``alpha``: the Beta(alpha, alpha) that shares are
    drawn from, one draw a row. ``probability``: the chance that a row is mixed at all.
    """

    kind: Literal["none", "selfmix", "mixup", "cutmix"] = "none"
    operator: Operator = "cutmix"
    alpha: float = Field(default=1.0, gt=0.0)
    probability: float = Field(default=1.0, ge=0.0, le=1.0)

    def draw(
        self,
        rows: int,
        height: int,
        width: int,
        *,
        crops_per_image: int,
        generator: np.random.Generator,
        ranks: int = 1,
    ) -> Mixture | None:
        """What ``rows`` images of ``height`` x ``width`` pixels are mixed with; None for "none".

        ``crops_per_image`` crops of an image lie in consecutive rows. The rows are split evenly
        among ``ranks`` processes; partners lie on one. Raises InputError as
        :func:`within_image` does.
        """
        if self.kind == "none":
            return None
        selfmix = self.kind == "selfmix"
        if selfmix:
            partners = within_image(rows, crops_per_image, generator)
        else:
            each = rows // ranks
            partners = np.concatenate(
                [within_batch(each, generator) + rank * each for rank in range(ranks)]
            )
        shares = generator.beta(self.alpha, self.alpha, rows)
        shares[generator.random(rows) >= self.probability] = 1.0
        boxes = None
        if (self.operator if selfmix else self.kind) == "cutmix":
            found, shares = cut_boxes(shares, height, width, generator)
            boxes = torch.from_numpy(found)
        return Mixture(
            torch.from_numpy(partners),
            torch.from_numpy(shares.astype(np.float32)),
            boxes,
            crops_per_image if selfmix else 1,
        )

    def __call__(
        self,
        images: Tensor,
        labels: SoftLabels,
        *,
        crops_per_image: int,
        generator: np.random.Generator,
        in_place: bool = False,
    ) -> tuple[Tensor, SoftLabels]:
        """Mix a batch; images [B, 3, H, W], B labels. Returns both, mixed.

        With ``in_place`` SelfMix may write over ``images``, which spares new memory.
        """
        rows, _, height, width = images.shape
        drawn = self.draw(rows, height, width, crops_per_image=crops_per_image, generator=generator)
        if drawn is None:
            return images, labels
        drawn = drawn.to(images.device)
        return drawn.images(images, in_place), drawn.labels(labels)


def SelfMix(operator: Operator = "cutmix", alpha: float = 1.0, probability: float = 1.0) -> Mix:
    """FerKD's mixing: partners are other crops of the same image.

    The paper leaves operator, distribution and probability open; CutMix costs a short training
    less than Mixup (docs/evidence.md).
    """
    return Mix(kind="selfmix", operator=operator, alpha=alpha, probability=probability)


def within_image(
    rows: int, crops_per_image: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A partner row for each row among the other crops of its image, int64 [rows].

    One random rotation an image, so that every crop is a partner exactly once.
    """
    if crops_per_image < 2:
        raise InputError(
            f"SelfMix needs at least 2 crops per image in a batch, not {crops_per_image}; raise "
            "crops_per_image or turn mixing off"
        )
    if rows % crops_per_image:
        raise InputError(
            f"{rows} rows are not whole images of {crops_per_image} crops; SelfMix needs the "
            "crops of an image in consecutive rows"
        )
    images = rows // crops_per_image
    shift = generator.integers(1, crops_per_image, (images, 1))
    crop = np.arange(crops_per_image)
    partner = (crop + shift) % crops_per_image
    return (np.arange(images)[:, None] * crops_per_image + partner).reshape(-1)


def within_batch(rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A partner for each row among all other rows, int64 [rows]; one row is its own partner.

    A random cyclic order, so that no row of two or more meets itself.
    """
    order = generator.permutation(rows)
    partners = np.empty(rows, np.int64)
    partners[order] = np.roll(order, 1)
    return partners


def cut_boxes(
    shares: NDArray[np.float64], height: int, width: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """CutMix boxes for the wanted ``shares`` [B] of the image to keep.

    Returns boxes int64 [B, 4] as (top, left, bottom, right), cut off at the image's border, and
    the shares of pixels truly kept [B].
    """
    side = np.sqrt(1 - shares)
    box_h, box_w = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y = generator.integers(0, height, len(shares))
    x = generator.integers(0, width, len(shares))
    top, bottom = (
        np.clip(y - box_h // 2, 0, height),
        np.clip(y - box_h // 2 + box_h, 0, height),
    )
    left, right = (
        np.clip(x - box_w // 2, 0, width),
        np.clip(x - box_w // 2 + box_w, 0, width),
    )
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return np.stack([top, left, bottom, right], 1), kept


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in the ``boxes`` [B, 4], bool [B, 1, H, W]."""
    top, left, bottom, right = boxes.T[:, :, None]
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def _blend(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    if a.dtype == torch.uint8:
        return (a * share + b * (1 - share)).round().to(torch.uint8)
    return torch.lerp(b, a, share.to(a.dtype))
