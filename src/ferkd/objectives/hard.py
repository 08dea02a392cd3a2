"""What the objectives that use the ground truth share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def hard_term(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Cross-entropy of ``logits`` [B, C] with ``targets`` int64 [B], summed and divided by B.

    Rows with target -1 add nothing. Raises ValueError without targets.
    """
    known = truth(targets)
    total = cross_entropy(logits.float(), known, ignore_index=-1, reduction="sum")
    return total / max(1, len(logits))


def truth(targets: Tensor | None) -> Tensor:
    """``targets``; raises ValueError without them."""
    if targets is None:
        raise ValueError("this objective needs targets, the true class of each row, -1 for none")
    return targets


def others(values: Tensor, targets: Tensor) -> Tensor:
    """Which entries of ``values`` [B, C] are not of the true class, bool [B, C]."""
    everywhere = torch.ones_like(values, dtype=torch.bool)
    return everywhere.scatter_(1, targets[:, None], False)
