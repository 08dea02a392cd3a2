"""The folder of a run: its files, and whether a run may start, continue or be replaced there."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary, sweep, write_whole
from ferkd.system.locks import LOCK
from ferkd.system.plain import read_yaml

RECIPE, CONFIG, METRICS = "recipe.yaml", "config.json", "metrics.jsonl"
CHECKPOINT, WEIGHTS, RESULT = "checkpoint.pt", "weights.safetensors", "result.json"
TENSORBOARD = "tensorboard"
FILES = (RESULT, WEIGHTS, CHECKPOINT, METRICS, CONFIG, RECIPE)  # the recipe last when clearing

BUSY = (
    "{} is being written by another ferkd process; wait for it or stop it, then continue with "
    "--resume, or give another folder with --out"
)

# The first line of a run's recipe: how a run of ours is told from any other folder.
_HEADER = "# The resolved recipe of a run, written by ferkd train\n"

# Keys that do not change the result, so a run may be continued with others.
_FREE = (
    "data.workers",
    "data.worker_kind",
    "data.cache_dir",
    "data.cache_limit_gb",
    "evaluation.batch_size",
    "checkpoint_seconds",
    "tensorboard",
)


def prepare(folder: Path, recipe: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check that a run of ``recipe`` may write to ``folder``, changing nothing yet.

    Raises InputError for a folder in use without ``resume`` or ``overwrite``, for one that is not
    a run of ours, and for resuming with another recipe (naming the keys that differ).
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the run")
    if not folder.exists() or all(is_trace(file.name) for file in folder.iterdir()):
        return
    path = folder / RECIPE
    if not path.is_file() or not _is_ours(path):
        raise InputError(
            f"{folder} is not empty and not a run of ferkd, so nothing is written or deleted "
            "there; give another folder with --out"
        )
    if overwrite:
        return
    if not resume:
        raise InputError(
            f"{folder} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or give another folder with --out"
        )
    try:
        written = read_yaml(path, "recipe")
    except InputError as error:
        raise InputError(f"{error}; the file was changed: restore it") from None
    differing = differences(resolved(written), recipe)
    if differing:
        raise InputError(
            f"{folder} holds a run of another recipe:\n"
            + "\n".join(f"  {line}" for line in differing)
            + "\nresume with the same recipe, replace the run with --overwrite, or give another "
            "folder with --out"
        )


def is_trace(name: str) -> bool:
    """Whether a file's name is of what a run that was killed at its start leaves."""
    return name == LOCK or is_temporary(name)


def resolved(written: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe as this release writes it; as it is where this release does not take it."""
    from ferkd.training.recipe import make_recipe

    try:
        return make_recipe(written).to_dict()
    except InputError:
        return written


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER.encode()


def clear(folder: Path) -> None:
    """Delete the files of a run, and nothing else that may lie in its folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    sweep(folder)
    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)


def write_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Write the resolved recipe, atomically; this marks the folder as a run."""
    text = _HEADER + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_whole(folder / RECIPE, text.encode())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line "recipe.a.b: OLD in the run, NEW now" for each key that decides the result."""
    before, now = _flat(old), _flat(new)
    return [
        f"recipe.{key}: {_shown(before, key)} in the run, {_shown(now, key)} now"
        for key in {**before, **now}
        if key not in _FREE and before.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]


def recipe_hash(recipe: dict[str, Any]) -> str:
    """SHA-256 (hex) of the keys that decide the result."""
    kept = {key: value for key, value in _flat(recipe).items() if key not in _FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


_ABSENT = object()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of settings by dotted key; lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _shown(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "unset"
