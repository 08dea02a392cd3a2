"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes of memory that this process may still take, within the limits of its control groups."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = meminfo.read_text().splitlines()
        available = [line for line in lines if line.startswith("MemAvailable:")]
        free = int(available[0].split()[1]) * 1024 if available else free
    return min([free, *group_rooms(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def group_rooms(listing: Path, mounted: Path) -> list[int]:
    """What the limits of a process's control groups leave it, of both versions, in bytes.

    ``listing`` names its groups, one "number:controllers:folder" a line, whose folders lie below
    ``mounted``; the limits of the folders above hold too. Pages of files that were read and can be
    dropped do not count as used. Groups without a limit give nothing.
    """
    rooms = []
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, controllers, folder = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        if controllers:
            top, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            top, names = mounted, ("memory.max", "memory.current")
        inside = top / folder.lstrip("/")
        # In a container the folder is often not to be seen, and its own limit stands at the top.
        for place in [inside, *inside.parents]:
            if place.is_relative_to(top) and (room := _room(place, *names)) is not None:
                rooms.append(room)
    return rooms


def _room(group: Path, limit: str, used: str) -> int | None:
    try:
        room = int((group / limit).read_text()) - int((group / used).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                room += int(line.split()[1])
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, room)
