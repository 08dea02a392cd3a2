"""docs/store-format.md: a reader that a stranger wrote from it reads our stores."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import IDS, write_store

from ferkd.store import arrays
from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter

DOC = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    (block,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    assert "ferkd" not in block and len(block.splitlines()) < 65
    namespace: dict[str, Any] = {}
    exec(compile(block, str(DOC), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("values", ["u8", "f16", "f32"])
@pytest.mark.parametrize(
    ("k", "tail"), [(1, "tempered"), (3, "tempered"), (None, "tempered"), (3, "mass")]
)
def test_the_documented_reader_recovers_everything(tmp_path, monkeypatch, reader, k, tail, values):
    monkeypatch.setattr(arrays, "FILE_BYTES", 100)  # several files of records
    store = write_store(tmp_path / "s", k=k, values=values, tail=tail)
    read = reader["Store"](tmp_path / "s")
    assert len(store.manifest.signals["labels"].files) > 1
    assert len(store.manifest.geometry.boxes) > 1
    assert [read.id(image) for image in range(len(store))] == list(IDS)
    for image in range(len(store)):
        for crop in range(store.crops_per_image):
            (box, flip), (probabilities, true) = read.box(image, crop), read.label(image, crop)
            has_target = np.array([store.targets[image] >= 0])
            labels = store.record.decode(store.records(image, [crop]), has_target)
            assert box == store.boxes(image, crop).tolist()
            assert flip == bool(store.flips(image, crop))
            np.testing.assert_allclose(probabilities, labels.dense()[0].numpy(), atol=2e-6)
            if k is not None and tail == "tempered" and store.targets[image] >= 0:
                expected = labels.true_log_prob.exp().item()
                assert true == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("per", ["crop", "image"])
@pytest.mark.parametrize("codec", ["i8", "f16"])
def test_the_documented_reader_reads_features(tmp_path, reader, codec, per):
    store = write_store(tmp_path / "s")
    form = manifests.Vectors(dim=7, codec=codec, per=per)
    settings = store.settings.model_copy(update={"record": None, "vectors": form})
    width = store.crops_per_image if per == "crop" else 1
    with SignalWriter(store.path, settings, len(store), signal="f") as writing:
        for part in writing.missing():
            rows = np.array(writing.part_range(part))
            where = rows[:, None], np.arange(store.crops_per_image)
            vectors = np.random.default_rng(part).normal(size=(len(rows) * width, 7))
            records = form.format.encode(vectors).reshape(-1, width)
            of_crops = store.boxes(*where), store.flips(*where), records
            writing.write(
                part, [store.ids[int(r)] for r in rows], store.images[rows], *of_crops, []
            )
        added = writing.finish()
    read = reader["Store"](tmp_path / "s", "f")
    for image, crop in ((0, 0), (4, 3), (2, 1)):
        assert read.features(image, crop).tolist() == added.features(image, crop).tolist()


def test_the_documented_fields_and_sizes_are_the_real_ones(tmp_path):
    store = write_store(tmp_path / "s", k=5, classes=1000)
    # 5 x 2 classes, 4 gaps, 3 tail, 1 true
    assert store.record.dtype.itemsize == 10 + 4 + 3 + 1
    assert store.record.dtype.names == ("classes", "gaps", "tail", "true")
    assert store.images.dtype.itemsize == 24
    full = write_store(tmp_path / "f", k=None, classes=7)
    assert full.record.dtype.names == ("gaps",)
    mass = write_store(tmp_path / "m", k=2, tail="mass")
    assert mass.record.dtype.names == ("classes", "gaps", "tail")
    half = write_store(tmp_path / "h", k=2, values="f16")
    assert half.record.dtype.names == ("classes", "gaps", "tail", "true")


def test_the_documented_digest_and_checksums_are_the_real_ones(tmp_path):
    path = write_store(tmp_path / "s").path
    data = (path / "manifest.json").read_bytes()
    body = json.loads(data)
    digest = body.pop("digest")
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    geometry = body["geometry"]
    files = [geometry["images"], geometry["ids"], geometry["flips"], *geometry["boxes"]]
    files += [file for signal in body["signals"].values() for file in signal["files"]]
    for file in files:
        content = (path / file["name"]).read_bytes()
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    listed = "".join(f"{image_id}\0" for image_id in IDS).encode()
    assert geometry["settings"]["images"]["listing"] == hashlib.sha256(listed).hexdigest()


def test_every_key_of_the_settings_is_documented(tmp_path):
    body = json.loads((write_store(tmp_path / "s").path / "manifest.json").read_text())
    text = DOC.read_text(encoding="utf-8")
    geometry, signal = body["geometry"], body["signals"]["labels"]
    of_geometry, of_signal = geometry["settings"], signal["settings"]
    keys = {*body, *geometry, *of_geometry, *signal, *of_signal, *of_signal["record"]}
    keys |= {*of_geometry["crops"], *of_geometry["images"], *of_geometry["crops"]["distribution"]}
    keys |= set(manifests.Vectors.model_fields)
    assert not {key for key in keys if f"`{key}`" not in text}
