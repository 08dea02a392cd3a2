"""The house's rules that are seen only when the code runs (the others: import-linter)."""

from __future__ import annotations

import subprocess
import sys

import pytest


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
