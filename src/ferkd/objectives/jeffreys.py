"""Half the sum of both Kullback-Leibler divergences, the loss of SSLD."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ferkd.objectives.sides import Tail, forward_kl, reverse_kl, sides
from ferkd.store.soft import SoftLabels
from ferkd.system.settings import Part


class Jeffreys(Part):
    """Card: (KL(p || q) + KL(q || p)) / 2, sum over classes, mean over crops; no hard label.

    The backward half punishes mass where the teacher has none. It needs log p of classes that were
    not stored, so ``tail`` is "bucket" by default: they count as one outcome on both sides, which
    is exact about the tail's mass and a lower bound of the whole; for labels with all classes
    nothing is left out. "uniform" spreads the tail, "support" leaves it out, "renorm" makes it
    e^-80. ``temperature`` softens both sides; there is no T^2 factor. Source: Cui et al., "Beyond
    Self-Supervision" (SSLD), 2021, whose "JS" loss is this one in the released code.
    """

    temperature: float = Field(default=1.0, gt=0.0)
    tail: Tail = "bucket"

    def __call__(self, logits: Tensor, labels: SoftLabels, targets: Tensor | None = None) -> Tensor:
        """The mean loss; ``targets`` is not used."""
        p, log_q = sides(logits, labels, self.temperature, self.tail)
        return (forward_kl(p, log_q) + reverse_kl(p, log_q)) / 2


OBJECTIVE = Jeffreys
