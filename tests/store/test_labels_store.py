"""The store on disk: exact content, refusals, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import stores
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_stores import (
    CROPS,
    IDS,
    content,
    store_settings,
    write_part,
    write_store,
)
from stores import bytes_of

from ferkd.store import LabelStore, arrays, writer
from ferkd.store import manifest as manifests
from ferkd.store.claims import release
from ferkd.store.sharing import Shard, SharedWriter
from ferkd.store.writer import StoreWriter
from ferkd.system.errors import InputError
from ferkd.system.files import temporary


def test_a_store_gives_back_what_was_written(tmp_path):
    store = write_store(tmp_path / "s")
    labels, boxes, flips, targets = content()
    assert list(store.ids) == IDS and len(store) == 5 and store.crops_per_image == CROPS
    assert store.targets.tolist() == targets.tolist()
    assert store.images["fingerprint"].tolist() == [2**63 + i for i in range(5)]
    rows, crops = np.array([4, 0, 4]), np.array([2, 1, 0])
    flat = rows * CROPS + crops
    assert (store.boxes(rows, crops) == boxes[flat]).all()
    assert (store.flips(rows, crops) == flips[flat]).all()
    expected = labels[torch.from_numpy(flat)].dense()
    assert (store.labels(rows, crops).dense() - expected).abs().max() < 0.02
    everything = store.labels(np.arange(5)[:, None], np.arange(CROPS)[None])
    assert torch.equal(everything.top1(), labels.top1())
    assert set(bytes_of(store.path)) == {
        "manifest.json",
        "images.npy",
        "ids.npy",
        "flips.npy",
        "boxes-00000.npy",
        "labels-00000.npy",
    }
    assert store.bytes_on_disk == sum(map(len, bytes_of(store.path).values()))


def test_scanning_covers_every_crop_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ferkd.store.reader._CHUNK", 2 * CROPS)
    store = write_store(tmp_path / "s")
    pieces = [(rows, labels.top1()) for rows, _, labels in store.scan()]
    assert [(r.start, r.stop) for r, _ in pieces] == [(0, 2), (2, 4), (4, 5)]
    assert torch.equal(torch.cat([top for _, top in pieces]), content()[0].top1())


def test_several_record_files_are_one_store(tmp_path, monkeypatch):
    whole = write_store(tmp_path / "one")
    monkeypatch.setattr(arrays, "FILE_BYTES", 1)
    split = write_store(tmp_path / "three")
    assert len(split.manifest.signals["labels"].files) == 3
    rows, crops = np.array([[4], [0], [3]]), np.array([[0, 2]])
    assert (split.records(rows, crops) == whole.records(rows, crops)).all()


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, max_size=9)
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
def test_any_ids_are_found(tmp_path_factory, ids):
    ids = sorted(ids)
    store = write_store(tmp_path_factory.mktemp("ids") / "s", ids)
    assert [store.ids.find(i) for i in ids] == list(range(len(ids)))
    assert store.ids.find("\0 not there") == -1 and list(store.ids) == ids


def test_nothing_depends_on_the_number_of_interruptions(tmp_path):
    write_store(tmp_path / "whole")
    for number in range(3):  # each run writes one part and dies
        with StoreWriter(tmp_path / "killed", store_settings(), 5, resume=number > 0) as writer:
            assert writer.missing() == list(range(number, 3))
            write_part(writer, writer.missing()[0])
            temporary(tmp_path / "killed/parts/000002.npz").write_bytes(b"half")
    with StoreWriter(tmp_path / "killed", store_settings(), 5, resume=True) as writer:
        writer.finish()
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("survivors", range(5))
def test_a_kill_while_finishing_can_be_repeated(tmp_path, monkeypatch, survivors):
    """Every rename of the joining step fails in turn; resuming gives the same bytes."""
    write_store(tmp_path / "whole")
    renames = []

    def failing(source, target, real=os.replace):
        renames.append(target)
        if len(renames) > survivors:
            raise KeyboardInterrupt
        real(source, target)

    with StoreWriter(tmp_path / "s", store_settings(), 5) as writer:
        for part in writer.missing():
            write_part(writer, part)
        monkeypatch.setattr(os, "replace", failing)
        if survivors < 4:  # records, images, ids, manifest
            with pytest.raises(KeyboardInterrupt):
                writer.finish()
            with pytest.raises(InputError, match="unfinished label store"):
                LabelStore(tmp_path / "s")
    monkeypatch.undo()
    with StoreWriter(tmp_path / "s", store_settings(), 5, resume=True) as writer:
        writer.finish()
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


def test_a_skipped_image_is_listed_and_left_out(tmp_path):
    with StoreWriter(tmp_path / "s", store_settings(), 5) as writer:
        for part in writer.missing():
            write_part(writer, part, skip="a/my.photo.v2.jpg")
        store = writer.finish()
    assert len(store) == 4 and "a/my.photo.v2.jpg" not in list(store.ids)
    assert [s.model_dump() for s in store.manifest.skipped] == [
        {"id": "a/my.photo.v2.jpg", "reason": "broken"}
    ]


def test_existing_outputs_are_refused_continued_or_replaced(tmp_path):
    write_store(tmp_path / "s")
    with (
        pytest.raises(InputError, match=r"holds a label store already.*--resume.*--overwrite"),
        StoreWriter(tmp_path / "s", store_settings(), 5),
    ):
        pass
    assert "lock" not in bytes_of(tmp_path / "s")  # a refusal leaves no trace
    with StoreWriter(tmp_path / "s", store_settings(), 5, resume=True) as writer:
        assert writer.finished() and writer.missing() == []
    other = store_settings(teacher={"spec": "other"})
    with (
        pytest.raises(InputError, match=r"other settings.*teacher.spec was 'test', now 'other'"),
        StoreWriter(tmp_path / "s", other, 5, resume=True),
    ):
        pass
    moved = store_settings(images=manifests.Images(decoder="test", exif=True, listing="0"))
    with (
        pytest.raises(InputError, match="files were added, removed or renamed"),
        StoreWriter(tmp_path / "s", moved, 5, resume=True),
    ):
        pass
    with StoreWriter(tmp_path / "s", other, 5, overwrite=True) as writer:
        assert not writer.finished() and len(writer.missing()) == 3


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/images.npy").write_text("precious")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with (
            pytest.raises(InputError, match="holds other files"),
            StoreWriter(tmp_path / "photos", store_settings(), 5, **options),
        ):
            pass
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match="is a file"),
        StoreWriter(tmp_path / "file", store_settings(), 5),
    ):
        pass
    assert bytes_of(tmp_path) == {"photos/images.npy": b"precious", "file": b"x"}


def test_a_second_writer_is_refused(tmp_path):
    with (
        StoreWriter(tmp_path / "s", store_settings(), 5),
        pytest.raises(InputError, match="being written by another process"),
        StoreWriter(tmp_path / "s", store_settings(), 5, resume=True),
    ):
        pass


def test_damage_is_named(tmp_path):
    path = write_store(tmp_path / "s").path
    manifest = (path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="holds no label store"):
        LabelStore(tmp_path / "nowhere")
    for damaged in (manifest.replace(b'"seed": 0', b'"seed": 1'), manifest + b" "):
        (path / "manifest.json").write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            LabelStore(path)
    (path / "manifest.json").write_bytes(b"[1, 2]")
    with pytest.raises(InputError, match="not a label store's manifest"):
        LabelStore(path)
    body = json.loads(manifest)
    newer = {**{k: v for k, v in body.items() if k != "digest"}, "version": 3}
    (path / "manifest.json").write_text(json.dumps({**newer, "digest": ""}))
    with pytest.raises(InputError, match="version 3; this release reads 'ferkd-labels' version 2"):
        LabelStore(path)
    older = {**newer, "version": 1}
    (path / "manifest.json").write_text(json.dumps({**older, "digest": ""}))
    with pytest.raises(InputError, match=r"is of version 1, which .* reads version 2: label again"):
        LabelStore(path)
    (path / "manifest.json").write_bytes(manifest)
    (path / "labels-00000.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="cannot be read"):
        LabelStore(path).labels(0, 0)


def test_a_pickle_in_place_of_an_array_is_not_run(tmp_path):
    path = write_store(tmp_path / "s").path
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    np.save(path / "labels-00000.npy", np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        LabelStore(path).labels(0, 0)
    (path / "images.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="cannot be read"):
        LabelStore(path).images  # noqa: B018
    assert not marker.exists()


def test_a_file_name_in_the_manifest_cannot_leave_the_folder(tmp_path):
    store = write_store(tmp_path / "s")
    body = json.loads((store.path / "manifest.json").read_text())
    body["geometry"]["images"]["name"] = "../images.npy"
    with pytest.raises(ValueError, match="pattern"):
        manifests.File(**body["geometry"]["images"])


def test_rows_outside_are_an_index_error_and_stores_pickle_as_their_path(tmp_path):
    store = write_store(tmp_path / "s")
    with pytest.raises(IndexError, match=r"0 \.\. 4"):
        store.boxes(5, 0)
    with pytest.raises(IndexError):
        store.boxes(0, CROPS)
    store.boxes(0, 0)
    data = pickle.dumps(store)
    assert len(data) < 500
    assert (pickle.loads(data).boxes(1, 1) == store.boxes(1, 1)).all()


def test_an_image_without_ground_truth_has_no_probability_of_it(tmp_path):
    """Its records hold a byte for it like all others, which means nothing."""
    store = stores.write_store(tmp_path / "s")  # every third image has none
    rows = np.arange(len(store))
    true = store.labels(rows, np.zeros_like(rows)).true_log_prob
    assert true is not None and true.isnan().tolist() == (store.targets < 0).tolist()
    assert true.isnan().any() and not true.isnan().all()
    every = store.record.decode(store.records(rows, np.zeros_like(rows))).true_log_prob
    assert every is not None and not every.isnan().any()


def test_a_shard_is_claimed_before_a_process_that_wants_to_be_alone_comes_in(tmp_path, monkeypatch):
    """It comes at the first moment at which the shard has left the store's lock."""
    refused = []

    def released(lock, *, remove):
        monkeypatch.undo()
        release(lock, remove=remove)
        alone = StoreWriter(tmp_path / "s", store_settings(), len(IDS), resume=True)
        with pytest.raises(InputError, match="written by another process \\(shard-0-of-2\\)"):
            alone.__enter__()
        refused.append(True)

    monkeypatch.setattr(writer, "release", released)
    shared = SharedWriter(tmp_path / "s", store_settings(), len(IDS), shard=Shard(0, 2))
    with shared:
        assert refused and shared.missing() == [0, 1, 2]
