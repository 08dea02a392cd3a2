"""Publishing a label store, fetching one, and labelling to a URL."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest
from known_stores import store_settings, write_part, write_store
from published import NAMES, counting, same
from stores import bytes_of

from ferkd.store import LabelStore, arrays
from ferkd.store import publish as publishing
from ferkd.store.adding import copy_signal
from ferkd.store.publish import etags, fetch, label_out, publish
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError


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


@pytest.mark.parametrize("far", [2, 99])
def test_an_upload_of_the_same_store_that_has_begun_meanwhile_is_no_stranger(
    store, url, monkeypatch, far
):
    """It begins when this one has looked for others and found none, and gets so far."""
    real, memory = publishing._stranger, type(fsspec.filesystem("memory"))
    sent = counting(monkeypatch, "memory")
    put = memory.put_file

    def dying(self, *arguments, **options):
        if len(sent) == far:
            raise KeyboardInterrupt
        put(self, *arguments, **options)

    def late(*arguments):
        monkeypatch.setattr(publishing, "_stranger", real)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "put_file", dying)
            with pytest.raises(KeyboardInterrupt) if far < 9 else nullcontext():
                publish(store, url)
        return real(*arguments)

    monkeypatch.setattr(publishing, "_stranger", late)
    publish(store, url)
    assert sent == NAMES and same(LabelStore.open(url), store)
    assert {Path(p).name for p in fsspec.filesystem("memory").find(url)} == {
        "manifest.json",
        *NAMES,
    }


def test_the_signal_that_is_named_is_published_alone(store, url):
    copy_signal(store, "labels", store.folder, "second")
    publish(f"{store.folder}#second", url)
    assert list(LabelStore.open(url).manifest.signals) == ["second"]


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
