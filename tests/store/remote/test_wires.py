"""Wires that break while a label store is on them, and secrets, which go nowhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pytest
import s3_server
from hypothesis import given
from hypothesis import strategies as st
from known_stores import write_store
from published import NAMES, same

from ferkd.store import LabelStore
from ferkd.store.publish import fetch, publish
from ferkd.system.errors import InputError
from ferkd.system.storage import join, masked


@pytest.fixture
def big(tmp_path) -> LabelStore:
    """A store whose files are too large for the first packets."""
    ids = [f"{i:04}/{'x' * 60}.jpg" for i in range(600)]
    return write_store(tmp_path / "big", ids, part_images=600)


@pytest.mark.parametrize("after", [0, 700, 30_000])
def test_a_connection_that_ends_mid_write(big, s3, tmp_path, after):
    """Once: tried again. Always: a clear error, no store, nothing torn; then continued."""
    url = f"s3://bucket/{tmp_path.name}"
    with s3_server.broken_wire(s3) as wire:
        with pytest.raises(InputError, match="no label store"):
            LabelStore.open(url)
        wire.break_(up=after, cuts=1000)
        with pytest.raises(InputError, match=f"{url}/.* (cannot be written|cannot be read)"):
            publish(big, url)
        assert wire.done > 0
    with pytest.raises(InputError, match=r"holds (no|an unfinished upload of a) label store"):
        LabelStore.open(url)
    sizes = {f.name: f.size for f in big.files}
    for path, info in fsspec.filesystem("s3").find(url, detail=True).items():
        assert info["size"] == sizes.get(Path(path).name, info["size"]), "a torn object"
    publish(big, url)
    remote = LabelStore.open(url)
    assert list(remote.ids) == list(big.ids)


def test_one_broken_write_is_repeated(big, s3, tmp_path):
    url = f"s3://bucket/{tmp_path.name}"
    with s3_server.broken_wire(s3) as wire:
        wire.break_(up=30_000, cuts=1)
        publish(big, url)
        assert wire.done == 1
        assert list(LabelStore.open(url).ids) == list(big.ids)


def test_a_connection_that_ends_mid_read(big, s3, tmp_path, cache):
    url = f"s3://bucket/{tmp_path.name}"
    publish(big, url)
    with s3_server.broken_wire(s3) as wire:
        remote = LabelStore.open(url)
        wire.break_(down=20_000, cuts=2)
        assert list(remote.ids) == list(big.ids)
        assert wire.done == 2
        wire.break_(down=3_000, cuts=1000)  # s3fs goes on where it stopped, but not for ever
        with pytest.raises(InputError, match=r"boxes-00000.npy cannot be fetched: .*try again"):
            remote.boxes(0, 0)
        assert not any(p.suffix == ".part" for p in cache.iterdir())
        wire.break_(cuts=0)
        assert (remote.boxes(599, 0) == big.boxes(599, 0)).all()


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/labels", "s3://bucket/labels"),
        ("s3://bucket/a@2x/b=c?", "s3://bucket/a@2x/b=c?"),
        ("http://h:9/a@2x/b", "http://***@2x/b"),  # rather too much than too little
        ("ftp://me:pa/ss@w@host/x", "ftp://***@host/x"),
        ("sftp://me@host/x", "sftp://***@host/x"),
        ("https://h/x?sig=a%2Fb+c&sv=2&X-Amz-Security-Token=t", None),
        (
            "at 'https://h/x?sig=abc', then s3://K:S@b/x",
            "at 'https://h/x?sig=***', then s3://***@b/x",
        ),
    ],
)
def test_secrets_are_masked(text, shown):
    shown = shown or "https://h/x?sig=***&sv=***&X-Amz-Security-Token=***"
    assert masked(text) == shown
    assert masked(shown) == shown


def test_an_http_query_stays_at_the_end():
    assert join("https://h/labels/?sig=a/b", "ids.npy") == "https://h/labels/ids.npy?sig=a/b"
    assert join("s3://b/what?/", "ids.npy") == "s3://b/what?/ids.npy"


@given(st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=4))
def test_no_password_survives(password):
    secret = "Zq" + password + "qZ"
    assert secret not in masked(f"cannot open ftp://user:{secret}@host/labels/x: refused")


def test_secrets_show_up_nowhere(store, s3, tmp_path, cache, capfd):
    """Wrong keys, a URL with a password, and a published store: no message, file or object."""
    told = []
    for url in ("ftp://user:PASSword@127.0.0.1:9/labels", "s3://KEYID:PASSword@no-bucket/x"):
        for action in (LabelStore.open, lambda url: publish(store, url), lambda u: fetch(u, "x")):
            with pytest.raises(InputError) as caught:
                action(url)
            told.append(str(caught.value))
    url = f"s3://bucket/{tmp_path.name}"
    publish(store, url)
    remote = LabelStore.open(url)
    assert same(remote, store)
    told += [repr(remote.path), str(remote.path), capfd.readouterr().err]
    told += [p.read_bytes().decode("latin-1") for p in cache.rglob("*") if p.is_file()]
    told += [fsspec.filesystem("s3").cat_file(f"{url}/{name}").decode("latin-1") for name in NAMES]
    told.append(pickle.dumps(remote).decode("latin-1"))
    for text in told:
        assert "PASSword" not in text and s3_server.SECRET not in text
