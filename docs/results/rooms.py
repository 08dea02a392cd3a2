"""The picture of imports in numbers: rooms, floors, arrows, circles, imports upwards, lines.

    python docs/results/rooms.py                  # this tree
    git worktree add ../before 10c59e9~1          # the tree before it was re-laid
    python docs/results/rooms.py ../before/src

A room is a module or package directly under `ferkd`. An arrow is a pair of rooms of which one
imports from the other, inside functions too, for type checking alone not. Floors are the longest
chain of arrows, a circle counted as one room. Upwards run the imports that the layers in
pyproject.toml forbid; a tree without layers has none to run against.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ferkd"


def arrows(graph: grimp.ImportGraph) -> Counter[tuple[str, str]]:
    """How many imports between modules each arrow stands for."""
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            ends = room(module), room(other)
            if ends[0] != ends[1] and "" not in ends:
                found[ends] += 1
    return found


def room(module: str) -> str:
    """The room of a module; "" for the package's own front."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def circles(rooms: set[str], pairs: set[tuple[str, str]]) -> list[set[str]]:
    """The rooms that reach each other, circle by circle."""

    @cache
    def reached(start: str) -> frozenset[str]:
        seen, edge = set[str](), {start}
        while edge:
            edge = {b for a, b in pairs if a in edge} - seen
            seen |= edge
        return frozenset(seen)

    found: list[set[str]] = []
    for one in sorted(rooms):
        circle = {other for other in reached(one) if one in reached(other)}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def floors(rooms: set[str], pairs: set[tuple[str, str]], round_: list[set[str]]) -> int:
    """The longest chain of arrows, in rooms."""
    name = {one: min(next((c for c in round_ if one in c), {one})) for one in rooms}
    below = {(name[a], name[b]) for a, b in pairs if name[a] != name[b]}

    @cache
    def height(one: str) -> int:
        return 1 + max((height(b) for a, b in below if a == one), default=0)

    return max(height(name[one]) for one in rooms)


def layers() -> dict[str, int]:
    """The floor of each room by pyproject.toml, 0 the highest."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    order = next(c["layers"] for c in rules["contracts"] if c["type"] == "layers")
    return {room(one.strip()): i for i, line in enumerate(order) for one in line.split("|")}


def main() -> None:
    src = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "src"
    sys.path.insert(0, str(src))
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    found = arrows(graph)
    rooms, pairs = {end for ends in found for end in ends}, set(found)
    round_ = circles(rooms, pairs)
    order = layers()
    up = {e: n for e, n in found.items() if order.get(e[0], 0) > order.get(e[1], 99)}
    lines = {
        one: sum(len(f.read_bytes().splitlines()) for f in files_of(src / PACKAGE / one))
        for one in sorted(rooms)
    }
    print(f"rooms {len(rooms)}, floors {floors(rooms, pairs, round_)}, arrows {len(pairs)}")
    inside = sum(n for ends, n in found.items() if any(set(ends) <= c for c in round_))
    print(f"circles {len(round_)}, imports in them {inside}")
    print("".join(f"  {' '.join(sorted(circle))}\n" for circle in round_), end="")
    print(f"imports upwards {sum(up.values())}" + "".join(f"\n  {a} -> {b}" for a, b in up))
    for one, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{count:6} {one}")
    print(f"{sum(lines.values()):6} in all, {len(graph.modules)} modules")


def files_of(place: Path) -> list[Path]:
    """The Python files of a room: a package or a module."""
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


if __name__ == "__main__":
    main()
