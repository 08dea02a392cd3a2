"""Modules by the names that they had before the rooms (docs/architecture.md), for scripts of then.

``from ferkd.errors import InputError`` goes on working, with a DeprecationWarning that names the
module's place. Nothing in the package uses these names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PLACES = {
    "ferkd.config": "ferkd.training.recipe",
    "ferkd.errors": "ferkd.system.errors",
    "ferkd.labels": "ferkd.store",
    "ferkd.labels.publish": "ferkd.store.publish",
    "ferkd.labels.soft": "ferkd.store.soft",
    "ferkd.teachers": "ferkd.models.teacher",
    "ferkd.weights": "ferkd.models.weights",
}


class _Former(MetaPathFinder, Loader):
    """Finds a former name as a module that holds what the module in its place holds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PLACES:
            return None
        return ModuleSpec(fullname, self, is_package=fullname == "ferkd.labels")

    def exec_module(self, module: ModuleType) -> None:
        place = PLACES[module.__name__]
        warnings.warn(
            f"{module.__name__} is {place} now; import it from there", DeprecationWarning, 2
        )
        held = {n: v for n, v in vars(import_module(place)).items() if not n.startswith("__")}
        vars(module).update(held)


def install() -> None:
    """Let the former names be imported; called once, when ferkd is."""
    sys.meta_path.append(_Former())
