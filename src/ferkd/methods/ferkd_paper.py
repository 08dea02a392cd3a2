"""FerKD by the rule of its paper, with SelfMix.

Source: Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023.
"""

from __future__ import annotations

from typing import Any

from ferkd.methods.base import Method
from ferkd.methods.stored import StoredSettings, stored


def _refuses(recipe: Any) -> str | None:
    if recipe.regions.calibration == "steps":
        return None
    return (
        "method ferkd-paper calibrates by the paper's rule, regions.calibration steps, not "
        f"{recipe.regions.calibration}; use method ferkd for it"
    )


METHOD = Method(
    name="ferkd-paper",
    card=__doc__,
    make=stored,
    settings=StoredSettings,
    labels="crops",
    regions=True,
    defaults={
        "regions": {"calibration": "steps", "thresholds": "auto"},
        "mix": {"kind": "selfmix"},
    },
    refuses=_refuses,
)
