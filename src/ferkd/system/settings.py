"""Settings: strict models of them, and what is wrong with those given, a readable line each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError

from ferkd.system.errors import InputError

_SCALARS = ("bool", "int", "float")


def _strict(schema: Any) -> Any:
    """The schema with every number and truth value in it strict."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if isinstance(schema, tuple):
        return tuple(_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    # What "metadata" holds is no schema; the values of "expected" are those of a Literal.
    inner = {k: v if k in ("metadata", "expected") else _strict(v) for k, v in schema.items()}
    return {**inner, "strict": True} if inner.get("type") in _SCALARS else inner


class Part(BaseModel):
    """A part of a tree of settings: frozen, no unknown keys, no number but a finite number.

    Numbers and truth values are taken strictly: True is no number, "3" and 3.0 are no whole
    numbers, 1 is not True. Lists become tuples and text becomes paths as usual, for YAML has
    neither.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Pydantic's own strict mode would refuse lists for tuples as well.
        schema: CoreSchema = _strict(handler(source))
        return schema


def check_share(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is a share, 0 to 1; NaN is none."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value:g}; it is a share and must be 0 to 1")


def check_seed(value: int) -> None:
    """Raise InputError unless ``value`` is a seed, from 0 and below 2^63."""
    if not 0 <= value < 2**63:
        raise InputError(f"seed is {value}; it must be at least 0 and below 2^63")


def check_least(least: int, **values: int) -> None:
    """Raise InputError for the first of ``values``, by name, that is below ``least``."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")


def explained(error: InputError) -> PydanticCustomError:
    """A mistake that is said already, line by line, for a validator to raise."""
    return PydanticCustomError("explained", "{lines}", {"lines": str(error)})


def rule(message: str) -> str:
    """A message of pydantic as the rule that was broken: "must be a valid integer"."""
    words = message.removeprefix("Value error, ")  # of a ValueError that a validator raised
    must = words.removeprefix("Input should be ")
    return words if must == words else f"must be {must}"


def explain(error: ValidationError, model: type[BaseModel], root: str) -> list[str]:
    """One readable line for each mistake, in the order of the keys."""
    lines: dict[str, list[str]] = {}
    hints: dict[str, str] = {}
    said: list[str] = []
    for item in error.errors():
        if item["type"] == "explained":
            said += item["msg"].splitlines()
            continue
        path, owner = _place(item["loc"], model)
        key = ".".join([root, *path])
        rule = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            rule = f"unknown key; {_suggestion(path, owner, model)}"
        elif item["type"] == "missing" and item["loc"] == tuple(path):
            rule = "missing; a value is needed"
        elif item["type"] == "missing":  # in a list of fixed length
            rule = "must be a longer list"
        elif item["type"] == "model_type":
            rule = f"got {item['input']!r}; must be a mapping of keys to values"
        elif rule != item["msg"] and item["type"] != "value_error":
            rule = f"got {item['input']!r}; must be {rule}"
            if hint := _reading(item["type"], item["input"]):
                hints[key] = f" ({hint})"
        lines.setdefault(key, []).append(rule)
    return said + [f"{key}: {_joined(rules)}{hints.get(key, '')}" for key, rules in lines.items()]


def _reading(kind: str, value: object) -> str | None:
    """How YAML read a value that is of another type than was meant."""
    if kind not in ("bool_type", "int_type", "float_type", "string_type", "literal_error"):
        return None
    if isinstance(value, bool):
        word = "text" if kind in ("string_type", "literal_error") else "number"
        remedy = "put it in quotes" if word == "text" else "write the number"
        return f"YAML reads yes, on and true as True, no, off and false as False; {remedy}"
    if kind == "int_type" and isinstance(value, float):
        whole = f"write {value:.0f}" if value.is_integer() else "write it without a fraction"
        return f"YAML reads 1e3 and 2.0 as numbers with a fraction; {whole}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "in quotes it is text, not a number" if _is_number(value) else None
    if kind == "string_type" and value is not None and not isinstance(value, list | dict):
        return "YAML reads it as a number or a date; put it in quotes"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _joined(rules: list[str]) -> str:
    """The rules of one key; a key with several allowed forms breaks one rule for each."""
    head, separator, _ = rules[0].partition("; must be ")
    if separator and all(rule.startswith(head + separator) for rule in rules):
        return head + separator + " or ".join(r.removeprefix(head + separator) for r in rules)
    return "; ".join(dict.fromkeys(rules))


def _place(loc: Sequence[int | str], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The key path of an error and the model that owns its last key.

    Pydantic's location also names the alternatives of a union, which are no keys of ours.
    """
    path: list[str] = []
    owner = model
    for part in loc:
        path.append(str(part))
        field = owner.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        if len(path) < len(loc):
            owner = inner
    return path, owner


def _suggestion(path: list[str], owner: type[BaseModel], model: type[BaseModel]) -> str:
    """What an unknown key may have meant: a sibling, or a key elsewhere in the tree."""
    near = difflib.get_close_matches(path[-1], owner.model_fields, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    keys = {key.rpartition(".")[2]: key for key in reversed(_keys(model))}
    near = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.75)
    if near:
        return f"did you mean {keys[near[0]]!r}?"
    return f"known keys: {', '.join(owner.model_fields)}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a model's tree."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _keys(inner, f"{prefix}{name}.")
    return keys
