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
from ferkd.system.interrupt import NotBegun
from ferkd.system.locks import LOCK, held
from ferkd.system.plain import read_json

MARKER, RESULT, REPORT = "distill.json", "result.json", "report.html"
REPLACED = ".replaced"  # what --overwrite replaces, until the new plan stands

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

    @property
    def planned(self) -> bool:
        """Whether everything was chosen: from here on there is something to continue."""
        return "plan" in self.content

    def plan(self, **chosen: Any) -> None:
        """Remember what was chosen, and let go of the distillation that this one replaces."""
        self.save(**chosen)
        _settle_aside(self.path.parent)

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
def claimed(out: Path, settings: Settings, *, resume: bool, overwrite: bool) -> Iterator[State]:
    """Take a folder for this process alone, or refuse it; yields what it remembers.

    Nothing but a distillation's own files is ever removed, and those of a distillation that is
    replaced only once the new one has a plan (:meth:`State.plan`). Raises InputError for a
    folder that is in use, holds other files, or was begun with other settings, and NotBegun where
    an interrupt left the older distillation in its place.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    with held(out, _BUSY.format(out)):
        _settle_aside(out)  # a process that was killed may have left it
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
        elif found:
            _set_aside(out)
        if not (out / MARKER).is_file():
            write_json(out / MARKER, {"settings": settings.to_dict()})
        state = State(out)
        try:
            yield state
        except BaseException as error:
            # Refused: not begun. Stopped before its plan: what it would have replaced returns.
            replacing = (out / REPLACED).is_dir()
            if (isinstance(error, InputError) or replacing) and not state.planned:
                _withdraw(out)
                _settle_aside(out)
                if replacing and isinstance(error, KeyboardInterrupt):
                    raise NotBegun from error  # --resume would go on with the old one
            elif isinstance(error, InputError):
                raise InputError(
                    f"{error}. What is finished is kept in {out}; go on with --resume"
                ) from error
            raise


# What --overwrite replaces waits in a folder of its own, whose marker says how far that went: it
# arrives there last, returns first and is removed last. So a kill at any instant loses nothing.


def _set_aside(out: Path) -> None:
    aside = out / REPLACED
    aside.mkdir()
    for path in list(out.iterdir()):
        if _OURS.fullmatch(path.name):
            path.rename(aside / path.name)
    (out / MARKER).rename(aside / MARKER)


def _settle_aside(out: Path) -> None:
    """Remove what a planned distillation replaced; bring back what another would have replaced."""
    aside = out / REPLACED
    if not aside.is_dir():
        return
    marker = aside / MARKER
    if marker.is_file() and State(out).planned:
        for path in list(aside.iterdir()):
            if path != marker:
                _remove(path)
        marker.unlink()
    else:
        if marker.is_file():
            _withdraw(out)
            marker.rename(out / MARKER)
        for path in list(aside.iterdir()):
            path.rename(out / path.name)
    aside.rmdir()


def _withdraw(out: Path) -> None:
    """Remove what a distillation without a plan has written."""
    for path in list(out.iterdir()):
        if _OURS.fullmatch(path.name):
            _remove(path)
    (out / MARKER).unlink(missing_ok=True)


def _is_trace(name: str) -> bool:
    return name == LOCK or is_temporary(name)


def _remove(path: Path) -> None:
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
