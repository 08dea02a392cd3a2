"""Parts of a store at a URL: a machine that is gone has left them there, and another goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import s3_server
from known_stores import IDS, store_settings, write_part, write_store
from stores import bytes_of
from typer.testing import CliRunner

from ferkd.cli import app
from ferkd.labelling.verify import verify_store
from ferkd.store import LabelStore
from ferkd.store.adding import copy_signal
from ferkd.store.mirror import PartsMirror
from ferkd.store.publish import fetch, label_out, publish, shard_out
from ferkd.store.remote import read_manifest
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError


@pytest.fixture(scope="module")
def s3():
    with s3_server.server() as url:
        fsspec.filesystem("s3").mkdir("bucket")
        yield url


def write(folder: Path, parts: int = 3, *, resume: bool = False) -> list[int]:
    """Label into a folder as far as ``parts`` more; which ones they were."""
    done = []
    with StoreWriter(folder, store_settings(), len(IDS), resume=resume) as writer:
        for part in writer.missing()[:parts]:
            write_part(writer, part)
            done.append(part)
        if not writer.missing():
            writer.finish()
    return done


def killed_after_two_parts(url: str, cache: Path) -> None:
    """A machine that goes away once two of three parts have arrived."""
    os.environ["FERKD_CACHE"] = str(cache)
    with label_out(url) as folder:
        write(folder, 2)
        while len(PartsMirror(folder, url).there()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def left(s3, tmp_path, monkeypatch) -> str:
    """The URL at which such a machine has left its parts; this one is another."""
    if sys.platform != "linux":
        pytest.skip("forks the machine that goes away")
    url = f"s3://bucket/{tmp_path.name}/labels"
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "fork")
    gone = context.Process(target=killed_after_two_parts, args=(url, tmp_path / "gone"))
    fsspec.filesystem("s3").clear_instance_cache()  # a connection does not survive a fork
    gone.start()
    gone.join(60)
    assert gone.exitcode == -signal.SIGKILL
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "here"))
    return url


def test_another_machine_goes_on_from_the_parts_that_arrived(left, tmp_path):
    assert read_manifest(left) is None
    with (
        pytest.raises(InputError, match=r"labels that were begun.*--resume.*--overwrite"),
        label_out(left),
    ):
        pytest.fail("nothing is labelled over them")
    with label_out(left, resume=True) as folder:
        assert write(folder, resume=True) == [2]
    assert PartsMirror(folder, left).there() == [] and not PartsMirror(folder, left).begun()
    fetched = fetch(left, tmp_path / "fetched")
    write(tmp_path / "whole")
    assert bytes_of(fetched.folder) == bytes_of(tmp_path / "whole")
    assert verify_store(fetched.folder).ok


def test_a_part_that_did_not_arrive_whole_is_labelled_again(left):
    part = f"{left}/parts/000001.npz"
    with fsspec.open(part, "rb") as file:
        data = file.read()
    with fsspec.open(part, "wb") as file:
        file.write(data[: len(data) // 2])
    with label_out(left, resume=True) as folder:
        assert write(folder, resume=True) == [1, 2]


def test_overwriting_begins_anew_and_leaves_no_old_part(left):
    with label_out(left, overwrite=True) as folder:
        assert PartsMirror(folder, left).there() == []
        assert write(folder) == [0, 1, 2]
    assert read_manifest(left) is not None


def test_what_was_sent_follows_labels_that_are_made_anew(tmp_path, monkeypatch):
    """Parts of the former labels are on their way already when they are overwritten."""
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    url, work = f"memory://{tmp_path.name}/labels", tmp_path / "work"
    write(work, 2)
    mirror = PartsMirror(work, url)
    mirror.send()
    assert mirror.there() == ["000000.npz", "000001.npz"]
    with StoreWriter(work, store_settings(software="new"), len(IDS), overwrite=True) as writer:
        write_part(writer, 1)
        mirror.send()
        assert mirror.there() == ["000001.npz"]
        sent = fsspec.filesystem("memory")
        for name in ("settings.json", "parts/000001.npz"):
            assert sent.cat_file(f"{url}/{name}") == (work / name).read_bytes()
        write_part(writer, 0)
        mirror.send()
        write_part(writer, 2)
        writer.finish()
    mirror.send()  # what was joined stays until the store is published
    assert mirror.there() == ["000000.npz", "000001.npz"]


@pytest.mark.parametrize("there", ["another signal", "another store"])
def test_repeating_a_finished_job_takes_nothing_away_at_the_url(tmp_path, there):
    """The same command again, its folder still here; the URL has got something since."""
    url, work = f"memory://{tmp_path.name}/labels", tmp_path / "work"
    with label_out(url, work=work) as folder:
        write(folder)
    if there == "another signal":
        fetched = fetch(url, tmp_path / "elsewhere")
        publish(copy_signal(fetched, "labels", fetched.folder, "second"), url)
        with label_out(url, work=work, resume=True) as folder:
            write(folder, resume=True)
        assert list(LabelStore(url).manifest.signals) == ["labels", "second"]
    else:
        publish(write_store(tmp_path / "other", software="other"), url, overwrite=True)
        with (
            pytest.raises(InputError, match=r"holds another label store.*--overwrite"),
            label_out(url, work=work, resume=True) as folder,
        ):
            write(folder, resume=True)
        assert LabelStore(url).settings.software == "other"


def begun_over_an_old_store(tmp_path, monkeypatch):
    """The URL of a published store and the work folder of a job that was to overwrite it and was
    stopped after two parts."""
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    url, work = f"memory://{tmp_path.name}/labels", tmp_path / "work"
    publish(write_store(tmp_path / "old", software="old"), url)
    with (
        pytest.raises(KeyboardInterrupt),
        label_out(url, work=work, overwrite=True) as folder,
    ):
        write(folder, 2)
        raise KeyboardInterrupt
    return url, work


@pytest.mark.parametrize("machine", ["the same", "another"])
def test_who_continues_an_overwriting_job_replaces_that_store_alone(tmp_path, monkeypatch, machine):
    url, work = begun_over_an_old_store(tmp_path, monkeypatch)
    assert LabelStore(url).settings.software == "old"
    there = work if machine == "the same" else tmp_path / "there"
    with label_out(url, work=there, resume=True) as folder:
        assert write(folder, resume=True) == [2]
    assert LabelStore(url).settings.software == "test"
    names = {Path(path).name for path in fsspec.filesystem("memory").find(url)}
    assert names == {"manifest.json", *(file.name for file in LabelStore(url).files)}


def test_who_continues_an_overwriting_job_replaces_no_store_that_came_since(tmp_path, monkeypatch):
    url, work = begun_over_an_old_store(tmp_path, monkeypatch)
    publish(write_store(tmp_path / "since", software="since"), url, overwrite=True)
    with (
        pytest.raises(InputError, match=r"holds another label store.*--overwrite"),
        label_out(url, work=work, resume=True) as folder,
    ):
        write(folder, resume=True)
    assert LabelStore(url).settings.software == "since"


def test_a_shard_that_comes_back_after_the_others_have_finished_takes_their_store(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    url, work = f"memory://{tmp_path.name}/labels", tmp_path / "work"
    with shard_out(url, "0-of-2", work=work) as folder:
        write(folder, 1)
    whole = write_store(tmp_path / "whole")
    publish(whole, url)
    with shard_out(url, "0-of-2", work=work) as folder:
        assert write(folder, resume=True) == []
    assert bytes_of(work) == bytes_of(whole.folder)
    other = tmp_path / "other"
    with StoreWriter(other, store_settings(software="other"), len(IDS)) as writer:
        write_part(writer, 0)
    with (
        pytest.raises(InputError, match="begun labels of other settings than the store"),
        shard_out(url, "0-of-2", work=other),
    ):
        pytest.fail("they are not taken for the store's")
    assert [part.name for part in (other / "parts").glob("*.npz")] == ["000000.npz"]


def test_parts_of_other_settings_are_not_mixed(left, tmp_path):
    work = tmp_path / "work"
    with StoreWriter(work, store_settings(software="other"), len(IDS)) as writer:
        write_part(writer, 0)
    with (
        pytest.raises(InputError, match=r"begun labels of other settings"),
        label_out(left, work=work, resume=True),
    ):
        pytest.fail("they are kept apart")


def test_labels_that_were_stopped_are_sent_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/labels"
    with pytest.raises(KeyboardInterrupt), label_out(url) as folder:
        write(folder, 1)
        raise KeyboardInterrupt
    assert PartsMirror(folder, url).there() == ["000000.npz"]


def test_shards_on_machines_of_their_own_label_to_one_url(s3, tmp_path, monkeypatch):
    """One after the other, neither sees the other's disk; the second joins and publishes."""
    for i in range(70):  # parts of 32 images
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        cv2.imwrite(str(path), pixels)
    url = f"s3://bucket/{tmp_path.name}/labels"
    teacher = "timm/test_resnet?random=0&num_classes=2&image_size=32"
    given = ["label", str(tmp_path / "photos"), "--teacher", teacher, "--crops", "2", "--json"]
    given += ["--no-agreement-check"]

    def shard(index: int, machine: str) -> dict:
        monkeypatch.setenv("FERKD_CACHE", str(tmp_path / machine))
        done = CliRunner().invoke(app, [*given, "--out", url, "--shard", f"{index}/2"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert shard(0, "one") == {"shard": "0/2", "finished": False}
    assert PartsMirror(tmp_path, url).there() == ["000000.npz", "000002.npz"]
    assert read_manifest(url) is None
    assert shard(1, "other")["images"] == 70
    assert PartsMirror(tmp_path, url).there() == []
    assert shard(0, "one")["images"] == 70  # the same command again: nothing is missing
    fetched = fetch(url, tmp_path / "fetched")
    alone = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 0, alone.output
    assert bytes_of(fetched.folder) == bytes_of(tmp_path / "alone")
