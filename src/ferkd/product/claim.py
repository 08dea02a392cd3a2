"""The folder of a distillation: who may write there, and what it remembers between calls."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferkd.product.settings import Settings
from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary, write_json
from ferkd.system.locks import LOCK, held
from ferkd.system.plain import read_json

MARKER, RESULT, REPORT = "distill.json", "result.json", "report.html"

_OURS = re.compile(
    r"(student|baseline)(-\d+)?(\.yaml)?|data|teacher|labels|model|report\.html|result\.json"
)
_BUSY = (
    "{} is being written by another ferkd distill; wait for it or stop it, then continue with "
    "--resume, or give another --out"
)


class State:
    """What a distillation has chosen, and the seconds spent by phase, over all calls."""

    def __init__(self, out: Path) -> None:
        self.path = out / MARKER
        self.content = read_json(self.path, "distillation") if self.path.is_file() else {}

    def save(self, **more: Any) -> None:
        self.content |= more
        write_json(self.path, self.content)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = dict(self.content.get("seconds", {}))
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begun
            self.save(seconds=seconds)

    def seconds(self, phase: str) -> float:
        return float(self.content.get("seconds", {}).get(phase, 0.0))


@contextmanager
def claimed(out: Path, settings: Settings, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Take a folder for this process alone, or refuse it.

    Nothing but a distillation's own files is ever removed. Raises InputError for a folder that is
    in use, holds other files, or was begun with other settings.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    with held(out, _BUSY.format(out)):
        found = [path for path in out.iterdir() if not _is_trace(path.name)]
        if found and not (out / MARKER).is_file():
            raise InputError(
                f"{out} is not empty and not a distillation's folder; give another --out"
            )
        if found and not resume and not overwrite:
            raise InputError(
                f"{out} holds a distillation already; continue it with --resume, replace it with "
                "--overwrite, or give another --out"
            )
        if found and resume:
            _refuse_others(out, settings.to_dict())
        else:
            for path in found:
                _remove(path)
            write_json(out / MARKER, {"settings": settings.to_dict()})
        try:
            yield
        except InputError:
            if "plan" not in State(out).content:  # nothing was chosen: refused, so not begun
                for path in out.iterdir():
                    _remove(path)
                (out / MARKER).unlink(missing_ok=True)
            raise


def _free(out: Path) -> None:
    """Give a folder back where nothing was planned: what was refused is no distillation begun."""
    if "plan" in State(out).content:
        return
    for path in out.iterdir():
        _remove(path)
    (out / MARKER).unlink(missing_ok=True)


def _is_trace(name: str) -> bool:
    return name == LOCK or is_temporary(name)


def _remove(path: Path) -> None:
    if not _OURS.fullmatch(path.name):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refuse_others(out: Path, wanted: dict[str, Any]) -> None:
    before = read_json(out / MARKER, "distillation").get("settings", {})
    changed = [key for key in wanted if before.get(key) != wanted[key]]
    if changed:
        raise InputError(
            f"{out} was begun with other settings ("
            + ", ".join(f"{k} was {before.get(k)!r}, now {wanted[k]!r}" for k in changed)
            + "); resume with the same ones, or start again with --overwrite"
        )
