"""Results as frozen dataclasses that are read by attribute, and by key as the JSON they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Self

from ferkd.system.errors import InputError


@dataclass(frozen=True, eq=False)
class Result(Mapping[str, Any]):
    """What a function found: frozen fields, which are the keys of one JSON object.

    A field whose default is None is no key where it is None: there is nothing to say. None in any
    other field is null. ``result.top1`` and ``result["top1"]`` are the same, ``dict(result)`` is
    the object, and :func:`ferkd.system.files.write_json` takes it as it is. A result equals any
    mapping of the same keys and values.
    """

    def __getitem__(self, key: str) -> Any:
        if key not in set(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if not self._is_left_out(f))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _is_left_out(self, of: Field[Any]) -> bool:
        return of.default is None and getattr(self, of.name) is None

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: object) -> Self:
        """The result that was written to ``where``; keys of another version are passed over.

        Raises InputError where a key is missing.
        """
        known = {f.name: found[f.name] for f in fields(cls) if f.name in found}
        missing = [f.name for f in fields(cls) if f.name not in known and _is_required(f)]
        if missing:
            raise InputError(
                f"{where} has no {', '.join(missing)}, so it is not the result of this command; "
                "restore the file, or delete it to have it made again"
            )
        return cls(**known)


def _is_required(of: Field[Any]) -> bool:
    return of.default is MISSING and of.default_factory is MISSING


def as_object(value: Any) -> dict[str, Any]:
    """The ``default`` of :func:`json.dumps`: results, and other mappings, are JSON objects."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON holds")
