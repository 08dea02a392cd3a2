"""A store as a Parquet table: every column, and every library that should read it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stores import IDS, write_store

from ferkd.store import walk as walking
from ferkd.store.parquet import export_parquet
from ferkd.system.errors import InputError

COLUMNS = "image crop top left height width flip target classes probabilities tail true_probability"


def stored(store, image, crop):
    """The label as recorded, without the slot that a reader gives the truth."""
    has_target = np.array([store.targets[image] >= 0])
    return store.record.decode(store.records(image, [crop]), has_target)


@pytest.mark.parametrize("values", ["u8", "f32"])
@pytest.mark.parametrize("k", [1, 3, None])
def test_every_row_is_the_stores(tmp_path, k, values):
    store = write_store(tmp_path / "s", k=k, values=values)
    assert export_parquet(store, tmp_path / "t.parquet", classes="ids") == 5 * 4
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == COLUMNS.split()
    for number, row in enumerate(table.to_pylist()):
        image, crop = divmod(number, 4)
        labels = stored(store, image, crop)
        assert (row["image"], row["crop"]) == (IDS[image], crop)
        box = [row[side] for side in ("top", "left", "height", "width")]
        assert box == store.boxes(image, crop).tolist()
        assert row["flip"] is bool(store.flips(image, crop))
        assert row["classes"] == labels.classes[0].tolist()
        np.testing.assert_allclose(row["probabilities"], labels.log_probs[0].exp(), atol=1e-6)
        assert sum(row["probabilities"]) + row["tail"] == pytest.approx(1, abs=1e-5)
        target = int(store.targets[image])
        if target < 0:
            assert row["target"] is None and row["true_probability"] is None
        else:
            expected = labels.prob_of(torch.tensor([target])).item()
            assert row["target"] == target
            assert row["true_probability"] == pytest.approx(expected, abs=1e-6)


def test_classes_are_named_by_default(tmp_path):
    store = write_store(tmp_path / "s")
    export_parquet(tmp_path / "s", tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(19, 1).to_pylist()[0]
    assert first["target"] is None
    assert last["target"] == store.class_names[store.targets[4]]
    assert last["classes"] == [store.class_names[c] for c in stored(store, 4, 3).classes[0]]
    settings = json.loads(table.schema.metadata[b"ferkd"])
    assert settings["class_names"] == list(store.class_names)
    assert settings["teacher"] == {"spec": "random"}


def test_it_is_written_in_groups_of_bounded_size(tmp_path, monkeypatch):
    store = write_store(tmp_path / "s")
    export_parquet(store, tmp_path / "whole.parquet")
    monkeypatch.setattr(walking, "_CLASSES", 7 * 3)  # 7 crops at a time, across images
    export_parquet(store, tmp_path / "groups.parquet")
    groups = pq.ParquetFile(tmp_path / "groups.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [7, 7, 6]
    whole, split = (pq.read_table(tmp_path / f"{n}.parquet") for n in ("whole", "groups"))
    assert whole.equals(split)


def test_an_existing_file_is_kept_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    store, file = write_store(tmp_path / "s"), tmp_path / "t.parquet"
    file.write_text("precious")
    with pytest.raises(InputError, match=r"t\.parquet exists; .*--overwrite"):
        export_parquet(store, file)

    def failing(*_):
        yield from list(walking.walk(store))
        raise OSError("disk full")

    monkeypatch.setattr("ferkd.store.parquet.walk", failing)
    with pytest.raises(OSError, match="disk full"):
        export_parquet(store, file, overwrite=True)
    assert file.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "t.parquet"]
    monkeypatch.undo()
    assert export_parquet(store, file, overwrite=True) == 20
    assert pq.read_table(file).num_rows == 20


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    store = write_store(tmp_path / "s", class_names=())
    with pytest.raises(InputError, match=r"do not name their 6 classes.*--classes ids"):
        export_parquet(store, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="must be names or ids"):
        export_parquet(store, tmp_path / "t.parquet", classes="both")
    with pytest.raises(InputError, match="is no folder"):
        export_parquet(store, tmp_path / "nowhere/t.parquet", classes="ids")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"needs pyarrow.*ferkd\[exchange\]"):
        export_parquet(store, tmp_path / "t.parquet", classes="ids")
    assert not (tmp_path / "t.parquet").exists()


def test_an_empty_store_is_an_empty_table(tmp_path):
    store = write_store(tmp_path / "s", ids=())
    assert export_parquet(store, tmp_path / "t.parquet") == 0
    assert pq.read_table(tmp_path / "t.parquet").column_names == COLUMNS.split()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, float]:
    """A table, and the mean of the most probable class's probability where there is a target."""
    folder = tmp_path_factory.mktemp("exported")
    store = write_store(folder / "s")
    export_parquet(store, folder / "t.parquet")
    rows = np.repeat(np.flatnonzero(store.targets >= 0), 4)
    top = store.labels(rows, np.tile(np.arange(4), len(rows) // 4)).max_prob()
    return folder / "t.parquet", float(top.mean())


def test_pandas_reads_it(exported):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(exported[0])
    known = frame[frame.target.notna()]
    assert len(frame) == 20 and len(known) == 12
    assert known.probabilities.str[0].mean() == pytest.approx(exported[1], abs=1e-6)


def test_polars_reads_it(exported):
    polars = pytest.importorskip("polars")
    known = polars.read_parquet(exported[0]).filter(polars.col("target").is_not_null())
    top = known["probabilities"].list.get(0)
    assert top.mean() == pytest.approx(exported[1], abs=1e-6)


def test_duckdb_reads_it(exported):
    duckdb = pytest.importorskip("duckdb")
    query = f"select avg(probabilities[1]), count(*) from '{exported[0]}' where target is not null"
    ((mean, count),) = duckdb.sql(query).fetchall()
    assert count == 12 and mean == pytest.approx(exported[1], abs=1e-6)


def test_hugging_face_datasets_reads_it(exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet", data_files=str(exported[0]), split="train", cache_dir=str(tmp_path)
    )
    top = [row["probabilities"][0] for row in rows if row["target"] is not None]
    assert np.mean(top) == pytest.approx(exported[1], abs=1e-6)
