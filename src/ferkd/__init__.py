"""Stored soft-label distillation for vision: label crops once, train many students.

The parts, each usable alone: :func:`label` and :class:`LabelStore`; :class:`SoftLabelLoader` with
:class:`Regions` (FerKD) and :func:`SelfMix`; :func:`soft_cross_entropy` and ``ferkd.objectives``;
:func:`train`, :func:`evaluate` and :func:`inspect`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ferkd import crops, mixing, objectives, regions
    from ferkd.config import Recipe, load_recipe
    from ferkd.errors import InputError
    from ferkd.evaluation import evaluate
    from ferkd.inspection import inspect
    from ferkd.labelling import label
    from ferkd.labels import LabelStore, SoftLabels
    from ferkd.loader import SoftLabelLoader
    from ferkd.mixing import Mix, SelfMix
    from ferkd.objectives import soft_cross_entropy
    from ferkd.regions import Regions
    from ferkd.teachers import Teacher, load_teacher
    from ferkd.training import train

# Where each public name lives. Loaded on first use: torch and timm take seconds to import, which
# ``ferkd --help`` and a loader's workers need not wait for.
_HOMES = {
    "InputError": "ferkd.errors",
    "LabelStore": "ferkd.labels",
    "Mix": "ferkd.mixing",
    "Recipe": "ferkd.config",
    "Regions": "ferkd.regions",
    "SelfMix": "ferkd.mixing",
    "SoftLabelLoader": "ferkd.loader",
    "SoftLabels": "ferkd.labels",
    "Teacher": "ferkd.teachers",
    "evaluate": "ferkd.evaluation",
    "inspect": "ferkd.inspection",
    "label": "ferkd.labelling",
    "load_recipe": "ferkd.config",
    "load_teacher": "ferkd.teachers",
    "soft_cross_entropy": "ferkd.objectives",
    "train": "ferkd.training",
}
_MODULES = ("crops", "mixing", "objectives", "regions")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"ferkd.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ferkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


__all__ = [
    "InputError",
    "LabelStore",
    "Mix",
    "Recipe",
    "Regions",
    "SelfMix",
    "SoftLabelLoader",
    "SoftLabels",
    "Teacher",
    "crops",
    "evaluate",
    "inspect",
    "label",
    "load_recipe",
    "load_teacher",
    "mixing",
    "objectives",
    "regions",
    "soft_cross_entropy",
    "train",
]
