"""The house's rules that are seen only when the code runs (the others: import-linter)."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ferkd._former import PLACES


@pytest.mark.parametrize(
    ("rooms", "not_loaded"),
    [
        ("ferkd.store", "torchvision timm transformers"),
        ("ferkd.images, ferkd.crops", "torchvision timm transformers"),
        ("ferkd.cli", "torch torchvision timm"),
    ],
)
def test_a_room_loads_no_more_than_it_needs(rooms: str, not_loaded: str) -> None:
    code = f"import {rooms}, sys; print(*set({not_loaded.split()!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("former", "place"), sorted(PLACES.items()))
def test_a_former_name_holds_what_its_place_holds(former: str, place: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{former} is {place} now"):
        sys.modules.pop(former, None)
        module = importlib.import_module(former)
    names = [name for name in vars(importlib.import_module(place)) if not name.startswith("__")]
    assert names and all(
        getattr(module, name) is getattr(importlib.import_module(place), name) for name in names
    )
