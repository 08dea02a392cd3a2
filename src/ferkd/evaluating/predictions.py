"""A model's answers for images, and the classes that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.models.classes import Known, match_folders
from ferkd.system.compute import Normalise, autocast
from ferkd.system.distributed import padded_rows_of_all
from ferkd.system.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """Logits float32 [N, C] on the CPU; targets int64 [N], -1 for none; rows int64 [N]: the
    images' places in their source."""

    logits: Tensor
    targets: Tensor
    rows: Tensor


class NonFiniteOutputs(RuntimeError):
    """The model answers with infinities or NaN."""


def predict(
    model: nn.Module,
    crops: CenterCrops,
    *,
    normalise: Normalise,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
) -> Predictions:
    """The model's logits for the central crop of every image, in eval mode.

    The model is used where it is, on the normaliser's device, and returned to its mode. Raises
    NonFiniteOutputs when logits are not finite, InputError when no image can be read. Of several
    processes each asks the model of its own images and is given the answers for all.
    """
    logits, rows = [], []
    for pixels, numbers in crops.batches(batch_size):
        logits.append(forward(model, pixels, normalise, dtype))
        rows.append(numbers)
    if crops.ranks.world_size == 1 and not logits:
        raise InputError(f"{crops.images.name} holds no image that can be read; check the path")
    found = torch.cat(logits) if logits else torch.empty(0)
    where = torch.cat(rows) if rows else torch.empty(0, dtype=torch.long)
    if crops.ranks.world_size > 1:
        found, where = padded_rows_of_all(found), padded_rows_of_all(where)
        order = where.argsort()
        found, where = found[order], where[order]
        if not len(where):
            raise InputError(f"{crops.images.name} holds no image that can be read; check the path")
    bad = int((~found.isfinite().all(1)).sum())
    if bad:
        raise NonFiniteOutputs(
            f"the model's outputs for {bad} of {len(found)} images of {crops.images.name} are not "
            "finite: its weights have diverged or overflow in this precision; evaluate with "
            "precision fp32, or train with a lower optimizer.lr"
        )
    targets = torch.from_numpy(crops.images.targets.astype(np.int64))[where]
    return Predictions(found, targets, where)


def forward(model: nn.Module, pixels: Tensor, normalise: Normalise, dtype: torch.dtype) -> Tensor:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(normalise.device, dtype):
            return model(normalise(pixels)).float().cpu()
    finally:
        model.train(training)


def match_classes(
    targets: Tensor,
    found: Sequence[str],
    wanted: Sequence[str],
    *,
    source: str,
    class_map: str | Path | Mapping[str, Any] | None = None,
) -> Tensor:
    """``targets`` counted by the class names ``found``, recounted by the names ``wanted``.

    ``class_map`` says which of ``wanted`` each of ``found`` is, which may then be a part of them.
    Raises InputError, naming the differences, unless both hold the same names.
    """
    if class_map is not None:
        known = Known("the model", len(wanted), tuple(wanted))
        columns = match_folders(found, known, class_map).columns
        return torch.tensor([*columns, -1])[targets]
    missing = [name for name in wanted if name not in set(found)]
    unknown = [name for name in found if name not in set(wanted)]
    if missing or unknown:
        lacks = f"{source} lacks {_some(missing)}; " if missing else ""
        extra = f"{source} has {_some(unknown)}, unknown to the model; " if unknown else ""
        raise InputError(
            f"the classes do not match: {lacks}{extra}give images of the classes that the model "
            "was trained on"
        )
    place = {name: number for number, name in enumerate(wanted)}
    # The last entry is for -1, no ground truth.
    table = torch.tensor([*(place[name] for name in found), -1])
    return table[targets]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
