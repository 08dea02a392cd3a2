"""What a loss is given in tests: a view of a batch, and the logits of the vector A."""

from __future__ import annotations

import torch

from ferkd.training.trainer import View

A_STUDENT, A_TEACHER = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([[1.0, 3.0, 0.2]])


def view(images=None, labels=None, targets=(0,), rows=None):
    targets = torch.tensor(targets)
    rows = torch.arange(len(targets)) if rows is None else torch.tensor(rows)
    return View(images, labels, targets, rows, torch.zeros_like(rows))
