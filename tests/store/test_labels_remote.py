"""Label stores elsewhere: the cache, publishing, fetching, secrets, and wires that break."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3_server
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_stores import CROPS, content, store_settings, write_part, write_store
from stores import bytes_of

from ferkd.store import LabelStore, arrays
from ferkd.store import publish as publishing
from ferkd.store.publish import etags, fetch, label_out, publish
from ferkd.store.remote import Cache, Expected, RemoteFolder
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError
from ferkd.system.storage import join, masked

ROWS, COLUMNS = np.arange(5)[:, None], np.arange(CROPS)[None]


@pytest.fixture(scope="module")
def s3():
    with s3_server.server() as url:
        fsspec.filesystem("s3").mkdir("bucket")
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FERKD_CACHE_BYTES", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path, monkeypatch) -> LabelStore:
    """Three record files, five images."""
    monkeypatch.setattr(arrays, "FILE_BYTES", 1)
    return write_store(tmp_path / "local")


@pytest.fixture
def url(tmp_path):
    """An empty place in fsspec's memory."""
    return f"memory://{tmp_path.name}/labels"


def data_files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_file()}


def same(a: LabelStore, b: LabelStore) -> bool:
    return (
        list(a.ids) == list(b.ids)
        and (a.images == b.images).all()
        and (a.records(ROWS, COLUMNS) == b.records(ROWS, COLUMNS)).all()
    )


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


# --- publishing and fetching ---------------------------------------------------------------------


def counting(monkeypatch, file_system: str, method: str = "put_file") -> list[str]:
    """The names of the files that a file system is asked to send or get."""
    kind = fsspec.get_filesystem_class(file_system)
    real, names = getattr(kind, method), []

    def counted(self, source, target, **options):
        names.append(Path(source).name)
        return real(self, source, target, **options)

    monkeypatch.setattr(kind, method, counted)
    return names


NAMES = ["images.npy", "ids.npy", "flips.npy"]
NAMES += [f"{name}-0000{i}.npy" for name in ("boxes", "labels") for i in range(3)]


@pytest.mark.parametrize("stop", range(12))
def test_a_killed_upload_is_no_store_and_is_continued(store, url, monkeypatch, stop):
    """The upload dies at each of its writes in turn: marker, nine files, manifest, unmarking."""
    memory = type(fsspec.filesystem("memory"))
    writes: list[str] = []

    def dying(real):
        def method(self, *arguments, **options):
            writes.append(str(arguments[-1]))
            if len(writes) > stop:
                raise KeyboardInterrupt
            return real(self, *arguments, **options)

        return method

    with monkeypatch.context() as patch:
        for name in ("put_file", "pipe_file", "rm_file"):
            patch.setattr(memory, name, dying(getattr(memory, name)))
        with pytest.raises(KeyboardInterrupt):
            publish(store, url)
    if stop < 11:
        with pytest.raises(InputError, match=r"holds (no|an unfinished upload of a) label store"):
            LabelStore.open(url)
    sent = counting(monkeypatch, "memory")
    publish(store, url)
    assert sent == NAMES[max(0, min(stop, 10) - 1) :]
    left = {Path(p).name for p in fsspec.filesystem("memory").find(url)}
    assert left == {"manifest.json", *NAMES}
    assert same(LabelStore.open(url), store)


def test_existing_stores_are_refused_or_replaced(store, url, tmp_path, monkeypatch):
    publish(store, url)
    sent = counting(monkeypatch, "memory")
    publish(store, url)
    assert sent == []  # it is there
    monkeypatch.setattr(arrays, "FILE_BYTES", 1 << 30)
    other = write_store(tmp_path / "other", teacher={"spec": "other"})
    with pytest.raises(InputError, match=r"holds another label store; replace it with --overw"):
        publish(other, url)
    assert same(LabelStore.open(url), store)
    publish(other, url, overwrite=True)
    assert LabelStore.open(url).settings == other.settings
    left = {Path(p).name for p in fsspec.filesystem("memory").find(url)}
    assert left == {
        "manifest.json",
        *NAMES[:4],
        NAMES[6],
    }  # the former had two files more of each kind


def test_files_of_others_are_never_replaced(store, url):
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"{url}/images.npy", b"precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds a file images.npy, but no label store"):
            publish(store, url, overwrite=overwrite)
    assert memory.cat_file(f"{url}/images.npy") == b"precious"


