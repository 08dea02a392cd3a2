"""Methods: each way of training a student, one file each; see :mod:`ferkd.methods.base`.

All run in the one trainer. The long form of a method's card is ``docs/methods/NAME.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from ferkd.methods.base import LossSettings, Method
from ferkd.system.errors import InputError
from ferkd.system.plugins import Table
from ferkd.system.settings import explain

METHODS: Table[Method] = Table(
    what="method",
    room=__name__,
    constant="METHOD",
    group="ferkd.methods",
    check=lambda thing: (
        None if isinstance(thing, Method) else "is no ferkd.methods.base.Method; make it one"
    ),
)


def with_defaults(settings: Any) -> Any:
    """A recipe's settings as written, with what its method sets where they say nothing.

    A part that is a finished model, from Python, counts as the keys that it was given. What is no
    mapping, or names no known method, comes back as it is, to be refused later.
    """
    name = settings.get("method") if isinstance(settings, dict) else None
    try:
        method = METHODS[name] if isinstance(name, str) else None
    except InputError:
        method = None
    if method is None:
        return settings
    filled = dict(settings)
    for part, values in method.defaults.items():
        given = filled.get(part, {})
        if isinstance(given, BaseModel):
            given = {key: getattr(given, key) for key in given.model_fields_set}
        if not isinstance(given, dict):
            continue
        if part == "student" and given.get("weights") is not None:
            continue  # it starts from those
        filled[part] = {**values, **given}
    return filled


def loss_settings(name: str, given: Any) -> LossSettings:
    """The part ``loss`` of a recipe for the method ``name``, from a mapping or a finished model.

    Keys that other methods alone read are checked and left out, so that recipes may differ in
    their method alone. Raises InputError with a line for each mistake.
    """
    settings = METHODS[name].settings
    if isinstance(given, BaseModel):
        given = {key: getattr(given, key) for key in given.model_fields_set}
    if not isinstance(given, dict):
        raise InputError(f"recipe.loss: got {given!r}; must be a mapping of keys to values")
    known = {key for model in _models() for key in model.model_fields}
    foreign = given.keys() & known - settings.model_fields.keys()
    mistakes: list[str] = []

    def checked(model: type[LossSettings], keys: Iterable[str]) -> LossSettings | None:
        try:
            return model.model_validate({key: given[key] for key in keys})
        except ValidationError as error:
            mistakes.extend(explain(error, model, "recipe.loss"))
            return None

    ours = checked(settings, given.keys() - foreign)
    for model in _owners(foreign):
        checked(model, given.keys() & model.model_fields.keys())
    if ours is None or mistakes:
        raise InputError("\n".join(dict.fromkeys(mistakes)))
    return ours


def _models() -> list[type[LossSettings]]:
    """The settings of all methods; one of another package that fails concerns who asks for it."""
    models = []
    for name in METHODS:
        try:
            models.append(METHODS[name].settings)
        except InputError:
            continue
    return models


def _owners(keys: Iterable[str]) -> list[type[LossSettings]]:
    """The settings that between them read ``keys``, each key by the first that does."""
    models = _models()
    return list(dict.fromkeys(next(m for m in models if key in m.model_fields) for key in keys))


def problem(recipe: Any) -> str | None:
    """What keeps a `ferkd.training.recipe.Recipe` from being trained, as one line, or None."""
    name, method = recipe.method, METHODS[recipe.method]
    if method.labels == "crops" and recipe.data.store is None:
        return f"method {name} needs data.store, the labels that ferkd label wrote"
    if method.labels == "map" and recipe.data.store is None:
        return f"method {name} needs data.store, the label maps that ferkd label --kind map wrote"
    if method.teacher and recipe.teacher is None:
        return (
            f"method {name} needs teacher, named as for ferkd label: the folder of a run, "
            "timm/NAME, package.module:name"
        )
    if refused := method.refuses(recipe):
        return refused
    if recipe.mix.kind == "selfmix" and recipe.data.crops_per_image < 2:
        return (
            "mix.kind selfmix needs data.crops_per_image of at least 2, not "
            f"{recipe.data.crops_per_image}"
        )
    return None
