"""What a store, a server or a folder made by somebody else can try."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from stores import everything, write_store

from ferkd.store.checking import ChecksumCheck
from ferkd.store.fkd.files import DamagedLabels, read_label_file
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import read_plain, write_whole


def test_a_planted_link_at_a_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    """Should the name be guessed that is drawn anew at each write, the write fails."""
    planted = tmp_path / ".out.json.guessed.tmp"
    monkeypatch.setattr("ferkd.system.files.temporary", lambda path: planted)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted.symlink_to(victim)
    with pytest.raises(InputError, match=r"out\.json cannot be written: File exists"):
        write_whole(tmp_path / "out.json", b"new")
    assert victim.read_text() == "precious" and not (tmp_path / "out.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes of POSIX")
@pytest.mark.parametrize("kind", ["device", "link to a device", "pipe", "folder"])
def test_what_is_no_plain_file_is_neither_waited_for_nor_read(tmp_path, kind):
    path = tmp_path / "label.tar"
    if kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"no plain file|directory"):
        read_plain(path, 100)
    with pytest.raises(DamagedLabels, match="cannot be read"):
        read_label_file(path)


def test_a_plain_file_is_read_up_to_its_limit_through_a_link_too(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert read_plain(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="larger"):
        read_plain(tmp_path / "f", 4)


def test_no_more_than_the_limit_is_taken_from_a_server(tmp_path):
    storage.write("memory://limits/f", b"12345")
    assert storage.read("memory://limits/f", 5) == b"12345"
    with pytest.raises(InputError, match="more than 4 bytes"):
        storage.read("memory://limits/f", 4)
    assert storage.read("memory://limits/absent", 4) is None


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_pipe_in_place_of_a_file_of_the_store_is_named(tmp_path):
    store = write_store(tmp_path / "s")
    (tmp_path / "s/images.npy").unlink()
    os.mkfifo(tmp_path / "s/images.npy")
    with pytest.raises(InputError, match="no plain file of"):
        _ = store.images


def test_a_flipped_byte_is_found_beside_the_work(tmp_path):
    store = write_store(tmp_path / "whole")
    ChecksumCheck(store).require(ended=True)
    damaged = write_store(tmp_path / "s")
    path = tmp_path / "s" / damaged.files[-1].name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    check = ChecksumCheck(damaged)
    with pytest.raises(InputError, match=r"damaged.*SHA-256.*start anew"):
        check.require(ended=True)


def test_the_truth_of_images_without_one_is_not_known(tmp_path):
    store = write_store(tmp_path / "s")
    true = everything(store).true_log_prob
    assert true is not None
    without = np.repeat(store.targets < 0, store.crops_per_image)
    assert without.any() and not without.all()
    assert (np.isnan(true.numpy()) == without).all()
