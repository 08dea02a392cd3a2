"""Label stores elsewhere are read as local ones, through a bounded cache."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_stores import content, store_settings, write_store
from published import COLUMNS, ROWS, data_files, same

from ferkd.store import LabelStore
from ferkd.store.publish import publish
from ferkd.store.remote import Cache, Expected, RemoteFolder
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError

# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_a_published_store_reads_as_the_local_one(request, store, cache, tmp_path, place):
    if place == "s3":
        request.getfixturevalue("s3")
    url = {"memory": f"memory://{tmp_path.name}/l", "s3": f"s3://bucket/{tmp_path.name}/l"}[place]
    assert publish(store, url) == url
    remote = LabelStore.open(url + "/")
    assert remote.settings == store.settings and len(remote) == 5
    assert data_files(cache) == {remote.path.manifest.sha256}  # opening reads the manifest alone
    assert (remote.boxes([4], [0]) == store.boxes([4], [0])).all()  # the last of three files
    third = store.manifest.geometry.boxes[2]
    table = store.manifest.images  # boxes are held to the images' sizes
    assert data_files(cache) == {remote.path.manifest.sha256, table.sha256, third.sha256}
    assert same(remote, store) and remote.bytes_on_disk == store.bytes_on_disk
    assert torch.equal(remote.labels(ROWS, COLUMNS).top1(), content()[0].top1())
    assert str(remote.path) == url + "/" and remote.path.name == "l"
    with pytest.raises(InputError, match=r"is not on this machine.*fetch"):
        _ = remote.folder


def test_nothing_is_fetched_twice_and_workers_share_the_cache(store, url):
    publish(store, url)
    remote = LabelStore.open(url)
    assert same(remote, store)
    data = pickle.dumps(remote)
    fsspec.filesystem("memory").rm(url, recursive=True)  # all is in the cache: no one asks again
    assert same(pickle.loads(data), store)


def _read_in_a_child(data: bytes, results) -> None:
    store = pickle.loads(data)
    results.put(store.boxes(ROWS, COLUMNS).tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_at_once(store, s3, tmp_path, cache, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    url = f"s3://bucket/{tmp_path.name}"
    publish(store, url)
    remote = LabelStore.open(url)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    count = 4 if method == "fork" else 1
    children = [
        context.Process(target=_read_in_a_child, args=(pickle.dumps(remote), results))
        for _ in range(count)
    ]
    for child in children:
        child.start()
    for _ in children:
        assert results.get(timeout=30) == store.boxes(ROWS, COLUMNS).tolist()
    for child in children:
        child.join()
    assert data_files(cache) == {
        remote.path.manifest.sha256,
        store.manifest.images.sha256,
        *(f.sha256 for f in store.manifest.geometry.boxes),
    }


def test_a_worker_never_reads_another_store_than_its_parent(store, url, cache, tmp_path):
    publish(store, url)
    data = pickle.dumps(LabelStore.open(url))
    other = write_store(tmp_path / "other", teacher={"spec": "other"})
    publish(other, url, overwrite=True)
    assert pickle.loads(data).settings == store.settings  # pinned, and in the cache
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"cannot be fetched: it has|cannot be fetched: its SHA"):
        pickle.loads(data)
    assert LabelStore.open(url).settings == other.settings


def test_what_is_not_a_store_is_named(url, tmp_path):
    with pytest.raises(InputError, match=r"holds no label store \(no manifest.json\); check"):
        LabelStore.open(url)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"{url}/unfinished.json", b"{}")
    with pytest.raises(InputError, match="holds an unfinished upload of a label store"):
        LabelStore.open(url)
    memory.pipe_file(f"{url}/manifest.json", b"[]")
    with pytest.raises(InputError, match=r"memory://.*manifest.json is not a label store's"):
        LabelStore.open(url)
    with pytest.raises(InputError, match=r"nonsense://x cannot be opened"):
        LabelStore.open("nonsense://x")
    with pytest.raises(InputError, match="is a URL that was made a path; give it as text"):
        LabelStore.open(Path("s3://bucket/labels"))
    with pytest.raises(InputError, match="is a URL; write the labels to a folder"):
        StoreWriter("s3://bucket/labels", store_settings(), 5)


def test_a_file_url_is_a_local_store(store):
    assert LabelStore.open(store.folder.as_uri()).path == store.folder


# --- the cache -----------------------------------------------------------------------------------


def expected(data: bytes) -> Expected:
    return Expected.content("file", data)


def hold(cache: Cache, data: bytes) -> None:
    with cache.hold(expected(data), lambda path: path.write_bytes(data)) as path:
        assert path.read_bytes() == data


def test_the_least_recently_used_files_go_first(tmp_path):
    cache = Cache(tmp_path, 10)
    for name in (b"aaaa", b"bbbb", b"aaaa", b"cccc"):  # a is used again before c needs room
        hold(cache, name)
        time.sleep(0.01)  # file times may be coarse
    assert [cache.has(expected(n)) for n in (b"aaaa", b"bbbb", b"cccc")] == [True, False, True]
    hold(cache, b"0123456789")
    assert data_files(tmp_path) == {expected(b"0123456789").sha256}
    with pytest.raises(InputError, match=r"has 11 bytes.*may hold 10; raise FERKD_CACHE_BYTES"):
        hold(cache, b"0" * 11)


def test_a_held_file_is_not_evicted(tmp_path):
    cache = Cache(tmp_path, 5)
    with cache.hold(expected(b"aaaa"), lambda path: path.write_bytes(b"aaaa")):
        hold(cache, b"bbbb")
        assert cache.has(expected(b"aaaa"))
    hold(cache, b"cccc")
    assert data_files(tmp_path) == {expected(b"cccc").sha256}


def test_a_cache_that_cannot_be_written_is_named(store, url, tmp_path, monkeypatch):
    publish(store, url)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(InputError, match=r"the cache .*file/cache cannot be .*FERKD_CACHE"):
        LabelStore.open(url)


def test_half_files_of_killed_processes_go(tmp_path):
    (tmp_path / ("0" * 64 + ".part")).write_bytes(b"half")
    hold(Cache(tmp_path, 100), b"aaaa")
    assert data_files(tmp_path) == {expected(b"aaaa").sha256}

    def killed(path: Path) -> None:
        path.write_bytes(b"ha")
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Cache(tmp_path, 100).hold(expected(b"half"), killed),
    ):
        pass
    assert data_files(tmp_path) == {expected(b"aaaa").sha256}


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(9, 30))
def test_the_bound_holds_after_every_fetch(tmp_path_factory, sizes, limit):
    cache = Cache(tmp_path_factory.mktemp("c"), limit)
    for size in sizes:
        hold(cache, b"x" * size)
        there = [p.stat().st_size for p in cache.folder.iterdir() if p.is_file()]
        assert sum(there) <= limit and size in there


def test_a_store_larger_than_the_cache_is_read_whole(store, url, cache):
    publish(store, url)
    sizes = [f.size for f in store.files]
    limit = store._manifest_bytes + max(sizes) + min(sizes)
    assert limit < store.bytes_on_disk
    remote = LabelStore.open(RemoteFolder.open(url, Cache(cache, limit)))
    for _ in range(2):
        assert same(remote, store)
        assert sum((cache / name).stat().st_size for name in data_files(cache)) <= limit
    held = {f.name for f in store.files if remote.path.holds(f)}
    assert set(remote._maps) <= held  # what was evicted is unmapped too, so its bytes are free


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e9", ""])
def test_a_bad_bound_is_named(monkeypatch, value):
    monkeypatch.setenv("FERKD_CACHE_BYTES", value)
    with pytest.raises(InputError, match=f"FERKD_CACHE_BYTES is {value!r}; it must be a whole"):
        Cache.default()


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert Cache.default() == Cache(tmp_path / "cache", 20 * 2**30)
    monkeypatch.setenv("FERKD_CACHE_BYTES", "12345")
    assert Cache.default().limit == 12345
    monkeypatch.delenv("FERKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert Cache.default().folder == tmp_path / "xdg" / "ferkd"


def test_a_damaged_download_is_tried_again_and_then_refused(store, url, cache, monkeypatch):
    publish(store, url)
    remote = LabelStore.open(url)
    memory = fsspec.filesystem("memory")
    real, broken = type(memory).get_file, []

    def damaging(self, source, target, **options):
        real(self, source, target, **options)
        if broken and broken.pop():
            data = bytearray(Path(target).read_bytes())
            data[-1] ^= 1
            Path(target).write_bytes(data)

    monkeypatch.setattr(type(memory), "get_file", damaging)
    broken[:] = [True]
    assert (remote.boxes(0, 0) == store.boxes(0, 0)).all() and not broken
    broken[:] = [True, True]
    with pytest.raises(InputError, match=r"boxes-00001.npy cannot be fetched: its SHA-256 is"):
        remote.boxes(2, 0)
    assert not remote.path.holds(store.manifest.geometry.boxes[1])
    memory.rm_file(f"{url}/boxes-00001.npy")
    with pytest.raises(InputError, match=r"boxes-00001.npy cannot be fetched: FileNotFound"):
        remote.boxes(2, 0)


def test_a_cut_file_in_the_cache_is_fetched_again(store, url, cache):
    publish(store, url)
    assert same(LabelStore.open(url), store)
    for name in data_files(cache):
        os.truncate(cache / name, 3)
    assert same(LabelStore.open(url), store)
