"""The commands on label stores, end to end through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import write_noise

from ferkd.store import LabelStore

TEACHER = "timm/resnet10t?random=0&num_classes=3&image_size=32"
OTHER = "timm/resnet10t?random=1&num_classes=3&image_size=32"


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"{'abc'[i % 3]}/{i}.jpg": (40 + i, 36) for i in range(9)}
    return write_noise(tmp_path / "images", sizes)


@pytest.fixture
def ferkd(command_line):
    """Run a command with --json; returns (exit status, the object on stdout)."""

    def run(*arguments: object) -> tuple[int, dict]:
        status, out, err = command_line(*arguments, "--json")
        return status, json.loads(out) if out else {"message": err}

    return run


@pytest.fixture
def store(ferkd, folder, tmp_path) -> Path:
    out = tmp_path / "labels"
    ferkd("label", folder, "--teacher", TEACHER, "--out", out, "--crops", 4, "--top-k", 2)
    return out


def test_verify_says_ok_and_names_the_first_offender(ferkd, folder, store):
    status, found = ferkd("verify", store, "--images", folder, "--teacher", TEACHER, "--sample", 8)
    assert status == 0 and found["ok"] and found["argmax_agreement"] == 1.0
    data = bytearray((store / "images.npy").read_bytes())
    data[-1] ^= 1
    (store / "images.npy").write_bytes(data)
    status, found = ferkd("verify", store)
    assert status == 1 and not found["ok"] and "images.npy" in found["problems"][0]


def test_a_second_teacher_on_the_same_crops_and_a_merge(ferkd, folder, store, tmp_path):
    second = tmp_path / "second"
    status, made = ferkd(
        "label", folder, "--teacher", OTHER, "--boxes-from", store, "--out", second, "--top-k", 2
    )
    assert status == 0 and made["crops_per_image"] == 4
    a, b = LabelStore(store), LabelStore(second)
    every = (np.arange(9)[:, None], np.arange(4)[None])
    assert (a.boxes(*every) == b.boxes(*every)).all()
    merged = tmp_path / "merged"
    status, found = ferkd("merge", store, second, "--out", merged, "--weights", "1,3", "--top-k", 2)
    assert status == 0, found
    expected = 0.25 * a.labels(*every).dense() + 0.75 * b.labels(*every).dense()
    assert (LabelStore(merged).labels(*every).dense() - expected).abs().max() < 0.02
    assert ferkd("merge", store, second, "--out", tmp_path / "x", "--rule", "max")[0] == 2
    both = ("--weights", "1,3", "--accuracies", "60,70")
    assert ferkd("merge", store, second, "--out", tmp_path / "x", *both)[0] == 2


def test_smaller_and_larger_stores(ferkd, folder, store, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    status, found = ferkd("subset", store, "--out", small, "--crops", 2, "--top-k", 1)
    assert status == 0 and found["crops_per_image"] == 2
    assert LabelStore(small).record.k == 1
    status, found = ferkd(
        "label",
        folder,
        "--teacher",
        TEACHER,
        "--top-k",
        2,
        "--add-to",
        store,
        "--crops",
        6,
        "--out",
        large,
    )
    assert status == 0 and found["crops_per_image"] == 6
    first_four = (np.arange(9)[:, None], np.arange(4)[None])
    kept, whole = LabelStore(store).records(*first_four), LabelStore(large).records(*first_four)
    assert (kept == whole).all()


def test_exchange_with_parquet_and_fkds_files(ferkd, folder, store, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    status, found = ferkd("export-labels", store, "--parquet", tmp_path / "t.parquet")
    assert status == 0 and found["rows"] == 36
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 36
    status, found = ferkd("export-labels", store, "--fkd", tmp_path / "fkd", "--top-k", 2)
    assert status == 0 and found["files"] == 9
    back = tmp_path / "back"
    status, found = ferkd("import", "fkd", tmp_path / "fkd", "--images", folder, "--out", back)
    assert status == 0 and found["matched"] == 9 and found["crops_per_image"] == 4
    every = (np.arange(9)[:, None], np.arange(4)[None])
    assert (LabelStore(back).boxes(*every) == LabelStore(store).boxes(*every)).all()
    assert ferkd("export-labels", store)[0] == 2


def test_publishing_and_fetching(ferkd, folder, store, tmp_path):
    url = f"memory://{tmp_path.name}/labels"
    assert ferkd("publish", store, url)[0] == 0
    assert ferkd("publish", store, url)[0] == 0  # the same again changes nothing
    ferkd("subset", store, "--out", tmp_path / "small", "--crops", 1)
    status, refused = ferkd("publish", tmp_path / "small", url)
    assert status == 2 and "--overwrite" in refused["message"]
    status, found = ferkd("fetch", url, "--out", tmp_path / "fetched")
    assert status == 0 and found["images"] == 9
    for name in ("manifest.json", "labels-00000.npy"):
        assert (tmp_path / "fetched" / name).read_bytes() == (store / name).read_bytes()
    shutil.rmtree(tmp_path / "fetched")
    direct = f"memory://{tmp_path.name}/direct"
    status, found = ferkd("label", folder, "--teacher", TEACHER, "--out", direct, "--crops", 2)
    assert status == 0 and found["store"] == direct
    status, found = ferkd("inspect", direct)
    assert status == 0 and found["images"] == 9


def test_the_store_benchmark(ferkd):
    status, found = ferkd("bench", "store", "--images", 256, "--crops", 20, "--repeats", 1)
    assert status == 0 and {"value", "unit", "baselines", "ratios"} <= set(found)
