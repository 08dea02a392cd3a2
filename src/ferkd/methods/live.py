"""A teacher in the training loop, shown exactly what the student is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ferkd.methods.base import View
from ferkd.methods.hard import HardLabels
from ferkd.objectives import Objective
from ferkd.objectives.kl import Kl
from ferkd.store.soft import SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.system.distributed import rows_of_all

if TYPE_CHECKING:
    from ferkd.models.teacher import Teacher

Triple = tuple[float, float, float]


class Shown:
    """A ``teacher`` that is shown what the student is shown; it has no gradient, nothing to save.

    ``network`` maps images float [B, 3, S, S] that are normalised for the teacher to its answers
    [B, d]. The student's are normalised by ``mean`` and ``std``; a teacher with others gets them
    renormalised, which commutes with mixing since shares sum to 1.
    """

    def __init__(
        self, teacher: Teacher, network: Callable[[Tensor], Tensor], *, mean: Triple, std: Triple
    ) -> None:
        self.teacher, self._network = teacher, network
        ours, theirs = (torch.tensor(pair) for pair in ((mean, std), (teacher.mean, teacher.std)))
        self._same = bool(torch.equal(ours, theirs))
        shape = (1, 3, 1, 1)
        self._scale = (ours[1] / theirs[1]).view(shape).to(teacher.device)
        self._shift = ((ours[0] - theirs[0]) / theirs[1]).view(shape).to(teacher.device)
        self._finite = torch.ones((), dtype=torch.bool, device=teacher.device)

    def __call__(self, images: Tensor) -> Tensor:
        """The answers float32 [B, d] for the student's ``images`` float [B, 3, S, S]."""
        if not self._same:
            images = images * self._scale + self._shift
        found = self._network(images)
        self._finite = self._finite & found.isfinite().all()  # read when a loss is not finite
        return found

    def complaint(self) -> str | None:
        """What is wrong if the teacher, not the student, has given something not finite."""
        if bool(self._finite):
            return None
        precision = self.teacher.precision
        damaged = "its weights are damaged, give others"
        return (
            f"teacher {self.teacher.spec} answered with values that are not finite in {precision}; "
            + (damaged if precision == "fp32" else f"set teacher_precision fp32, else {damaged}")
        )


class LiveTeacher:
    """An ``objective(logits, labels, targets)`` of what ``teacher`` says of the student's view.

    ``mean`` and ``std`` are the student's. The hard term of ``kl`` is ``hard``, so that mixed
    targets and label smoothing count as in ordinary training; other objectives get the view's
    targets.
    """

    def __init__(
        self, teacher: Teacher, objective: Objective, hard: HardLabels, *, mean: Triple, std: Triple
    ) -> None:
        self.answers = Shown(teacher, lambda of: teacher.logits(of), mean=mean, std=std)
        self.teacher, self.objective, self.hard = teacher, objective, hard

    @property
    def whole_batch(self) -> bool:
        return bool(getattr(self.objective, "whole_batch", False))

    def __call__(self, logits: Tensor, view: View) -> Tensor:
        """The loss of the student's ``logits`` [B, C]."""
        answers = self.answers(view.images)
        if len(answers) < len(logits):  # those of all processes, whose images are elsewhere
            answers = rows_of_all(answers)
        labels = all_classes(answers)
        objective = self.objective
        if isinstance(objective, Kl):
            loss = objective.distance(logits, labels) * objective.kd_weight
            if objective.ce_weight > 0:
                loss = loss + objective.ce_weight * self.hard(logits, view)
            return loss
        return objective(logits, labels, view.targets)

    def complaint(self) -> str | None:
        return self.answers.complaint()


def all_classes(logits: Tensor) -> SoftLabels:
    """Labels of every class from logits float32 [B, C], without waiting for the device."""
    count = logits.shape[1]
    return SoftLabels(
        classes=torch.arange(count, device=logits.device).expand(len(logits), -1),
        log_probs=logits.log_softmax(1),
        tail=logits.new_full((len(logits), len(TAIL_TEMPERATURES)), -torch.inf),
        num_classes=count,
    )