def test_what_cannot_be_published_is_named(store, tmp_path, s3):
    with pytest.raises(InputError, match="is a local folder; publish to a URL"):
        publish(store, str(tmp_path / "x"))
    with pytest.raises(InputError, match=r"s3://nowhere-at-all/labels/.* cannot be written"):
        publish(store, "s3://nowhere-at-all/labels")
    assert not fsspec.filesystem("s3").exists("nowhere-at-all")  # no bucket is made by mistake
    with (store.folder / "ids.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"ids.npy is damaged: it has \d+ bytes, not \d+"):
        publish(store, "s3://bucket/damaged")


def test_a_file_that_changes_on_its_way_is_refused(store, url, monkeypatch):
    memory = type(fsspec.filesystem("memory"))
    real = memory.put_file

    def damaging(self, source, target, **options):
        real(self, source, target, **options)
        data = bytearray(self.cat_file(target))
        data[-1] ^= 1
        self.pipe_file(target, bytes(data))

    monkeypatch.setattr(memory, "put_file", damaging)
    with pytest.raises(InputError, match=r"images.npy cannot be written: other bytes have arriv"):
        publish(store, url)
    with pytest.raises(InputError, match="unfinished"):
        LabelStore.open(url)


def test_etags_are_those_of_s3(tmp_path, monkeypatch, s3):
    monkeypatch.setattr(publishing, "PUT_PART", 4)
    (tmp_path / "f").write_bytes(b"abcdefghij")
    md5 = lambda data: hashlib.md5(data).digest()  # noqa: E731
    parts = hashlib.md5(md5(b"abcd") + md5(b"efgh") + md5(b"ij")).hexdigest()
    assert etags(tmp_path / "f") == {md5(b"abcdefghij").hex(), f"{parts}-3"}
    file_system = fsspec.filesystem("s3")
    file_system.put_file(str(tmp_path / "f"), "bucket/f")
    assert file_system.info("bucket/f")["ETag"].strip('"') in etags(tmp_path / "f")


def test_fetching_gives_the_same_bytes_and_goes_on_after_a_kill(store, url, tmp_path, monkeypatch):
    publish(store, url)
    memory = type(fsspec.filesystem("memory"))
    real = memory.get_file

    def dying(self, source, target, **options):
        if source.endswith("labels-00001.npy"):
            Path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        real(self, source, target, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(memory, "get_file", dying)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, out)
    with pytest.raises(InputError, match="no label store"):
        LabelStore.open(out)
    got = counting(monkeypatch, "memory", "get_file")
    assert same(fetch(url, out), store)
    assert got[-2:] == ["labels-00001.npy", "labels-00002.npy"]
    assert not {"images.npy", "ids.npy", "labels-00000.npy"} & set(got)
    assert bytes_of(out) == bytes_of(store.folder)
    (out / "ids.npy").write_bytes(b"damaged")
    fetch(url, out)  # repairs
    assert bytes_of(out) == bytes_of(store.folder)


def test_fetching_refuses_what_is_in_the_way(store, url, tmp_path):
    publish(store, url)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/images.npy").write_text("precious")
    (tmp_path / "file").write_text("x")
    other = write_store(tmp_path / "other", teacher={"spec": "other"})
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds other files"):
            fetch(url, tmp_path / "photos", overwrite=overwrite)
        with pytest.raises(InputError, match="is a file"):
            fetch(url, tmp_path / "file", overwrite=overwrite)
    assert bytes_of(tmp_path / "photos") == {"images.npy": b"precious"}
    with pytest.raises(InputError, match="holds another label store; replace it with --overwrite"):
        fetch(url, other.folder)
    assert same(fetch(url, other.folder, overwrite=True), store)
    with pytest.raises(InputError, match="holds no label store"):
        fetch(url + "/nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def _label(folder: Path, *, resume: bool = False, overwrite: bool = False, stop: int = 99) -> int:
    """A labelling job that is killed before part ``stop``; the number of parts it labelled."""
    with StoreWriter(folder, store_settings(), 5, resume=resume, overwrite=overwrite) as writer:
        missing = writer.missing()
        for part in missing:
            if part == stop:
                raise KeyboardInterrupt
            write_part(writer, part)
        writer.finish()
        return len(missing)


def test_labelling_to_a_url(url, tmp_path, cache):
    with pytest.raises(KeyboardInterrupt), label_out(url) as folder:
        _label(folder, stop=2)
    with pytest.raises(InputError, match="no label store"):
        LabelStore.open(url)
    with pytest.raises(InputError, match="--resume"), label_out(url) as folder:
        _label(folder)
    with label_out(url, resume=True) as folder:
        assert _label(folder, resume=True) == 1  # one part of three was left
    assert not folder.exists()
    assert same(LabelStore.open(url), write_store(tmp_path / "whole"))
    with (
        pytest.raises(InputError, match=r"holds a label store already.*--resume.*--overwrite"),
        label_out(url),
    ):
        pytest.fail("labels are not made in vain")
    with label_out(url, resume=True) as folder:
        assert _label(folder, resume=True) == 0  # nothing is labelled again
    work = tmp_path / "work"
    with label_out(url, work=work, overwrite=True) as folder:
        assert folder == work and _label(folder, overwrite=True) == 3
    assert LabelStore.open(work).settings == LabelStore.open(url).settings
    with label_out(tmp_path / "here") as folder:
        assert folder == tmp_path / "here"
        _label(folder)
    assert same(LabelStore.open(tmp_path / "here"), LabelStore.open(url))


# --- a wire that breaks --------------------------------------------------------------------------


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
