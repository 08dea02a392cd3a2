"""Dataclasses of tensors as nodes of torch's trees, so that others' tools reach the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

# Underscored, but the one place where classes of other packages can be registered.
from torch.utils import _pytree

_T = TypeVar("_T")


def tree_node(*constants: str) -> Callable[[type[_T]], type[_T]]:
    """Make a dataclass a node of torch's pytrees; its fields ``constants`` are no part of the tree.

    ``tree_map(lambda t: t[:2], node)`` and the like then give another of its class. Fields that
    are None are left out, so that every leaf is a tensor.
    """

    def register(cls: type[_T]) -> type[_T]:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]

        def flatten(node: Any) -> tuple[list[Any], Any]:
            held = tuple(n for n in names if n not in constants and getattr(node, n) is not None)
            kept = tuple((name, getattr(node, name)) for name in constants)
            return [getattr(node, name) for name in held], (held, kept)

        def unflatten(children: Iterable[Any], context: Any) -> Any:
            held, kept = context
            absent = {name: None for name in names if name not in held and name not in constants}
            return cls(**absent, **dict(zip(held, children, strict=True)), **dict(kept))

        _pytree.register_pytree_node(
            cls, flatten, unflatten, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}"
        )
        return cls

    return register
