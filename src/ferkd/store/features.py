"""How a feature vector becomes a fixed number of bytes, and back.

The layout is specified in docs/store-format.md; a change here is a new format version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ferkd.system.errors import InputError

Codec = Literal["f16", "i8"]
MAX_DIM = 65_536
_LARGEST = 65_504.0  # of half precision


@dataclass(frozen=True)
class FeatureFormat:
    """The form of a stored vector of ``dim`` numbers.

    "f16": half precision. "i8": a float32 scale and whole numbers -127 to 127, the largest
    magnitude of the vector at 127, so an entry is off by at most half the scale.
    """

    dim: int
    codec: Codec

    @staticmethod
    def choose(dim: int, codec: str = "i8") -> FeatureFormat:
        """A valid format; raises InputError."""
        if codec not in ("f16", "i8"):
            raise InputError(f"values is {codec!r}; features are stored as i8 or f16")
        if not 1 <= dim <= MAX_DIM:
            raise InputError(f"features of {dim} numbers; 1 to {MAX_DIM} can be stored")
        return FeatureFormat(dim, codec)  # type: ignore[arg-type]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The packed, little-endian NumPy dtype of a stored vector."""
        if self.codec == "f16":
            return np.dtype([("values", "<f2", (self.dim,))])
        return np.dtype([("scale", "<f4"), ("values", "i1", (self.dim,))])

    def encode(self, vectors: NDArray[np.floating]) -> NDArray[Any]:
        """Records [B] of finite vectors [B, dim]. Raises InputError for what cannot be stored."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors {vectors.shape} do not fill records of {self.dim} numbers")
        vectors = np.asarray(vectors, np.float32)
        if not np.isfinite(vectors).all():
            raise InputError("features that are not finite cannot be stored; try precision fp32")
        records = np.zeros(len(vectors), self.dtype)
        largest = np.abs(vectors).max(1, initial=0.0)
        if self.codec == "f16":
            if (largest > _LARGEST).any():
                raise InputError(
                    f"a feature of {float(largest.max()):.3g} is beyond half precision, which "
                    "ends at 65504; store features as i8, or normalised"
                )
            records["values"] = vectors
            return records
        scale = (largest / np.float32(127)).astype(np.float32)
        records["scale"] = scale
        divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
        records["values"] = np.clip(np.rint(vectors / divisor), -127, 127)
        return records

    def decode(self, records: NDArray[Any]) -> NDArray[np.float32]:
        """The vectors float32 [B, dim] of records [B]."""
        values = records["values"].astype(np.float32)
        if self.codec == "i8":
            values *= records["scale"][:, None]
        return np.asarray(values)

    def impossible(self, records: NDArray[Any]) -> Iterator[tuple[Any, str]]:
        """Which of the records [n] break a rule, bool [n], and the rule, for each rule."""
        if self.codec == "i8":
            scale = records["scale"]
            yield ~((scale >= 0) & np.isfinite(scale)), "the scale of its features is not possible"
        else:
            yield ~np.isfinite(records["values"]).all(1), "its features are not finite"
