"""What is wrong with a block of Python or YAML in a page, found without running it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

# What a recipe in a page may leave out, so that a card shows its own keys only.
USUAL = {
    "data": {"images": "photos/train"},
    "schedule": {"epochs": 1},
    "student": {"name": "timm/resnet18"},
}


def python_complaints(text: str) -> Iterator[str]:
    """Bad syntax, modules and members that are not there, unknown names, calls that do not bind."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node, known)
    bound = {*dir(builtins), *known, *_bound(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound:
            yield f"line {node.lineno}: the name {node.id!r} comes from nowhere"
        elif isinstance(node, ast.Attribute):
            yield from _member(node, known)
        elif isinstance(node, ast.Call):
            yield from _call(node, known)


def _imports(node: ast.Import | ast.ImportFrom, known: dict[str, Any]) -> Iterator[str]:
    for alias in node.names:
        module = alias.name if isinstance(node, ast.Import) else str(node.module)
        try:
            found: Any = importlib.import_module(module)
            if isinstance(node, ast.ImportFrom):
                if not hasattr(found, alias.name):  # a module of a package that is not loaded yet
                    importlib.import_module(f"{module}.{alias.name}")
                found = getattr(found, alias.name)
        except ImportError as error:
            yield f"line {node.lineno}: {error}"
            continue
        if isinstance(node, ast.Import) and alias.asname is None:
            top = module.partition(".")[0]
            known[top] = importlib.import_module(top)
        else:
            known[alias.asname or alias.name] = found


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _object(node: ast.expr, known: dict[str, Any]) -> Any:
    """What ``ferkd.objectives.build`` and the like are; None where only running tells."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _object(node.value, known)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            return getattr(owner, node.attr, None)
    return None


def _member(node: ast.Attribute, known: dict[str, Any]) -> Iterator[str]:
    owner = _object(node.value, known)
    if (inspect.ismodule(owner) or inspect.isclass(owner)) and not hasattr(owner, node.attr):
        yield f"line {node.lineno}: {owner.__name__} has no {node.attr!r}"


def _call(node: ast.Call, known: dict[str, Any]) -> Iterator[str]:
    called = _object(node.func, known)
    starred = any(isinstance(a, ast.Starred) for a in node.args)
    if called is None or starred or any(k.arg is None for k in node.keywords):
        return
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # built in, without one
        return
    try:
        signature.bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
    except TypeError as error:
        yield f"line {node.lineno}: {ast.unparse(node.func)}: {error}"


def yaml_complaints(text: str) -> Iterator[str]:
    """A block with ``methods`` must be a suite; one with ``method`` a recipe, or a part of one."""
    from ferkd.study.compare.suite import make_suite
    from ferkd.system.errors import InputError
    from ferkd.system.plain import parse_yaml
    from ferkd.training.recipe import make_recipe

    try:
        settings = parse_yaml(text, "the block")
        if "methods" in settings:
            make_suite(settings)
        elif "method" in settings:
            make_recipe(_over(USUAL, settings))
    except InputError as error:
        yield str(error)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _over(below[key], above[key])
    return both
