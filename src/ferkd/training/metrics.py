"""The record of a run: one JSON object a line, and TensorBoard if asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferkd.system.errors import InputError
from ferkd.system.files import write_whole, writing
from ferkd.system.plain import read_bounded

Line = dict[str, Any]
log = logging.getLogger("ferkd")
_MOST_BYTES = 1 << 28  # a line has about 150


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics file; a torn last line (of a killed run) is left out."""
    lines: list[Line] = []
    if path.exists():
        data = read_bounded(path, _MOST_BYTES, "run's metrics")
        for text in data.decode("utf-8", "replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not (isinstance(line, dict) and {"kind", "step"} <= line.keys()):
                break
            lines.append(line)
    return lines


class MetricsLog:
    """Appends lines to ``path``; on opening, lines after step ``keep`` are cut away.

    A run continued from a checkpoint of step s opens with ``keep=s``, so that no step is listed
    twice; lines that are not ``known`` go too. ``tensorboard`` is a folder for TensorBoard's event
    files, or None. A record that can no longer be written is said once, and the run goes on.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: int = 0,
        known: Callable[[Line], bool] = lambda line: True,
        tensorboard: Path | None = None,
    ) -> None:
        self._failed: set[str] = set()
        self._board = _summary_writer(tensorboard, keep) if tensorboard else None
        kept = [line for line in read_metrics(path) if line["step"] <= keep and known(line)]
        text = "".join(_dump(line) for line in kept) if keep else ""
        write_whole(path, text.encode())
        with writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Append one line; it has at least "kind" and "step"."""
        with self._optional("metrics.jsonl"):
            self._file.write(_dump(line))
            self._file.flush()
        with self._optional("the record for TensorBoard"):
            self._show(line)

    def _show(self, line: Line) -> None:
        if self._board is not None:
            for key, value in line.items():
                if key not in ("kind", "step") and isinstance(value, int | float):
                    self._board.add_scalar(f"{line['kind']}/{key}", value, line["step"])

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint that relies on it."""
        with self._optional("metrics.jsonl"):
            os.fsync(self._file.fileno())
        with self._optional("the record for TensorBoard"):
            if self._board is not None:
                self._board.flush()

    def close(self) -> None:
        with self._optional("metrics.jsonl"):
            self._file.close()
        with self._optional("the record for TensorBoard"):
            if self._board is not None:
                self._board.close()

    @contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Say once that this part of the record fails, which costs no run."""
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                log.warning("%s lacks lines from here on: %s", what, error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def require_tensorboard() -> None:
    """Raise InputError, naming the extra, if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "tensorboard: true needs the package tensorboard, which is not installed; "
            'pip install "ferkd[tensorboard]", or set tensorboard: false'
        ) from None


def _summary_writer(folder: Path, keep: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=keep + 1 if keep else None)


def _dump(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
