"""Trees of settings: dotted keys, merging, leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferkd.system.errors import InputError

Tree = dict[str, Any]


def expand(tree: Mapping[str, Any], where: str) -> Tree:
    """Turn dotted keys into a tree: {"a.b": 1} is {"a": {"b": 1}}, at every depth.

    ``where`` is the place of the tree in messages. Raises InputError for a key that is given
    twice (``a.b`` beside ``a: {b: ...}``) or that is not a dotted name.
    """
    out: Tree = {}
    for key, value in tree.items():
        parts = str(key).split(".")
        if not all(parts):
            raise InputError(f"{where}.{key}: not a key; write a.b or a: {{b: ...}}")
        new = expand(value, f"{where}.{key}") if isinstance(value, Mapping) else value
        for part in reversed(parts[1:]):
            new = {part: new}
        _join(out, parts[0], new, where)
    return out


def _join(out: Tree, key: str, value: Any, where: str) -> None:
    if key not in out:
        out[key] = value
    elif isinstance(out[key], dict) and isinstance(value, dict):
        for inner, leaf in value.items():
            _join(out[key], inner, leaf, f"{where}.{key}")
    else:
        raise InputError(f"{where}.{key}: given twice; keep one of them")


def merge(*trees: Mapping[str, Any]) -> Tree:
    """One tree in which later trees win, key by key; what is not a mapping is replaced whole."""
    out: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            before = out.get(key)
            if isinstance(value, Mapping):
                out[key] = merge(before if isinstance(before, dict) else {}, value)
            else:
                out[key] = value
    return out


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """The leaves by dotted key; lists and empty mappings are leaves."""
    leaves: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
