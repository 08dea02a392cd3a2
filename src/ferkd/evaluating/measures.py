"""Figures of merit from logits: accuracy, likelihood, calibration, agreement with a teacher.

Logits are [N, C], targets int64 [N] in 0 .. C - 1. All is computed in float64, so that a figure
does not depend on the order of the images. Shares are 0 .. 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ECE_BINS = 15


def ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the true one, int64 [N]; 0 where the answer is right.

    Classes are ordered by logit, equal logits by class number.
    """
    own = logits.gather(1, targets[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def top_k(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """The share of images whose true class is among the first min(k, C) answers."""
    return float((ranks(logits, targets) < k).double().mean())


def nll(logits: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    return float(nn.functional.cross_entropy(logits.double(), targets))


def brier(logits: Tensor, targets: Tensor) -> float:
    """Brier score: the mean of sum_c (p_c - [c is the true class])^2, 0 .. 2."""
    error = logits.double().softmax(1)
    error[torch.arange(len(error)), targets] -= 1
    return float(error.square().sum(1).mean())


def ece(logits: Tensor, targets: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the answer's probability, 0 .. 1.

    Confidences (the largest probability) fall into ``bins`` bins of equal width, bin i holding
    (i / bins, (i + 1) / bins]; the result is the mean over images of their bin's
    abs(accuracy - mean confidence). Source: Guo et al., "On Calibration of Modern Neural Networks".
    """
    confidence = logits.double().softmax(1).amax(1)
    correct = (ranks(logits, targets) == 0).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, correct - confidence)
    return float(gaps.abs().sum() / len(logits))


def per_class_accuracy(logits: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """The accuracy on the images of each class, float64 [C]; NaN for a class without images."""
    classes = logits.shape[1]
    correct = (ranks(logits, targets) == 0).double()
    hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, targets, correct)
    return np.asarray((hits / torch.bincount(targets, minlength=classes)).numpy())


def measure(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The figures that training reports: top1, top5, nll, brier, ece, balanced_accuracy.

    top5 counts the first min(5, C) answers; balanced_accuracy is the mean of the per-class ones.
    Shares are 0 .. 1. Images without ground truth (target -1) are left out.
    """
    known = targets >= 0
    logits, targets = logits[known], targets[known]
    return {
        "top1": top_k(logits, targets),
        "top5": top_k(logits, targets, 5),
        "nll": nll(logits, targets),
        "brier": brier(logits, targets),
        "ece": ece(logits, targets),
        "balanced_accuracy": float(np.nanmean(per_class_accuracy(logits, targets))),
    }


def teacher_agreement(logits: Tensor, probs: Tensor) -> dict[str, float]:
    """How a student's logits [N, C] agree with the teacher's probabilities [N, C].

    ``agreement`` is the share of equal answers (argmax), ``kl`` the mean KL(teacher || student)
    in nats, with 0 log 0 = 0.
    """
    probs = probs.double()
    log_student = logits.double().log_softmax(1)
    kl = (torch.xlogy(probs, probs) - probs * log_student).sum(1)
    same = logits.argmax(1) == probs.argmax(1)
    return {"agreement": float(same.double().mean()), "kl": float(kl.mean())}
