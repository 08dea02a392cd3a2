"""Mixing crops and their labels: SelfMix within an image, Mixup and CutMix across a batch.

A batch of B = n * m rows holds the m crops of an image in consecutive rows. Labels are mixed by
the same share as the pixels, after calibration. Sources: FerKD (SelfMix), Zhang et al. 2018
(Mixup), Yun et al. 2019 (CutMix).
"""

from __future__ import annotations

from typing import Any, Literal

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
        options: dict[str, Any] = {
            "alpha": self.alpha,
            "probability": self.probability,
            "generator": generator,
        }
        if self.kind == "selfmix":
            options |= {"operator": self.operator, "in_place": in_place}
            return selfmix(images, labels, crops_per_image=crops_per_image, **options)
        if self.kind == "mixup":
            return mixup(images, labels, **options)
        if self.kind == "cutmix":
            return cutmix(images, labels, **options)
        return images, labels


def SelfMix(operator: Operator = "cutmix", alpha: float = 1.0, probability: float = 1.0) -> Mix:
    """FerKD's mixing: partners are other crops of the same image.

    The paper leaves operator, distribution and probability open; CutMix costs a short training
    less than Mixup (docs/evidence.md).
    """
    return Mix(kind="selfmix", operator=operator, alpha=alpha, probability=probability)


def selfmix(
    images: Tensor,
    labels: SoftLabels,
    *,
    crops_per_image: int,
    operator: Operator = "cutmix",
    alpha: float = 1.0,
    probability: float = 1.0,
    generator: np.random.Generator,
    in_place: bool = False,
) -> tuple[Tensor, SoftLabels]:
    """Mix every crop with another crop of its own image, never itself.

    ``images`` uint8 or float [B, 3, H, W] with the ``crops_per_image`` crops of an image in
    consecutive rows; with ``in_place`` they may be written over. Raises InputError when
    ``crops_per_image`` is below 2 or does not divide B.
    """
    partners = within_image(len(images), crops_per_image, generator)
    among = crops_per_image
    return _mix(images, labels, partners, operator, alpha, probability, generator, among, in_place)


def mixup(
    images: Tensor,
    labels: SoftLabels,
    *,
    alpha: float = 0.8,
    probability: float = 1.0,
    generator: np.random.Generator,
) -> tuple[Tensor, SoftLabels]:
    """Blend every row with another row of the batch: x = share * x_a + (1 - share) * x_b."""
    partners = within_batch(len(images), generator)
    return _mix(images, labels, partners, "mixup", alpha, probability, generator)


def cutmix(
    images: Tensor,
    labels: SoftLabels,
    *,
    alpha: float = 1.0,
    probability: float = 1.0,
    generator: np.random.Generator,
) -> tuple[Tensor, SoftLabels]:
    """Paste a box of another row of the batch; the share is the exact share of pixels kept."""
    partners = within_batch(len(images), generator)
    return _mix(images, labels, partners, "cutmix", alpha, probability, generator)


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


def _mix(
    images: Tensor,
    labels: SoftLabels,
    partners: NDArray[np.int64],
    operator: Operator,
    alpha: float,
    probability: float,
    generator: np.random.Generator,
    among: int = 1,
    in_place: bool = False,
) -> tuple[Tensor, SoftLabels]:
    """``in_place`` asks that the partners of each ``among`` rows are among these rows."""
    rows, _, height, width = images.shape
    shares = generator.beta(alpha, alpha, rows)
    shares[generator.random(rows) >= probability] = 1.0
    device = images.device
    index = send(partners, device)
    if operator == "mixup":
        share = send(shares.astype(np.float32), device)
        weight = share[:, None, None, None]

        def mixed(some: slice) -> Tensor:
            return _blend(images[some], images[index[some]], weight[some])

    else:
        boxes, shares = cut_boxes(shares, height, width, generator)
        share = send(shares.astype(np.float32), device)
        top, left, bottom, right = send(boxes, device).T[:, :, None]
        y, x = torch.arange(height, device=device), torch.arange(width, device=device)
        inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)
        inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]

        def mixed(some: slice) -> Tensor:
            return torch.where(inside[some], images[index[some]], images[some])

    labels = labels.mixed(labels[index], share)
    if device.type != "cpu":
        return mixed(slice(None)), labels
    into = images if in_place else torch.empty_like(images)
    for some in few_rows(images, among):
        into[some] = mixed(some)
    return into, labels


def _blend(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    if a.dtype == torch.uint8:
        return (a * share + b * (1 - share)).round().to(torch.uint8)
    return torch.lerp(b, a, share.to(a.dtype))
