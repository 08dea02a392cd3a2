"""SSLD: stored labels without ground truth, by the divergences both ways.

Source: Cui et al., "Beyond Self-Supervision", 2021.
"""

from __future__ import annotations

from ferkd.methods.base import Method
from ferkd.methods.stored import StoredSettings, stored


class Settings(StoredSettings):
    """Jeffreys' divergence unless another objective is set."""

    objective: str = "jeffreys"


METHOD = Method(
    name="ssld",
    card=__doc__,
    make=stored,
    settings=Settings,
    labels="crops",
)
