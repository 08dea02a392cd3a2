"""What is taken by name: files of a room, entry points of other packages, package.module:name."""

from __future__ import annotations

import difflib
import importlib
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from os import getcwd
from typing import Any, Generic, TypeVar

from ferkd.system.errors import InputError

T = TypeVar("T")

log = logging.getLogger("ferkd")

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def import_object(spec: str, what: str) -> Any:
    """The object that ``package.module:name`` names; ``what`` it is stands in messages.

    Importing runs the module's code. A module of the working directory is found after all that is
    installed. Raises InputError for what is not there and for a module that fails.
    """
    module_name, _, name = spec.partition(":")
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} {spec}: {module_name} cannot be imported ({type(error).__name__}: {error}); "
            "install it, or run where its file lies"
        ) from error
    if not hasattr(module, name):
        raise InputError(
            f"{what} {spec}: {module_name} has no {name}; {did_you_mean(name, dir(module))}"
        )
    return getattr(module, name)


def _import(name: str) -> Any:
    here = getcwd()
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def did_you_mean(name: str, known: list[str]) -> str:
    """The remedy for an unknown name."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


class Table(Mapping[str, T], Generic[T]):
    """All things of one kind by name.

    ``room`` is the package whose modules each may hold one, as the constant ``constant``; its name
    is its attribute ``name``, or else the module's. Or ``own`` names them. ``group`` is that of the
    entry points by which other packages add theirs. Besides, any is found as
    ``package.module:name``. ``check`` says what is wrong with a thing from elsewhere, or None.
    Things are imported when they are asked for.
    """

    def __init__(
        self,
        what: str,
        group: str,
        check: Callable[[Any], str | None],
        *,
        room: str = "",
        constant: str = "",
        own: dict[str, T] | None = None,
    ) -> None:
        self.what, self.room, self.constant = what, room, constant
        self.group, self.check, self._given = group, check, own

    @cached_property
    def own(self) -> dict[str, T]:
        """Those of the room."""
        if self._given is not None:
            return self._given
        found: dict[str, T] = {}
        for entry in pkgutil.iter_modules(importlib.import_module(self.room).__path__):
            module = importlib.import_module(f"{self.room}.{entry.name}")
            thing = getattr(module, self.constant, None)
            if thing is not None:
                found[getattr(thing, "name", entry.name)] = thing
        return found

    @cached_property
    def _others(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name in self.own:
                log.warning(
                    "%s %s of %s has the name of one of ferkd's, which is used instead",
                    *(self.what, point.name, _owner(point)),
                )
            elif point not in found.setdefault(point.name, []):
                found[point.name].append(point)
        return found

    def __getitem__(self, name: str) -> T:
        """Raises InputError for what is not known, cannot be imported, or is of another kind."""
        if name in self.own:
            return self.own[name]
        if name in self._others:
            first, *more = self._others[name]
            if more:
                raise InputError(
                    f"{self.what} {name} is brought by {_owner(first)} and "
                    f"{', '.join(map(_owner, more))}; uninstall all but one"
                )
            whose = f"{name} of {_owner(first)}"
            return self._checked(import_object(first.value, self.what), whose)
        if _OBJECT.fullmatch(name):
            return self._checked(import_object(name, self.what), name)
        raise InputError(
            f"unknown {self.what} {name!r}; {did_you_mean(name, list(self))}, or write "
            "package.module:name"
        )

    def _checked(self, thing: Any, name: str) -> T:
        if (wrong := self.check(thing)) is not None:
            raise InputError(f"{self.what} {name} {wrong}")
        found: T = thing
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._others

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self._others

    def __len__(self) -> int:
        return len(self.own) + len(self._others)


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
