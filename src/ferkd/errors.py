"""The public place of the package's exception; it stands in ferkd.system.errors."""

from __future__ import annotations

from ferkd.system.errors import InputError

__all__ = ["InputError"]
