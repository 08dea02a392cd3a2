"""FerKD: stored labels, calibrated by the region of their crop.

Source: Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023; the rule of
calibration is ours.
"""

from __future__ import annotations

from ferkd.methods.base import Method
from ferkd.methods.stored import StoredSettings, stored

METHOD = Method(
    name="ferkd",
    card=__doc__,
    make=stored,
    settings=StoredSettings,
    labels="crops",
    regions=True,
)
