"""PS-KD: the student's own last prediction of an image softens its label.

Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets",
ICCV 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from ferkd.methods.base import ONE_CROP, LossSettings, Method, Setup, View


class Settings(LossSettings):
    """``own_share``: how much of the target is the student's own prediction in the end."""

    own_share: float = Field(default=0.8, ge=0, lt=1)


class OwnPredictions:
    """Soft cross-entropy with (1 - a) onehot(y) + a P, P the student's last prediction.

    P is the softmax that the student gave at the image's last visit, whatever crop it was shown
    then, and the mean over the crops if there were several; at the first visit the target is the
    one-hot alone. ``own_share`` is a in the last epoch; in epoch e of E ``epochs`` (counted in
    crops, ``batch_size`` a step, from 0) a = own_share (e + 1) / E. The predictions, float32
    [images, num_classes] on ``device``, are part of the state.
    """

    whole_batch = True  # it keeps a prediction for every image, whichever process has it next

    def __init__(
        self,
        images: int,
        num_classes: int,
        *,
        epochs: float,
        batch_size: int,
        own_share: float = 0.8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.epochs, self.batch_size, self.own_share = epochs, batch_size, own_share
        self.step = 0
        self.last = torch.zeros(images, num_classes, device=device)
        self.seen = torch.zeros(images, dtype=torch.bool, device=device)

    def share(self, step: int) -> float:
        """a at the 0-based ``step``."""
        epoch = step * self.batch_size // len(self.last)  # whole numbers: no rounding at its end
        return self.own_share * min(1.0, (epoch + 1) / self.epochs)

    def targets(self, view: View) -> Tensor:
        """The target distributions of the current step, float32 [B, C]."""
        hard = one_hot(view.targets, self.last.shape[1]).float()
        share = self.share(self.step) * self.seen[view.rows].float()[:, None]
        return torch.lerp(hard, self.last[view.rows], share)

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The mean loss of ``logits`` [B, C]; then their predictions are kept."""
        loss = -(self.targets(view) * logits.log_softmax(1)).sum(1).mean()
        self._keep(logits.detach().softmax(1), view.rows)
        self.step += 1
        return loss

    def _keep(self, predictions: Tensor, rows: Tensor) -> None:
        same = rows[:, None] == rows[None, :]
        mean = same.float() @ predictions / same.sum(1, keepdim=True)
        # All rows of an image write the same values, so the order of writing does not matter.
        first = same.float().argmax(1)
        self.last.index_copy_(0, rows, mean[first])
        self.seen.index_fill_(0, rows, True)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "last": self.last, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.last.copy_(state["last"])
        self.seen.copy_(state["seen"])


def _make(settings: Settings, setup: Setup) -> OwnPredictions:
    return OwnPredictions(
        setup.images,
        setup.num_classes,
        epochs=setup.steps * setup.batch_size / setup.images,
        batch_size=setup.batch_size,
        own_share=settings.own_share,
        device=setup.device,
    )


def _refuses(recipe: Any) -> str | None:
    if recipe.mix.kind not in ("mixup", "cutmix"):
        return None
    return (
        f"method pskd keeps a prediction for each image, which mix.kind {recipe.mix.kind} would "
        "take from a mixture of two; use selfmix or none"
    )


METHOD = Method(
    name="pskd",
    card=__doc__,
    make=_make,
    settings=Settings,
    truth=True,
    defaults={"data": ONE_CROP},
    refuses=_refuses,
)
