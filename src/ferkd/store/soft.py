"""Sparse soft labels: what a teacher said of a batch of crops, in memory.

A label keeps the ``k`` most probable classes and a summary of all the others, the tail. Nothing
here builds a [B, C] array unless :meth:`SoftLabels.dense` is asked for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ferkd.store import tails
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.system.errors import InputError
from ferkd.system.trees import tree_node

Tail = Literal["uniform", "renorm"]

_TAIL_GIVES = math.log(0.98)  # the largest share of a tail that one class may take out of it
LOWEST = -80.0  # log-probabilities are kept finite: -inf marks an empty slot


@tree_node("num_classes")
@dataclass(frozen=True)
class SparseTargets:
    """Target distributions as a uniform base plus corrections at a few classes.

    Target of class c in row b: ``base[b] + sum of weights[b, j] over j with classes[b, j] == c``.
    ``base`` float32 [B], ``classes`` int64 [B, K] (repeats add up), ``weights`` float32 [B, K].
    Every row sums to 1 over the ``num_classes`` classes. The form is closed under mixing.
    """

    base: Tensor
    classes: Tensor
    weights: Tensor
    num_classes: int

    def dense(self) -> Tensor:
        """The distributions written out, float32 [B, C]."""
        out = self.base[:, None].expand(-1, self.num_classes).clone()
        return out.scatter_add_(1, self.classes, self.weights)


@tree_node("num_classes", "truth_slot")
@dataclass(frozen=True)
class SoftLabels:
    """The teacher's labels of B crops over C classes, sparse.

    - ``classes`` int64 [B, k]: the stored classes.
    - ``log_probs`` float32 [B, k]: their natural log-probabilities at temperature 1, the tail
      counted in the normalisation. -inf marks an empty slot, whose class is ignored.
    - ``tail`` float32 [B, 3]: log of the sum of p^(1/T) over the classes not stored, at T = 1, 2,
      4. -inf without a tail, NaN where it is not known.
    - ``true_log_prob`` float32 [B] or None: the log-probability of the ground truth, also when it
      is not among the stored classes. NaN where unknown.
    - ``partner`` and ``share``: the other half of a mixed label, share * self +
      (1 - share) * partner.
    - ``truth_slot``: whether the last slot is the one that :meth:`with_truth` added.
    """

    classes: Tensor
    log_probs: Tensor
    tail: Tensor
    num_classes: int
    true_log_prob: Tensor | None = None
    partner: SoftLabels | None = None
    share: Tensor | None = None
    truth_slot: bool = False

    @staticmethod
    def from_logits(
        logits: Tensor, targets: Tensor | None = None, k: int | None = None
    ) -> SoftLabels:
        """Labels from teacher logits [B, C]: the ``k`` largest per row, or all with None.

        ``targets`` int64 [B] are ground-truth classes, -1 for none. Equal logits are ordered by
        class number. Raises ValueError on logits that are not finite or not [B, C].
        """
        if logits.ndim != 2:
            raise ValueError(f"logits must be [B, C], not {list(logits.shape)}")
        if not torch.isfinite(logits).all():
            raise ValueError("logits hold NaN or infinity; a soft label needs finite numbers")
        num_classes = logits.shape[1]
        if k is not None and k < 1:
            raise ValueError(f"k is {k}; at least 1 class must be kept")
        log_probs = logits.double().log_softmax(1).clamp_min(LOWEST).float()
        true = None
        if targets is not None:
            true = log_probs.gather(1, targets.clamp_min(0)[:, None])[:, 0]
            true = true.masked_fill(targets < 0, math.nan)
        if k is None or k >= num_classes:
            classes = torch.arange(num_classes, device=logits.device).expand(len(logits), -1)
            tail = log_probs.new_full((len(logits), len(TAIL_TEMPERATURES)), -math.inf)
            return SoftLabels(classes, log_probs, tail, num_classes, true)
        ordered, order = log_probs.sort(dim=1, descending=True, stable=True)
        rest = ordered[:, k:]
        tail = torch.stack([(rest / t).logsumexp(1) for t in TAIL_TEMPERATURES], 1)
        return SoftLabels(
            order[:, :k].contiguous(),
            ordered[:, :k].contiguous(),
            tail,
            num_classes,
            true,
        )

    @staticmethod
    def hard(targets: Tensor, num_classes: int, epsilon: float = 0.0) -> SoftLabels:
        """Softened hard labels: 1 - epsilon on the target, epsilon / (C - 1) on each other class.

        ``targets`` int64 [B] in 0 .. C - 1. With C = 1 all mass is on the one class.
        """
        if num_classes == 1:
            epsilon = 0.0
        log_probs = torch.full(
            (len(targets), 1),
            math.log1p(-epsilon) if epsilon < 1 else LOWEST,
            device=targets.device,
        )
        if epsilon > 0:
            others = num_classes - 1
            knots = [math.log(others) + math.log(epsilon / others) / t for t in TAIL_TEMPERATURES]
        else:
            knots = [-math.inf] * len(TAIL_TEMPERATURES)
        # Filled on the device: a list of numbers would be copied there, which waits for it.
        tail = torch.stack([log_probs.new_full((len(targets),), knot) for knot in knots], 1)
        return SoftLabels(targets[:, None], log_probs, tail, num_classes, log_probs[:, 0])

    def __len__(self) -> int:
        return self.classes.shape[0]

    @property
    def k(self) -> int:
        """The number of slots for stored classes in a row."""
        return self.classes.shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> SoftLabels:
        """The labels with ``function`` applied to every tensor, partner included."""

        def optional(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        return replace(
            self,
            classes=function(self.classes),
            log_probs=function(self.log_probs),
            tail=function(self.tail),
            true_log_prob=optional(self.true_log_prob),
            partner=None if self.partner is None else self.partner.map(function),
            share=optional(self.share),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SoftLabels:
        """The labels on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SoftLabels:
        """The labels in page-locked memory (called by PyTorch's DataLoader)."""
        return self.map(lambda t: t.contiguous().pin_memory())

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> SoftLabels:
        """Some rows, as a tensor is indexed along its first axis."""
        return self.map(lambda t: t[index])

    @staticmethod
    def cat(parts: Sequence[SoftLabels]) -> SoftLabels:
        """The rows of several labels, one after the other.

        Raises ValueError unless they have as many classes and slots, and hold the same parts.
        """
        kinds = {_kind(part) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"{len(kinds)} kinds of labels cannot be put together; give one kind")
        first = parts[0]
        true = [part.true_log_prob for part in parts if part.true_log_prob is not None]
        partners = [part.partner for part in parts if part.partner is not None]
        shares = [part.share for part in parts if part.share is not None]
        return replace(
            first,
            classes=torch.cat([part.classes for part in parts]),
            log_probs=torch.cat([part.log_probs for part in parts]),
            tail=torch.cat([part.tail for part in parts]),
            true_log_prob=torch.cat(true) if true else None,
            partner=SoftLabels.cat(partners) if partners else None,
            share=torch.cat(shares) if shares else None,
        )

    def top1(self) -> Tensor:
        """The most probable class, int64 [B]: the teacher's answer."""
        return self.classes.gather(1, self.log_probs.argmax(1, keepdim=True))[:, 0]

    def max_prob(self) -> Tensor:
        """The largest probability, float32 [B]: the teacher's confidence."""
        return self.log_probs.amax(1).exp()

    def prob_of(self, targets: Tensor) -> Tensor:
        """The probability of a class per row, float32 [B]; ``targets`` int64 [B].

        For a class outside the stored ones the recorded true-class value is used if there is one
        (``targets`` must then be the ground truth), else the tail's mean. NaN where targets < 0.
        """
        hit = (self.classes == targets[:, None]) & torch.isfinite(self.log_probs)
        inside = (self.log_probs.exp() * hit).sum(1)
        outside = self._tail_mean(self.tail[:, 0])
        if self.true_log_prob is not None:
            known = torch.isfinite(self.true_log_prob)
            outside = torch.where(known, self.true_log_prob.exp(), outside)
        return torch.where(hit.any(1), inside, outside).masked_fill(targets < 0, math.nan)

    def top(self, k: int) -> SoftLabels:
        """The same labels with at most ``k`` stored classes; the rest join the tail."""
        if k >= self.k:
            return self
        ordered, order = self.log_probs.sort(dim=1, descending=True, stable=True)
        dropped = ordered[:, k:]
        tail = torch.stack(
            [
                torch.logaddexp(self.tail[:, i], (dropped / t).logsumexp(1))
                for i, t in enumerate(TAIL_TEMPERATURES)
            ],
            1,
        )
        partner = None if self.partner is None else self.partner.top(k)
        classes = self.classes.gather(1, order[:, :k])
        return replace(
            self,
            classes=classes,
            log_probs=ordered[:, :k],
            tail=tail,
            partner=partner,
            truth_slot=False,
        )

    def with_truth(self, targets: Tensor) -> SoftLabels:
        """The labels with one slot more: the ground truth, where the tail holds it.

        ``targets`` int64 [B], -1 for none. The truth's recorded probability is taken out of the
        tail: at most that of the least probable stored class, and at most what the tail can give.
        The slot stays empty where the truth is stored already or its probability is not known.
        """
        if self.true_log_prob is None or self.k == self.num_classes:
            return self
        filled = torch.isfinite(self.log_probs)
        stored = ((self.classes == targets[:, None]) & filled).any(1)
        in_tail = ~stored & (targets >= 0) & torch.isfinite(self.true_log_prob)
        least = self.log_probs.masked_fill(~filled, math.inf).amin(1)
        mass = self.tail[:, 0]
        true = torch.minimum(self.true_log_prob, torch.minimum(mass + _TAIL_GIVES, least))
        # A tail of one class is the truth itself; a longer one keeps something for the others.
        whole = filled.sum(1) == self.num_classes - 1
        slot = torch.where(whole, mass, true).masked_fill(~in_tail, -math.inf)
        share = slot[:, None] / slot.new_tensor(TAIL_TEMPERATURES) - self.tail
        rest = self.tail + torch.log1p(-share.clamp_max(_TAIL_GIVES).exp())
        rest = rest.masked_fill(whole[:, None], -math.inf)
        return replace(
            self,
            classes=torch.cat([self.classes, targets.clamp_min(0)[:, None]], 1),
            log_probs=torch.cat([self.log_probs, slot[:, None]], 1),
            tail=torch.where(in_tail[:, None], rest, self.tail),
            truth_slot=True,
        )

    def targets(self, temperature: float = 1.0, tail: Tail = "uniform") -> SparseTargets:
        """The target distributions softmax(z / temperature).

        ``tail="uniform"`` (FKD's marginal smoothing) spreads the mass of the classes not stored
        evenly over them; ``"renorm"`` (marginal re-norm) drops it and divides by the rest's sum.
        Raises InputError for a temperature at which the tail's mass is not known: below 1, or
        other than 1 for labels without a tail summary (imported ones).
        """
        base, logs = self._parts(temperature, tail)
        weights = torch.where(torch.isfinite(logs), logs.exp() - base[:, None], 0.0)
        ours = SparseTargets(base, self.classes, weights, self.num_classes)
        if self.partner is None or self.share is None:
            return ours
        other = self.partner.targets(temperature, tail)
        return SparseTargets(
            self.share * ours.base + (1 - self.share) * other.base,
            torch.cat([ours.classes, other.classes], 1),
            torch.cat(
                [
                    self.share[:, None] * ours.weights,
                    (1 - self.share)[:, None] * other.weights,
                ],
                1,
            ),
            self.num_classes,
        )

    def dense(self, temperature: float = 1.0, tail: Tail = "uniform") -> Tensor:
        """The target distributions written out, float32 [B, C]; see :meth:`targets`.

        Values are placed, not added up as :class:`SparseTargets` are: a stored class far below the
        tail's mean keeps its own, which a difference to the mean would lose or make negative.
        """
        base, logs = self._parts(temperature, tail)
        # One column more takes the empty slots, whose class says nothing.
        out = base[:, None].repeat(1, self.num_classes + 1)
        classes = torch.where(torch.isfinite(logs), self.classes, self.num_classes)
        out = out.scatter_(1, classes, logs.exp())[:, : self.num_classes]
        if self.partner is None or self.share is None:
            return out
        other = self.partner.dense(temperature, tail)
        return self.share[:, None] * out + (1 - self.share)[:, None] * other

    def tempered(self, temperature: float) -> SoftLabels:
        """The labels softmax(z / temperature) in place of softmax(z), exactly.

        Labels of all classes take any temperature, top-k labels those at which the mass of their
        tail is recorded (1, 2 and 4). Raises InputError for others, and ValueError for mixed ones.
        """
        if self.partner is not None:
            raise ValueError("these labels are mixed already; temper before mixing")
        if temperature == 1:
            return self
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature:g}; it must be above 0 and finite")
        some = self.k - self.truth_slot < self.num_classes
        if some and temperature not in TAIL_TEMPERATURES:
            raise InputError(
                f"temperature {temperature:g} is not exact for labels of some of "
                f"{self.num_classes} classes, which record the mass of the others at "
                f"{', '.join(f'{t:g}' for t in TAIL_TEMPERATURES)}; use one of these, or label "
                "with all classes (--top-k 0)"
            )
        mass = self._tail_mass(temperature) if temperature in TAIL_TEMPERATURES else self.tail[:, 0]
        scaled = self.log_probs / temperature
        total = torch.logaddexp(scaled.logsumexp(1), mass)
        further = [
            mass if t == 1 or temperature < 1 else self._tail_mass(temperature * t)
            for t in TAIL_TEMPERATURES
        ]
        true = self.true_log_prob
        return replace(
            self,
            log_probs=scaled - total[:, None],
            tail=torch.stack(
                [own - total / t for own, t in zip(further, TAIL_TEMPERATURES, strict=True)], 1
            ),
            true_log_prob=None if true is None else true / temperature - total,
        )

    def mixed(self, partner: SoftLabels, share: Tensor) -> SoftLabels:
        """share * self + (1 - share) * partner, row by row; ``share`` float32 [B] in [0, 1]."""
        if self.partner is not None or partner.partner is not None:
            raise ValueError("labels can be mixed once only: these are mixed already")
        return replace(self, partner=partner, share=share)

    def _parts(self, temperature: float, tail: Tail) -> tuple[Tensor, Tensor]:
        """Of the targets of an unmixed label: the probability of each class not stored, [B], and
        the log-probabilities of the slots, [B, k], -inf where one is empty or left out."""
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature:g}; it must be above 0 and finite")
        mass = self._tail_mass(temperature) if tail == "uniform" else None
        scaled = self.log_probs / temperature
        if tail == "renorm" and self.truth_slot:  # re-norm keeps the teacher's top classes alone
            scaled = torch.cat([scaled[:, :-1], torch.full_like(scaled[:, -1:], -math.inf)], 1)
        total = scaled.logsumexp(1)
        if mass is not None:
            total = torch.logaddexp(total, mass)
        base = torch.zeros_like(total) if mass is None else self._tail_mean(mass - total)
        return base, scaled - total[:, None]

    def _tail_mean(self, log_mass: Tensor) -> Tensor:
        return tails.mean(log_mass, self.log_probs, self.num_classes)

    def _tail_mass(self, temperature: float) -> Tensor:
        return tails.mass(self.tail, temperature, self.log_probs, self.num_classes)


def _kind(labels: SoftLabels) -> tuple[object, ...]:
    """What labels must share to be put together."""
    own = labels.num_classes, labels.k, labels.truth_slot, labels.true_log_prob is None
    return own if labels.partner is None else (*own, *_kind(labels.partner))
