"""The command ``ferkd doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from ferkd.cli.console import show, table
from ferkd.cli.options import Json
from ferkd.system import text as texts


def register(app: typer.Typer) -> None:
    """Add the command of this file to the ``ferkd`` command."""
    app.command()(doctor)


def doctor(as_json: Json = False) -> None:
    """Versions, devices, threads, what is missing for which extra, and likely problems."""
    from ferkd.system.doctor import examine

    found = examine()
    show(found, _text(found), as_json)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is not None and name == "shared_memory":
        return f"{texts.size(value)} free"
    return "-" if value is None else value


def _text(found: Mapping[str, Any]) -> str:
    parts = []
    for title in ("versions", "devices", "threads", "limits"):
        rows = [(f"  {name}", _value(name, v)) for name, v in found[title].items()]
        parts.append(f"{title}\n{table(rows)}")
    extras = [
        (
            f"  {name}",
            f"needs {', '.join(lacks)}: pip install 'ferkd[{name}]'" if lacks else "there",
        )
        for name, lacks in found["extras"].items()
    ]
    parts.append(f"extras\n{table(extras)}")
    lines = [f"  {line}" for line in found["problems"]] or ["  none found"]
    parts.append("\n".join(["problems", *lines]))
    return "\n\n".join(parts)
