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

from ferkd.store import writer

DOC = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    (block,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    assert "ferkd" not in block and len(block.splitlines()) < 60
    namespace: dict[str, Any] = {}
    exec(compile(block, str(DOC), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("values", ["u8", "f16", "f32"])
@pytest.mark.parametrize(
    ("k", "tail"), [(1, "tempered"), (3, "tempered"), (None, "tempered"), (3, "mass")]
)
def test_the_documented_reader_recovers_everything(tmp_path, monkeypatch, reader, k, tail, values):
    monkeypatch.setattr(writer, "FILE_BYTES", 100)  # several files of records
    store = write_store(tmp_path / "s", k=k, values=values, tail=tail)
    read = reader["Store"](tmp_path / "s")
    assert len(store.manifest.records) > 1
    assert [read.id(image) for image in range(len(store))] == list(IDS)
    for image in range(len(store)):
        for crop in range(store.crops_per_image):
            box, flip, probabilities, true = read.crop(image, crop)
            has_target = np.array([store.targets[image] >= 0])
            labels = store.record.decode(store.records(image, [crop]), has_target)
            assert box == store.boxes(image, crop).tolist()
            assert flip == bool(store.flips(image, crop))
            np.testing.assert_allclose(probabilities, labels.dense()[0].numpy(), atol=2e-6)
            if k is not None and tail == "tempered" and store.targets[image] >= 0:
                expected = labels.true_log_prob.exp().item()
                assert true == pytest.approx(expected, abs=2e-6)


def test_the_documented_fields_and_sizes_are_the_real_ones(tmp_path):
    store = write_store(tmp_path / "s", k=5, classes=1000)
    # 8 box, 5 x 2 classes, 4 gaps, 3 tail, 1 true_flip
    assert store.record.dtype.itemsize == 8 + 10 + 4 + 3 + 1
    assert store.record.dtype.names == ("box", "classes", "gaps", "tail", "true_flip")
    assert store.images.dtype.itemsize == 24
    full = write_store(tmp_path / "f", k=None, classes=7)
    assert full.record.dtype.names == ("box", "flip", "gaps")
    mass = write_store(tmp_path / "m", k=2, tail="mass")
    assert mass.record.dtype.names == ("box", "classes", "gaps", "tail", "flip")
    half = write_store(tmp_path / "h", k=2, values="f16")
    assert half.record.dtype.names == ("box", "classes", "gaps", "tail", "true", "flip")


def test_the_documented_digest_and_checksums_are_the_real_ones(tmp_path):
    path = write_store(tmp_path / "s").path
    data = (path / "manifest.json").read_bytes()
    body = json.loads(data)
    digest = body.pop("digest")
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    for file in (body["images"], body["ids"], *body["records"]):
        content = (path / file["name"]).read_bytes()
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    listed = "".join(f"{image_id}\0" for image_id in IDS).encode()
    assert body["settings"]["images"]["listing"] == hashlib.sha256(listed).hexdigest()


def test_every_key_of_the_settings_is_documented(tmp_path):
    body = json.loads((write_store(tmp_path / "s").path / "manifest.json").read_text())
    text = DOC.read_text(encoding="utf-8")
    keys = {*body, *body["settings"], *body["settings"]["record"], *body["settings"]["crops"]}
    keys |= {*body["settings"]["images"], *body["settings"]["crops"]["distribution"]}
    assert not {key for key in keys if f"`{key}`" not in text}
