"""The forms that a crop's soft label is stored in, ours and FKD's: their bytes, what comes back.

A form has a ``name``, ``record_bytes(C)`` (box and flip included), ``bytes_per_crop(C, crops)``
(all told where an image has so many crops) and ``recover(logits, targets)``: encoded and decoded,
the probabilities [B, C] in float64 that a student would be given. ``targets`` int64 [B] are the
ground truth, -1 for none, which our records know the probability of and FKD's do not.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ferkd.store import SoftLabels
from ferkd.store.reader import IMAGE
from ferkd.store.records import BOX_BYTES, RecordFormat

_NPY_HEADER = 128  # bytes before the array in a .npy file
IMAGENET_IMAGES = 1_281_167
IMAGENET_ID = 30  # bytes: n01440764/n01440764_10026.JPEG


@dataclass(frozen=True)
class Stored:
    """The label store's record: ``k`` classes (None: all), numbers stored as ``values``."""

    k: int | None
    values: Literal["u8", "f16", "f32"]

    @property
    def name(self) -> str:
        return f"ferkd {'full' if self.k is None else f'top-{self.k}'} {self.values}"

    def format(self, num_classes: int) -> RecordFormat:
        return RecordFormat.choose(self.k, num_classes, self.values)

    def record_bytes(self, num_classes: int) -> int:
        """Of the box and the label; the flip is one bit more."""
        return BOX_BYTES + self.format(num_classes).dtype.itemsize

    def bytes_per_crop(self, num_classes: int, crops: int) -> float:
        """With ImageNet's number of images and length of ids."""
        total = store_bytes(self.format(num_classes), IMAGENET_IMAGES, crops, IMAGENET_ID)
        return total / (IMAGENET_IMAGES * crops)

    def labels(self, logits: Tensor, targets: Tensor) -> SoftLabels:
        """The labels of logits [B, C] after a passage through the record, as a store reads them."""
        record = self.format(logits.shape[1])
        labels = SoftLabels.from_logits(logits, targets, None if record.full else record.k)
        records = record.encode(labels)
        return record.decode(records, (targets >= 0).numpy()).with_truth(targets)

    def recover(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.labels(logits, targets).dense().double()


@dataclass(frozen=True)
class Fkd:
    """FKD's label with marginal smoothing: float class numbers and probabilities of ``k`` classes,
    the rest of the mass spread evenly over the others; ``k`` None is its full softmax.

    ``values`` "f16" is its quantised kind: everything in half precision, read back as float32.
    """

    k: int | None
    values: Literal["f16", "f32"]

    @property
    def name(self) -> str:
        return f"FKD {'full' if self.k is None else f'top-{self.k}'} {self.values}"

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.values == "f16" else torch.float32

    def _arrays(self, crops: int, num_classes: int) -> list[Tensor]:
        shape = (crops, num_classes) if self.k is None else (crops, 2, self.k)
        return [
            torch.zeros(crops, 4, dtype=self._dtype),
            torch.zeros(crops, dtype=torch.bool),
            torch.zeros(shape, dtype=self._dtype),
        ]

    def record_bytes(self, num_classes: int) -> int:
        return sum(a.nbytes for a in self._arrays(1, num_classes))

    def bytes_per_crop(self, num_classes: int, crops: int) -> float:
        """The size of an image's file from torch.save; what the file system adds is left out."""
        file = io.BytesIO()
        torch.save(self._arrays(crops, num_classes), file)
        return file.tell() / crops

    def recover(self, logits: Tensor, targets: Tensor) -> Tensor:
        """From the logits alone: FKD's label does not hold the ground truth."""
        probs = logits.float().softmax(1)
        if self.k is None:
            return probs.to(self._dtype).double()
        values, classes = probs.topk(self.k, dim=1)
        values, classes = values.to(self._dtype).float(), classes.to(self._dtype).long()
        # For k = C this divides by 0, but then every class is overwritten.
        rest = (1 - values.sum(1, keepdim=True)) / (logits.shape[1] - self.k)
        return rest.expand(-1, logits.shape[1]).scatter(1, classes, values).double()


Form = Stored | Fkd
_KEPT = (1, 5, 10, 20, None)
FORMS: tuple[Form, ...] = (
    *(Stored(k, "u8") for k in _KEPT),
    *(Stored(k, "f16") for k in _KEPT),
    *(Stored(k, "f32") for k in _KEPT),
    *(Fkd(k, "f32") for k in _KEPT),
    *(Fkd(k, "f16") for k in _KEPT),
)


def store_bytes(record: RecordFormat, images: int, crops: int, id_bytes: float) -> float:
    """The bytes of a store's data files with ids of ``id_bytes`` on average; the manifest (about
    3 kB and the class names) is not counted, nor are files beyond the first of a kind."""
    of_crops = crops * (BOX_BYTES + record.dtype.itemsize) + -(-crops // 8)
    return 5 * _NPY_HEADER + images * (of_crops + IMAGE.itemsize + id_bytes)


def fits(form: Form, num_classes: int) -> bool:
    """Whether as many classes can be kept; for ours k = C is the form "full"."""
    if form.k is None:
        return True
    return form.k < num_classes or (isinstance(form, Fkd) and form.k == num_classes)


def sizes(
    crops: int, images: int = IMAGENET_IMAGES, num_classes: int = 1000
) -> list[dict[str, Any]]:
    """Bytes of the labels of ImageNet-1K at ``crops`` per image: one row a system.

    Ours and FKD's are computed from what their writers write; those of ml-dr (gzipped, 37 to 104
    bytes a crop as published) and TinyViT (a 4-byte seed and k pairs of 2 + 2 bytes) are not ours
    to run and follow from their formats.
    """
    forms: list[Form] = [
        Stored(5, "u8"),
        Stored(10, "u8"),
        Stored(20, "u8"),
        Stored(None, "f16"),
        Fkd(5, "f32"),
        Fkd(5, "f16"),
        Fkd(None, "f32"),
    ]
    per_crop = {form.name: form.bytes_per_crop(num_classes, crops) for form in forms}
    per_crop |= {"ml-dr, least": 37.0, "ml-dr, most": 104.0}
    per_crop |= {f"TinyViT top-{k}": 4.0 + 4 * k for k in (5, 10)}
    return [
        {
            "system": system,
            "crops_per_image": crops,
            "bytes_per_crop": each,
            "gigabytes": each * images * crops / 1e9,
        }
        for system, each in per_crop.items()
    ]
