"""docs/recipes.md names every key of a recipe, and no key that is none."""

from __future__ import annotations

import re
from pathlib import Path

from ferkd.system.settings import Part
from ferkd.training.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def keys() -> set[str]:
    """The keys of a recipe as the page writes them: parts by their own keys, dotted.

    The keys of ``loss``, ``regions`` and ``mix`` have other tables and pages.
    """
    found = set()
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if (
            name not in ("loss", "regions", "mix")
            and isinstance(kind, type)
            and issubclass(kind, Part)
        ):
            found |= {f"{name}.{key}" for key in kind.model_fields}
        else:
            found.add(name)
    return found


def test_the_page_has_each_key_once_and_no_other():
    named, inside = [], False
    for line in PAGE.splitlines():
        inside = line.startswith("|") and (inside or line == "| key | default | meaning |")
        if inside:
            named += re.findall(r"`([a-z_.]+)`", line.split("|")[1])
    assert sorted(named) == sorted(keys())
