"""What the benchmarks share: their options and the form of their results.

Nothing but the standard library is imported, for older versions of ferkd run some of them too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of options, --json among them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result too")
    return parser


def tell(result: dict[str, Any], file: Path | None) -> None:
    """Print a result as JSON, and write it to ``file`` unless that is None."""
    text = json.dumps(result, indent=1) + "\n"
    if file is not None:
        file.write_text(text)
    print(text, end="")
