"""Files are whole or absent, also when writing fails."""

from __future__ import annotations

import json
import os
import stat

import pytest

from ferkd.system.files import whole_file, write_json, write_whole


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="file modes are those of POSIX")
def test_the_file_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_keeps_names_readable(tmp_path):
    write_json(tmp_path / "a.json", {"class": "Blüte"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Blüte" in text and json.loads(text) == {"class": "Blüte"}
