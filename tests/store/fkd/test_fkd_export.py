"""A store becomes label files of FKD's authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fkd_files import CROPS, Set, as_fkd, saved, some_probs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.fkd.export import export_fkd
from ferkd.store.fkd.importing import import_fkd
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-6), ("fp16", 2e-3)])
def test_an_export_is_what_weights_only_reads_and_imports_back(fkd, tmp_path, dtype, tolerance):
    store = fkd.run(values="f32").store
    assert export_fkd(store, tmp_path / "export", dtype=dtype) == 4
    files = sorted(
        p.relative_to(tmp_path / "export").as_posix() for p in (tmp_path / "export").rglob("*.tar")
    )
    assert files == ["train/a/0.tar", "train/a/1.tar", "train/b/2.tar", "train/c/3.tar"]
    coords, flips, labels = torch.load(tmp_path / "export" / files[2], weights_only=True)
    assert coords.shape == (CROPS, 4) and labels.shape == (CROPS, 2, 2)
    assert {coords.dtype, labels.dtype} == {{"fp32": torch.float32, "fp16": torch.float16}[dtype]}
    assert (flips.numpy() == fkd.flips["b/2.png"]).all() and flips.dtype == torch.bool
    assert (labels[:, 0].long().numpy() == np.argsort(-fkd.probs["b/2.png"], 1)[:, :2]).all()
    back = import_fkd(tmp_path / "export", fkd.images, tmp_path / "back", values="f32").store
    rows, crops = np.arange(4)[:, None], np.arange(CROPS)
    assert (back.boxes(rows, crops) == store.boxes(rows, crops)).all()
    assert (back.flips(rows, crops) == store.flips(rows, crops)).all()
    ours, theirs = back.labels(rows, crops).dense(), store.labels(rows, crops).dense()
    assert (ours - theirs).abs().max() < tolerance


@given(st.integers(1, 6), st.integers(0, 50))
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_fewer_classes_are_exported_as_the_most_probable_ones(tmp_path_factory, k, seed):
    """From a store of all classes, which are in their own order there."""
    root = tmp_path_factory.mktemp("e")
    whole = Set(root, ["a/0.png", "b/1.png"])
    for i, name in enumerate(whole.names):
        state, _ = as_fkd(name, 40 + i, 31 + 2 * i, some_probs(CROPS, 6, seed), 2)
        saved(whole.file(name), [*state[:2], some_probs(CROPS, 6, seed).astype(np.float32)])
    store = whole.run(targets=False).store
    export_fkd(store, root / "out", k=k, split="val")
    _, _, labels = torch.load(root / "out/val/a/0.tar", weights_only=True)
    best = some_probs(CROPS, 6, seed)
    order = np.argsort(-best, 1)[:, :k]
    assert (labels[:, 0].numpy() == order).all()
    assert np.abs(labels[:, 1].numpy() - np.take_along_axis(best, order, 1)).max() < 2e-3


def store_of(path: Path, ids, side=40, classes=3) -> LabelStore:
    """A store of any ids, by the writer itself."""
    from ferkd.crops import CropDistribution
    from ferkd.store.reader import IMAGE
    from ferkd.store.writer import StoreWriter, listing

    record = RecordFormat.choose(1, classes)
    chosen = manifests.Settings(
        record=manifests.Record(**vars(record)),
        crops=manifests.Crops(count=1, distribution=CropDistribution(), seed=0, rule="x"),
        images=manifests.Images(decoder="x", exif=True, listing=listing(ids)),
        teacher={}, class_names=(), targets=False, part_images=99, software="x",
    )  # fmt: skip
    labels = SoftLabels.from_logits(torch.zeros(len(ids), classes), k=1)
    table = np.zeros(len(ids), IMAGE)
    table["height"], table["width"], table["target"] = side, side, -1
    boxes = np.tile([0, 0, side, side], (len(ids), 1))
    with StoreWriter(path, chosen, len(ids)) as writer:
        flips = np.zeros((len(ids), 1), bool)
        writer.write(0, ids, table, boxes[:, None], flips, record.encode(labels)[:, None], [])
        return writer.finish()


@pytest.mark.parametrize(
    "hostile",
    ["../../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "a//evil.jpg", "..\\evil.jpg", "C:evil.jpg",
     "a/./evil.jpg", "a\0b.jpg", "a/.jpg", ".."],
)  # fmt: skip
def test_no_id_leads_out_of_the_export(tmp_path, hostile):
    store = store_of(tmp_path / "in" / "store", [hostile])
    with pytest.raises(InputError, match="a part of its path is empty, leads upwards or"):
        export_fkd(store, tmp_path / "in" / "out")
    with pytest.raises(InputError, match=r"split '\.\./up'"):
        export_fkd(store_of(tmp_path / "plain", ["a/b.jpg"]), tmp_path / "out", split="../up")
    assert not list(tmp_path.rglob("*.tar")) and not (tmp_path / "in" / "out").exists()


def test_exports_that_would_lose_something_are_refused(tmp_path):
    twice = store_of(tmp_path / "1", ["a/x.jpg", "a/x.v2.png"])
    with pytest.raises(InputError, match=r"a/x.jpg and a/x.v2.png would both be train/a/x.tar"):
        export_fkd(twice, tmp_path / "out")
    large = store_of(tmp_path / "2", ["a.jpg"], side=2049)
    with pytest.raises(InputError, match="sides of 2049 pixels; fp16 is exact up to 2048"):
        export_fkd(large, tmp_path / "out", dtype="fp16")
    many = store_of(tmp_path / "3", ["a.jpg"], classes=2050)
    with pytest.raises(InputError, match="2050 classes; fp16 is exact up to 2049"):
        export_fkd(many, tmp_path / "out", dtype="fp16")
    with pytest.raises(InputError, match=r"k is 2; .* holds 1"):
        export_fkd(many, tmp_path / "out", k=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        export_fkd(many, tmp_path / "full")
    export_fkd(many, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3", "full", "out"]


def test_an_export_appears_whole_or_not_at_all(tmp_path):
    store = store_of(tmp_path / "store", ["a/x.jpg", "a/y.jpg"])

    def killed(done, total):
        assert (done, total) == (1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_fkd(store, tmp_path / "out", progress=killed)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    (tmp_path / "out").mkdir()
    assert export_fkd(store, tmp_path / "out") == 2
    assert len(list((tmp_path / "out").rglob("*.tar"))) == 2
