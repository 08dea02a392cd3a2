"""MEAL V2: stored labels of several teachers, for a student that is trained already.

A discriminator that tells students' predictions from teachers' labels may stand beside them.
Source: Shen and Savvides, "MEAL V2", 2020. The released code lets no gradient of it reach the
student; here the student is trained to be taken for a teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ferkd.methods.base import Loss, Method, Setup, View
from ferkd.methods.stored import StoredLabels, StoredSettings, stored

_LEAST = 8  # units of a hidden layer where C / 8 or C / 64 would leave too few
_FLOOR = -20.0  # log-probabilities below are not told apart


class Settings(StoredSettings):
    """``discriminator`` is the weight of what the student cannot hide; 0: none."""

    discriminator: float = Field(default=0.0, ge=0)


class Adversary:
    """``objective`` plus ``weight`` times how well a discriminator knows the student.

    The discriminator sees log-probabilities [B, C] through layers C -> C/8 -> C/64 -> 2 (1 x 1
    convolutions on [B, C, 1, 1] are the same), [1, 0] standing for a student and [0, 1] for a
    teacher, binary cross-entropy on both outputs. Each step it learns from the batch (Adam, rate
    ``lr``), then the student's term is its loss at passing for a teacher. Discriminator and
    optimiser are part of the state.
    """

    whole_batch = True  # one discriminator, that learns from all rows of a step

    def __init__(
        self,
        objective: StoredLabels,
        num_classes: int,
        *,
        weight: float,
        lr: float = 1e-3,
        device: torch.device | str = "cpu",
    ) -> None:
        self.objective, self.weight = objective, weight
        wide, narrow = max(_LEAST, num_classes // 8), max(_LEAST, num_classes // 64)
        self.network = nn.Sequential(
            nn.Linear(num_classes, wide),
            nn.ReLU(),
            nn.Linear(wide, narrow),
            nn.ReLU(),
            nn.Linear(narrow, 2),
        ).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The loss of the student's ``logits`` [B, C]."""
        assert view.labels is not None
        student = logits.log_softmax(1).clamp_min(_FLOOR)
        teacher = view.labels.dense().log().clamp_min(_FLOOR)
        seen_apart = self._judged(student.detach(), 0) + self._judged(teacher, 1)
        self.optimizer.zero_grad(set_to_none=True)
        seen_apart.backward()
        self.optimizer.step()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)  # the student's loss trains the student alone
        passing = self._judged(student, 1)
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        return self.objective(logits, view) + self.weight * passing

    def _judged(self, log_probs: Tensor, who: int) -> Tensor:
        """The discriminator's loss if all rows are of ``who``: 0 the student, 1 a teacher."""
        verdict = self.network(log_probs)
        truth = torch.zeros_like(verdict)
        truth[:, who] = 1
        return binary_cross_entropy_with_logits(verdict, truth)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _make(settings: Settings, setup: Setup) -> Loss:
    loss = stored(settings, setup)
    if settings.discriminator == 0:
        return loss
    return Adversary(loss, setup.num_classes, weight=settings.discriminator, device=setup.device)


METHOD = Method(
    name="meal_v2",
    card=__doc__,
    make=_make,
    settings=Settings,
    labels="crops",
    defaults={"student": {"pretrained": True}},
)
