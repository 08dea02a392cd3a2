"""Methods: what each way of training a student needs, and the settings that it brings.

All run in the one trainer. A method's loss is an objective ``(logits, view) -> loss``, made by
:func:`ferkd.methods.building.build`; its card is ``docs/methods/NAME.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """What a method needs, and the settings that apply where a recipe says nothing.

    ``labels``: none, those of stored "crops", or a label "map" an image. ``teacher``: a live one.
    ``truth``: the class of every image. ``regions``: labels are calibrated by their region.
    ``features``: a teacher's stored features of the crops, in `Batch.features`.
    """

    labels: Literal["none", "crops", "map"] = "none"
    teacher: bool = False
    truth: bool = False
    regions: bool = False
    features: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


# Ordinary training, where each decoded image shows one crop.
_ONE_CROP = {"crops_per_image": 1}

METHODS: Mapping[str, Method] = {
    "hard": Method(truth=True, defaults={"data": _ONE_CROP}),
    "kd": Method(
        teacher=True,
        truth=True,
        defaults={"data": _ONE_CROP, "loss": {"objective": "kl", "label_smoothing": 0.0}},
    ),
    "funmatch": Method(
        teacher=True,
        defaults={"data": _ONE_CROP, "loss": {"objective": "kl"}, "mix": {"kind": "mixup"}},
    ),
    "relabel": Method(labels="map", defaults={"data": _ONE_CROP}),
    "fkd": Method(labels="crops"),
    "meal_v2": Method(labels="crops", defaults={"student": {"pretrained": True}}),
    "ssld": Method(labels="crops", defaults={"loss": {"objective": "jeffreys"}}),
    "ferkd": Method(labels="crops", regions=True),
    "ferkd-paper": Method(
        labels="crops",
        regions=True,
        defaults={
            "regions": {"calibration": "steps", "thresholds": "auto"},
            "mix": {"kind": "selfmix"},
        },
    ),
    "pskd": Method(truth=True, defaults={"data": _ONE_CROP}),
}


def with_defaults(settings: Any) -> Any:
    """A recipe's settings as written, with what its method sets where they say nothing.

    What is no mapping, or names no known method, comes back as it is, to be refused later.
    """
    name = settings.get("method") if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in METHODS:
        return settings
    filled = dict(settings)
    for part, values in METHODS[name].defaults.items():
        given = filled.get(part, {})
        if not isinstance(given, dict):
            continue  # a finished part, from Python
        if part == "student" and given.get("weights") is not None:
            continue  # it starts from those
        filled[part] = {**values, **given}
    return filled


def problem(recipe: Any) -> str | None:
    """What keeps a `ferkd.training.recipe.Recipe` from being trained, as one line, or None."""
    name, mix, method = recipe.method, recipe.mix.kind, METHODS[recipe.method]
    if method.labels == "crops" and recipe.data.store is None:
        return f"method {name} needs data.store, the labels that ferkd label wrote"
    if method.labels == "map" and recipe.data.store is None:
        return f"method {name} needs data.store, the label maps that ferkd label --kind map wrote"
    if method.teacher and recipe.teacher is None:
        return (
            f"method {name} needs teacher, named as for ferkd label: the folder of a run, "
            "timm/NAME, package.module:name"
        )
    if name == "funmatch" and recipe.loss.objective != "kl":
        return (
            "method funmatch matches the teacher by loss.objective kl, not "
            f"{recipe.loss.objective}; leave it out, or use method kd"
        )
    if name == "ferkd-paper" and recipe.regions.calibration != "steps":
        return (
            "method ferkd-paper calibrates by the paper's rule, regions.calibration steps, not "
            f"{recipe.regions.calibration}; use method ferkd for it"
        )
    if name == "pskd" and mix in ("mixup", "cutmix"):
        return (
            f"method pskd keeps a prediction for each image, which mix.kind {mix} would take from "
            "a mixture of two; use selfmix or none"
        )
    if mix == "selfmix" and recipe.data.crops_per_image < 2:
        return (
            "mix.kind selfmix needs data.crops_per_image of at least 2, not "
            f"{recipe.data.crops_per_image}"
        )
    return None
