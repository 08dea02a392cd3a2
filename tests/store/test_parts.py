"""Parts of an unfinished store that are damaged, or foreign, are named; none is joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from known_stores import IDS, store_settings, write_part

from ferkd.store.parts import is_whole
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError

MEMBERS = ("ids", "images", "boxes", "flips", "records", "skipped")


@pytest.fixture
def folder(tmp_path) -> Path:
    with StoreWriter(tmp_path / "s", store_settings(), len(IDS)) as writer:
        for number in writer.missing():
            write_part(writer, number)
    return tmp_path / "s"


def read(path: Path) -> dict[str, bytes] | None:
    """What a writer reads of a part; None where it says that the part is damaged."""
    writer = StoreWriter(path.parents[1], store_settings(), len(IDS), resume=True)
    try:
        with writer._read(int(path.stem)) as part:
            return {name: part[name].tobytes() for name in MEMBERS}
    except InputError as error:
        assert f"{path} is damaged" in str(error) and "--resume" in str(error)
        return None


@pytest.mark.filterwarnings("ignore")  # zipfile's of a name that appears twice
def test_any_changed_byte_is_damage_or_changes_nothing(folder):
    """Also one that makes of a member an encrypted, a compressed or a newer one."""
    path = folder / "parts/000001.npz"
    data = path.read_bytes()
    whole, named = read(path), 0
    assert whole is not None and is_whole(path)
    for place in range(len(data)):
        for mask in (1, 8) if place % 4 else (0xFF,):
            changed = bytearray(data)
            changed[place] ^= mask
            path.write_bytes(changed)
            is_whole(path)
            found = read(path)
            assert found is None or found == whole
            named += found is None
    assert named > len(data)  # of 1.75 times as many trials
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        assert not is_whole(path) and read(path) is None


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("images", np.zeros(2)),
        ("images", np.zeros(0)),
        ("images", np.zeros(2, [("id_end", "<u8"), ("target", "<i4")])),
        ("ids", np.zeros(27)),
        ("ids", np.zeros(3, "u1")),
        ("flips", np.zeros((2, 2), "u1")),
        ("boxes", np.zeros((2, 3, 4))),
        ("records", np.zeros((2, 3))),
        ("skipped", np.zeros(3, "u1")),
        ("skipped", np.frombuffer(b'{"id": 1}', "u1")),
        ("skipped", np.frombuffer(b'[{"id": 1}]', "u1")),
    ],
)
def test_a_part_of_other_arrays_is_not_joined(folder, name, foreign):
    path = folder / "parts/000001.npz"
    with np.load(path) as part:
        members = {member: part[member] for member in MEMBERS}
    with path.open("wb") as file:
        np.savez(file, **{**members, name: foreign})
    assert is_whole(path)
    with StoreWriter(folder, store_settings(), len(IDS), resume=True) as writer:
        with pytest.raises(InputError, match=r"000001.npz .*delete it and continue with --resume"):
            writer.finish()
        path.unlink()
        write_part(writer, 1)
        assert len(writer.finish()) == len(IDS)
