"""Image folders on a real S3 server: listing, workers, broken wires, secrets."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from unittest import mock

import fsspec
import numpy as np
import pytest
import s3_server
import torch
from known_stores import store_settings
from moto.s3.responses import S3Response
from PIL import Image

from ferkd.crops import random_boxes
from ferkd.images import FolderImages, decode, fingerprint
from ferkd.loading.crop_sources import FreshCrops
from ferkd.loading.loader import Loader, SoftLabelLoader
from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.publish import publish
from ferkd.store.reader import IMAGE
from ferkd.store.writer import StoreWriter, listing
from ferkd.system.errors import InputError

SECONDS_TO_LIST = 30.0  # of processor time, server included; several times what it takes


@pytest.fixture(scope="module")
def s3():
    with s3_server.server() as url:
        yield url


def upload(folder: Path, bucket: str) -> str:
    """A folder as a bucket of its own; the URL of its images."""
    files = fsspec.filesystem("s3")
    files.mkdir(bucket)
    for path in folder.rglob("*.jpg"):
        files.pipe_file(f"{bucket}/train/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"s3://{bucket}/train"


def label(folder: Path, out: Path, *, crops: int = 3, classes: int = 2) -> LabelStore:
    """Invented labels of real images, with their real boxes."""
    images = FolderImages(folder)
    settings = store_settings(
        images.ids,
        part_images=len(images),
        class_names=images.class_names,
        record=manifests.Record(k=classes, num_classes=classes, values="f32"),
        images=manifests.Images(decoder="test", exif=True, listing=listing(images.ids)),
        crops=store_settings().crops.model_copy(update={"count": crops}),
    )
    sizes = [decode(images.read(i)).shape[:2] for i in range(len(images))]
    table = np.zeros(len(images), IMAGE)
    table["height"], table["width"] = np.transpose(sizes)
    table["target"] = images.targets
    table["fingerprint"] = [fingerprint(images.read(i)) for i in range(len(images))]
    boxes, flips = random_boxes(*np.transpose(sizes), crops=crops, seed=0, ids=images.ids)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(len(images) * crops, classes)))
    targets = torch.from_numpy(np.repeat(images.targets, crops).astype(np.int64))
    labels = SoftLabels.from_logits(logits, targets, classes)
    records = settings.record.format.encode(labels)
    with StoreWriter(out, settings, len(images)) as writer:
        writer.write(0, list(images.ids), table, boxes, flips, records.reshape(-1, crops), [])
        return writer.finish()


def test_training_from_s3_is_training_from_the_folder(tiny_images, s3, tmp_path, monkeypatch):
    """Images and labels from S3, loaded by worker processes: the very same batches."""
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    folder = tiny_images({"a": 5, "b": 4})
    store = label(folder, tmp_path / "labels")
    images = upload(folder, "photos")
    publish(store, "s3://photos/labels")
    settings = {"batch_size": 6, "crops_per_image": 2, "image_size": 16}
    here = list(SoftLabelLoader(folder, store, **settings))
    there = list(SoftLabelLoader(images, "s3://photos/labels", workers=2, **settings))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.rows, b.rows)
        assert torch.equal(a.labels.dense(), b.labels.dense())


def _page(keys: list[str], response: S3Response) -> tuple[int, dict[str, str], str]:
    """The answer to ListObjectsV2 of sorted keys below train/: its 100 folders, or a page."""
    query = {name: values[0] for name, values in response.querystring.items()}
    size = int(query.get("max-keys", 1000))
    start = int(query.get("continuation-token", 0))
    assert query["prefix"] == "train/"
    if query.get("delimiter"):
        page, folders = [], sorted({key.rpartition("/")[0] + "/" for key in keys})
    else:
        page, folders = keys[start : start + size], []
    more = start + len(page) < len(keys) and not folders
    token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if more else ""
    prefixes = "".join(f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in folders)
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        "<ETag>&quot;0&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in page
    )
    return (
        200,
        {"Content-Type": "application/xml"},
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>large</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{size}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}{prefixes}</ListBucketResult>",
    )


def test_a_hundred_thousand_keys(s3):
    """A hundred pages over the real protocol; right, and in bounded time.

    moto sorts all keys and takes a third of a second for each page: the server's answer to this
    one request is made here instead.
    """
    fsspec.filesystem("s3").mkdir("large")
    keys = sorted(f"train/c{number % 100:02}/{number:06}.jpg" for number in range(100_000))
    pages = []

    def answer(self: S3Response) -> tuple[int, dict[str, str], str]:
        pages.append(self.querystring)
        return _page(keys, self)

    with mock.patch.object(S3Response, "list_objects_v2", answer):
        begun, wall = time.process_time(), time.perf_counter()
        images = FolderImages("s3://large/train")
        seconds, wall = time.process_time() - begun, time.perf_counter() - wall
    fsspec.filesystem("s3").invalidate_cache()
    print(f"listed 100,000 keys in {wall:.1f} s, {seconds:.1f} s of one core")
    assert [f"train/{id}" for id in images.ids] == keys and len(images.class_names) == 100
    assert np.bincount(images.targets).tolist() == [1000] * 100  # class = number mod 100
    assert 100 <= len(pages) < 105  # each key is listed once, a thousand at a time
    assert seconds < SECONDS_TO_LIST


@pytest.fixture
def noisy(s3, tmp_path) -> str:
    """Two classes of images of 20 kB or so in a bucket."""
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (120, 120, 3), np.uint8)
        path = tmp_path / "noisy" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
        assert path.stat().st_size > 15_000
    return upload(tmp_path / "noisy", f"noisy{time.time_ns()}")


def test_a_connection_that_ends_mid_read(noisy, s3, tmp_path):
    """Now and then: read again, whole. Always: an InputError that names the image."""
    with s3_server.broken_wire(s3) as wire:
        images = FolderImages(noisy)
        wire.break_(down=10_000, cuts=3)
        for index, id in enumerate(images.ids):
            assert images.read(index) == (tmp_path / "noisy" / id).read_bytes()
        assert wire.done == 3
        wire.break_(down=4_000, cuts=1000)
        with pytest.raises(InputError, match=r"a/0\.jpg of s3://noisy\d+/train cannot be read"):
            images.read(0)
        loader = Loader(images, FreshCrops(images), batch_size=4, crops_per_image=2, image_size=8)
        with pytest.raises(InputError, match=r"jpg of s3://noisy\d+/train cannot be read, tried"):
            list(loader.batches(0, 2))
        wire.break_(cuts=0)
        assert len(list(loader.batches(0, 2))) == 2


def test_a_connection_that_ends_while_listing(noisy, s3):
    with s3_server.broken_wire(s3) as wire:
        wire.break_(down=400, cuts=1000)
        with pytest.raises(InputError, match=r"s3://noisy\d+/train: the folder cannot be listed"):
            FolderImages(noisy)
        wire.break_(down=400, cuts=1)
        assert len(FolderImages(noisy)) == 6


def test_no_server_at_all():
    with (
        s3_server.endpoint("http://127.0.0.1:9"),
        pytest.raises(InputError, match=r"cannot be listed.*check the URL, the network and the"),
    ):
        FolderImages("s3://bucket/train")


def test_missing_buckets_and_folders(s3, noisy):
    for url in ("s3://no-such-bucket/train", noisy + "/c"):
        with pytest.raises(InputError, match="there is no such folder"):
            FolderImages(url)


def test_passwords_are_not_told(tmp_path):
    """A server that refuses every connection: the message has the host, not the password."""
    with pytest.raises(InputError) as caught:
        FolderImages("ftp://user:PASSword@127.0.0.1:9/train")
    assert "PASSword" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    url = "memory://user:PASSword@x/train"
    fsspec.filesystem("memory").pipe_file(f"{url}/a/x.jpg", b"x")
    images = FolderImages(url)
    assert "PASSword" not in repr(images) + images.name
    assert images.read(0) == b"x"
    fsspec.filesystem("memory").rm(f"{url}/a/x.jpg")
    with pytest.raises(InputError) as caught:
        images.read(0)
    assert "PASSword" not in str(caught.value) and "a/x.jpg" in str(caught.value)


def test_threads_share_a_remote_folder(noisy, tmp_path):
    images = FolderImages(noisy)
    wrong: list[str] = []

    def read() -> None:
        for index, id in enumerate(images.ids):
            if images.read(index) != (tmp_path / "noisy" / id).read_bytes():
                wrong.append(id)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
