"""How one crop's soft label becomes a fixed number of bytes, and back.

The layout is specified in docs/store-format.md; a change here is a new format version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ferkd.store.soft import SoftLabels
from ferkd.store.tails import TAIL_TEMPERATURES
from ferkd.system.errors import InputError

Values = Literal["u8", "f16", "f32"]
Summary = Literal["tempered", "mass"]
MAX_CLASSES = 65_536  # class numbers are two bytes
MAX_SIDE = 65_535  # so are box coordinates
BOX_BYTES = 8  # of the four, in the geometry

_TYPES: dict[str, str] = {"u8": "u1", "f16": "<f2", "f32": "<f4"}
_FEW = 10  # classes that are compared pair by pair
_SCALE = 48.0  # a u8 code c stands for the gap (c / 48)^2: 0 to 28.2 nats, finest near 0
_GAPS = np.square(np.arange(256, dtype=np.float32) / np.float32(_SCALE))


@dataclass(frozen=True)
class RecordFormat:
    """The form of a record: ``k`` classes kept of ``num_classes``, numbers stored as ``values``.

    ``tail`` is what is known of the other classes: "tempered", their mass at each of the recorded
    temperatures and the true class's probability; or "mass", their mass at temperature 1 alone, as
    in labels that come from probabilities. A record of all classes is always "tempered".

    A *gap* is how far, in nats, a log-probability lies below the largest one of its crop. Only
    gaps are stored: probabilities sum to 1, so the largest follows from them.
    """

    k: int
    num_classes: int
    values: Values
    tail: Summary = "tempered"

    @staticmethod
    def choose(
        k: int | None, num_classes: int, values: str = "auto", tail: Summary = "tempered"
    ) -> RecordFormat:
        """A valid format; ``k`` None or >= C keeps all classes. Raises InputError.

        ``values="auto"`` is one byte per number for top-k and half precision for all classes.
        """
        if num_classes > MAX_CLASSES:
            raise InputError(
                f"{num_classes} classes; a label record holds class numbers of two bytes, so at "
                f"most {MAX_CLASSES} classes"
            )
        if k is not None and k < 1:
            raise InputError(f"top-k is {k}; keep at least 1 class")
        k = num_classes if k is None else min(k, num_classes)
        if values == "auto":
            values = "f16" if k == num_classes else "u8"
        if values not in _TYPES:
            raise InputError(f"values is {values!r}; it must be auto, u8, f16 or f32")
        if k == num_classes:
            tail = "tempered"
        return RecordFormat(k, num_classes, values, tail)  # type: ignore[arg-type]

    @property
    def full(self) -> bool:
        """Whether all classes are stored, in their own order and without class numbers."""
        return self.k == self.num_classes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The packed, little-endian NumPy dtype of a record."""
        value = _TYPES[self.values]
        if self.full:
            return np.dtype([("gaps", value, (self.num_classes,))])
        fields: list[Any] = [("classes", "<u2", (self.k,))]
        if self.k > 1:
            fields.append(("gaps", value, (self.k - 1,)))
        fields.append(("tail", value, (len(self._temperatures),)))
        if self.tail == "tempered":
            fields.append(("true", value))
        return np.dtype(fields)

    def encode(self, labels: SoftLabels) -> NDArray[Any]:
        """Records [B] of ``labels``, which have at least ``k`` slots and none empty."""
        if labels.num_classes != self.num_classes or labels.k < self.k:
            raise ValueError(
                f"labels of {labels.k} of {labels.num_classes} classes do not fill records of "
                f"{self.k} of {self.num_classes}"
            )
        records = np.zeros(len(labels), self.dtype)
        if self.full:
            log_probs = torch.empty_like(labels.log_probs)
            log_probs.scatter_(1, labels.classes, labels.log_probs)
            gaps = log_probs.amax(1, keepdim=True) - log_probs
            records["gaps"] = self._quantise(gaps.double().cpu().numpy())
            return records
        labels = labels.top(self.k)
        unordered = labels.log_probs.double().cpu().numpy()
        order = np.argsort(-unordered, axis=1, kind="stable")
        ordered = np.take_along_axis(unordered, order, 1)
        top = ordered[:, :1]
        records["classes"] = np.take_along_axis(labels.classes.cpu().numpy(), order, 1)
        if self.k > 1:
            records["gaps"] = self._quantise(top - ordered[:, 1:])
        known = labels.tail[:, : len(self._temperatures)].double().cpu().numpy()
        if np.isnan(known).any():
            raise ValueError(f"labels whose tail is not known do not fill a {self.tail!r} record")
        tail = known - top / np.array(self._temperatures)
        records["tail"] = self._quantise(math.log(self.num_classes - self.k) - tail)
        if self.tail == "tempered":
            # An unknown true class is stored as the largest gap; readers see it has no truth.
            true_gap = np.full(len(top), np.inf)
            if (true := labels.true_log_prob) is not None:
                true_gap = np.nan_to_num(top[:, 0] - true.double().cpu().numpy(), nan=np.inf)
            records["true"] = self._quantise(true_gap)
        return records

    def decode(
        self, records: NDArray[Any], has_target: NDArray[np.bool_] | None = None
    ) -> SoftLabels:
        """The labels of records [B]; ``has_target`` [B] says which have a ground truth."""
        if self.full:
            log_probs = (-self._gaps(records["gaps"])).log_softmax(1)
            classes = torch.arange(self.num_classes).expand(len(records), -1)
            tail = log_probs.new_full((len(records), len(TAIL_TEMPERATURES)), -math.inf)
            return SoftLabels(classes, log_probs, tail, self.num_classes)
        classes = torch.from_numpy(self.classes(records).astype(np.int64))
        gaps = torch.zeros(len(records), self.k)
        if self.k > 1:
            gaps[:, 1:] = self._gaps(records["gaps"])
        tail = math.log(self.num_classes - self.k) - self._gaps(records["tail"])
        top = -torch.logaddexp((-gaps).logsumexp(1), tail[:, 0])[:, None]
        tail = tail + top / torch.tensor(self._temperatures)
        if self.tail == "mass":
            unknown = tail.new_full((len(tail), len(TAIL_TEMPERATURES) - 1), math.nan)
            tail = torch.cat([tail, unknown], 1)
            return SoftLabels(classes, top - gaps, tail, self.num_classes)
        true = top[:, 0] - self._gaps(records["true"])
        if has_target is not None:
            true = true.masked_fill(torch.from_numpy(~has_target), math.nan)
        return SoftLabels(classes, top - gaps, tail, self.num_classes, true)

    def classes(self, records: NDArray[Any]) -> NDArray[np.integer]:
        """The class numbers [B, k] of records [B] of some classes, most probable first."""
        return np.asarray(records["classes"])

    def impossible(self, records: NDArray[Any]) -> Iterator[tuple[Any, str]]:
        """Which of the records [n] break a rule, bool [n], and the rule, for each rule."""
        names = self.dtype.names or ()
        if not self.full:
            # Class by class: comparing whole columns is much cheaper than reducing short rows.
            columns = np.ascontiguousarray(self.classes(records).T)
            yield (columns >= self.num_classes).any(0), f"a class is not below {self.num_classes}"
            if self.k <= _FEW:
                pairs = (columns[i] == columns[:i] for i in range(1, self.k))
                twice = np.concatenate([np.zeros((1, len(records)), bool), *pairs]).any(0)
            else:
                ordered = np.sort(columns, axis=0)
                twice = (ordered[1:] == ordered[:-1]).any(0)
            yield twice, "a class appears twice"
        for name, what in (("gaps", "a log-probability"), ("tail", "its tail's mass")):
            if name in names and self.values != "u8":
                stored = records[name]
                yield ~((stored >= 0) & np.isfinite(stored)).all(1), f"{what} is no possible one"
        if "true" in names and self.values != "u8":
            above = np.asarray(records["true"] >= 0)
            yield ~above, "its truth's log-probability is no possible one"
        if "gaps" in names and not self.full:
            gaps = np.ascontiguousarray(records["gaps"].T)
            yield (gaps[1:] < gaps[:-1]).any(0), "its classes are not in order"

    @property
    def _temperatures(self) -> tuple[float, ...]:
        return TAIL_TEMPERATURES if self.tail == "tempered" else TAIL_TEMPERATURES[:1]

    def _quantise(self, gaps: NDArray[np.float64]) -> NDArray[Any]:
        gaps = np.maximum(gaps, 0)
        if self.values == "u8":
            return np.clip(np.rint(np.sqrt(gaps) * _SCALE), 0, 255).astype(np.uint8)
        return np.minimum(gaps, 1e4).astype(_TYPES[self.values])

    def _gaps(self, stored: NDArray[Any]) -> Tensor:
        if self.values == "u8":
            return torch.from_numpy(_GAPS[stored])
        return torch.from_numpy(stored.astype(np.float32))
