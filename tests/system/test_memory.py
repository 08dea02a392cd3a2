"""Free memory: what the system says, within the limits of the control groups."""

from __future__ import annotations

import os

from ferkd.system.memory import free_memory, group_rooms


def test_the_rooms_of_control_groups_by_hand(tmp_path):
    """Version 2: 1000 - 700 + 50 that can be dropped; its parent 500 - 400. Version 1: 90 - 80."""
    two, one = tmp_path / "job" / "step", tmp_path / "memory" / "box"
    for folder, files in (
        (
            two,
            {"memory.max": 1000, "memory.current": 700, "memory.stat": "anon 1\ninactive_file 50"},
        ),
        (two.parent, {"memory.max": 500, "memory.current": 400, "memory.stat": ""}),
        (tmp_path, {"memory.max": "max", "memory.current": 1, "memory.stat": ""}),
        (one, {"memory.limit_in_bytes": 90, "memory.usage_in_bytes": 80, "memory.stat": ""}),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")
    listing = tmp_path / "groups"
    listing.write_text("0::/job/step\n4:memory:/box\n5:cpu:/job\n")
    assert sorted(group_rooms(listing, tmp_path)) == [10, 100, 350]
    listing.write_text("0::/not/seen\n")  # in a container
    assert group_rooms(listing, tmp_path) == []
    assert group_rooms(tmp_path / "none", tmp_path) == []


def test_free_memory_is_what_the_system_says_at_most():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory() < total
