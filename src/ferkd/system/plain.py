"""Plain data from files that others wrote: YAML and JSON, bounded, and never more than data.

Sizes are bounded while reading, so a device or an endless file costs no more than a large one.
YAML's aliases are refused: by naming one value many times, a few hundred bytes of them stand for
gigabytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ferkd.system.errors import InputError

YAML_BYTES = 1 << 20  # a recipe has about a thousand bytes, a suite of many methods ten thousand
JSON_BYTES = 1 << 26  # a run's configuration with the names of 21,841 classes has half a million


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a regular file of at most ``limit``. Raises OSError, and InputError for more
    bytes or for what is no regular file."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give the {what} as one")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path} is longer than the {limit:,} bytes that a {what} may have")
    return data


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; OSError where it cannot be read, InputError for what is wrong."""
    data = read_bounded(path, YAML_BYTES, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as UTF-8 ({error}); save the {what} so") from None
    return parse_yaml(text, str(path), what)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; OSError where it cannot be read, InputError for what is wrong."""
    data = read_bounded(path, JSON_BYTES, what)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or no {what} ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no {what}: it holds a {type(value).__name__}")
    return value


def parse_yaml(text: str, source: str, what: str = "recipe") -> dict[str, Any]:
    """A mapping from YAML; InputError names ``source`` and the line of a mistake."""
    settings = yaml_value(text, source)
    if not isinstance(settings, dict):
        raise InputError(
            f"{source}: a {what} is a mapping of keys to values, not {type(settings).__name__}"
        )
    return settings


def yaml_value(text: str, source: str) -> Any:
    """What a YAML text stands for, plain data only; InputError names ``source`` and the line."""
    if len(text) > YAML_BYTES:
        raise InputError(f"{source}: longer than the {YAML_BYTES:,} bytes that YAML may have here")
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        cause = getattr(error, "problem", None) or _first_line(error)
        raise InputError(f"{source}{where}: not valid YAML: {cause}") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: nested too deeply") from None
    except (ValueError, OverflowError) as error:  # dates and numbers that cannot be
        raise InputError(f"{source}: not valid YAML: {_first_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with what it would take silently refused, and 1e-3 read as a number.

    A key that is given twice (YAML would keep the last), an alias, and numbers that YAML 1.1 reads
    to base 8 (010) or 60 (1:30) are mistakes.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _mistake(f"the alias *{event.anchor} is not taken; write the value out", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _mistake(f"key {key.value!r} is given twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value or re.match(r"[-+]?0[0-9_]+$", node.value):
            raise _mistake(
                f"{node.value} is a number to base 8 or 60 in YAML; write it to base 10, or in "
                "quotes if it is text",
                node,
            )
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        return float(self.construct_yaml_float(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_decimal)
# YAML 1.1 takes 1e-3 for text, for it wants a point and a signed exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _mistake(problem: str, at: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
