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
    from ferkd import crops, objectives
    from ferkd.calibration import regions
    from ferkd.calibration.regions import Regions
    from ferkd.evaluating.run import evaluate
    from ferkd.labelling.run import label
    from ferkd.loading import mixing
    from ferkd.loading.batch import Batch
    from ferkd.loading.loader import SoftLabelLoader
    from ferkd.loading.mixing import Mix, SelfMix
    from ferkd.models.teacher import Teacher, load_teacher
    from ferkd.objectives import soft_cross_entropy
    from ferkd.store import LabelStore, SoftLabels
    from ferkd.study.inspection import inspect
    from ferkd.system.compute import Normalise
    from ferkd.system.errors import InputError
    from ferkd.training import train
    from ferkd.training.recipe import Recipe, load_recipe

# Where each public name lives. Loaded on first use: torch and timm take seconds to import, which
# ``ferkd --help`` and a loader's workers need not wait for.
_HOMES = {
    "Batch": "ferkd.loading.batch",
    "InputError": "ferkd.system.errors",
    "LabelStore": "ferkd.store",
    "Mix": "ferkd.loading.mixing",
    "Normalise": "ferkd.system.compute",
    "Recipe": "ferkd.training.recipe",
    "Regions": "ferkd.calibration.regions",
    "SelfMix": "ferkd.loading.mixing",
    "SoftLabelLoader": "ferkd.loading.loader",
    "SoftLabels": "ferkd.store",
    "Teacher": "ferkd.models.teacher",
    "evaluate": "ferkd.evaluating.run",
    "inspect": "ferkd.study.inspection",
    "label": "ferkd.labelling.run",
    "load_recipe": "ferkd.training.recipe",
    "load_teacher": "ferkd.models.teacher",
    "soft_cross_entropy": "ferkd.objectives",
    "train": "ferkd.training",
}
_MODULES = {
    "crops": "ferkd.crops",
    "mixing": "ferkd.loading.mixing",
    "objectives": "ferkd.objectives",
    "regions": "ferkd.calibration.regions",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'ferkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


__all__ = [
    "Batch",
    "InputError",
    "LabelStore",
    "Mix",
    "Normalise",
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
