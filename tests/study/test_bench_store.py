"""The store's speed and size: what is measured is what is claimed, and the claims hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ferkd.images import open_images
from ferkd.store import LabelStore, arrays
from ferkd.study.bench.forms import store_bytes
from ferkd.study.bench.measuring import in_a_fresh_process
from ferkd.study.bench.store import (
    bench_store,
    imagenet_ids,
    weigh_signals,
    write_fkd,
    write_sparse,
    write_store,
)
from ferkd.system.errors import InputError


def test_the_benchmark_reports_its_ratios_and_sizes():
    result = bench_store(images=256, crops=500, repeats=3, opened_images=0)
    ratio = result["baselines"]["torch.load"] / result["value"]
    assert result["ratios"]["torch.load"] == pytest.approx(ratio)
    decoded = result["details"]["decoded_to_soft_labels"]
    assert decoded["value"] > result["value"] and decoded["ratio"] < ratio
    sizes = result["details"]["bytes_per_crop"]
    assert 26 < sizes["store"] < 27 and 57 < sizes["fkd"] < 76
    json.dumps(result, allow_nan=False)


def test_counts_out_of_range_are_refused():
    for wrong in ({"images": 2}, {"crops": 3}, {"repeats": 0}, {"batch": 0}):
        with pytest.raises(InputError, match=r"of \d+ images"):
            bench_store(**{"images": 4, "batch": 4, "crops": 4, "opened_images": 0, **wrong})


def test_both_sides_hold_the_same_labels(tmp_path):
    store = write_store(tmp_path / "store", imagenet_ids(3), 40)
    files = write_fkd(tmp_path / "fkd", store)
    assert len(files) == 3
    for row, file in enumerate(files):
        coords, flip, labels = torch.load(file)
        ours = store.labels(row, np.arange(40))
        assert torch.equal(labels[:, 0].long(), ours.classes)
        assert torch.equal(labels[:, 1], ours.log_probs.exp())
        assert torch.equal(flip, torch.from_numpy(store.flips(row, np.arange(40))))
        pixels = (coords.double() * 500).round().int()  # synthetic images are 500 x 500
        assert torch.equal(pixels, torch.from_numpy(store.boxes(row, np.arange(40))))


def test_random_reads_give_what_indexing_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "FILE_BYTES", 70 * 7 * 18)  # 64 images to a file
    store = write_store(tmp_path / "s", imagenet_ids(200), 7)
    files = [np.load(store.path / f.name) for f in store.manifest.signals["labels"].files]
    assert [len(f) for f in files] == [64, 64, 64, 8]
    rng = np.random.default_rng(0)
    for kind in (np.int64, np.int32, np.uint16):
        rows = rng.integers(0, 200, (50, 1)).astype(kind)
        crops = rng.integers(0, 7, (50, 4)).astype(kind)
        expected = np.concatenate(files)[rows, crops]
        assert (store.records(rows, crops) == expected).all()
    assert store.records(199, 6) == files[3][7, 6]
    assert store.records(np.zeros((0, 1), int), np.zeros((0, 4), int)).shape == (0, 4)
    for rows, crops in ((0, -1), (0, 7), (-1, 0), (200, 0)):  # a place of another image
        with pytest.raises(IndexError, match="must lie in 0"):
            store.records(rows, crops)


def test_imagenets_store_opens_at_once_and_in_little_memory(tmp_path):
    write_sparse(tmp_path / "s", 1_281_167, 50)
    opened = in_a_fresh_process("ferkd.study.bench.store:probe", str(tmp_path / "s"))
    assert (opened["images"], opened["crops_per_image"]) == (1_281_167, 50)
    assert opened["open_seconds"] < 0.2  # some 2 ms
    assert opened["lookup_microseconds"] < 5000  # some 35: bisection, not a scan
    if opened["resident_bytes"] is not None:  # the system tells
        assert opened["resident_bytes"]["private"] < 50e6
    store = LabelStore(tmp_path / "s")
    assert store.ids[1_281_166] == "n00000986/n00000986_00666.JPEG"
    assert store.ids.find("n00000986/n00000986_00666.JPEG") == 1_281_166
    assert store.ids.find("n00000986/n00000986_00667.JPEG") == -1
    assert store.of_kind("labels").raw_records(1_281_166, 49)["classes"].tolist() == [0, 0, 0, 0, 0]


def test_a_crop_takes_at_most_28_bytes_all_told(tmp_path):
    store = write_store(tmp_path / "s", imagenet_ids(2600), 50)
    on_disk = sum(f.stat().st_size for f in store.path.iterdir())
    assert on_disk == store.bytes_on_disk
    assert store.record.dtype.itemsize == 18  # and a box of 8
    assert on_disk / (2600 * 50) <= 28
    manifest = (store.path / "manifest.json").stat().st_size
    predicted = store_bytes(store.record, 2600, 50, 30)
    assert on_disk - manifest == pytest.approx(predicted, abs=5 * 256)  # headers differ in length


def test_a_second_teacher_and_features_take_no_more_than_stated(tmp_path):
    """Of few images, whose ids, headers and manifest weigh more than those of a real store."""
    store = write_store(tmp_path / "s", imagenet_ids(600), 50)
    weights = weigh_signals(store, 0)
    assert weights["two_teachers_bytes_per_crop"] <= 46 + 1
    assert weights["features_bytes_per_crop"] <= 400
    assert list(LabelStore(store.path).manifest.signals) == ["features", "labels", "second"]


def test_so_does_one_of_the_flowers(flowers, tmp_path):
    ids = list(open_images(flowers / "train").ids)
    store = write_store(tmp_path / "s", ids, 50)
    assert list(store.ids) == ids
    assert store.bytes_on_disk / (len(ids) * 50) <= 28
