"""A server, a cache and a store for the tests of label stores elsewhere."""

from __future__ import annotations

import fsspec
import pytest
import s3_server
from known_stores import write_store

from ferkd.store import LabelStore, arrays


@pytest.fixture(scope="module")
def s3():
    with s3_server.server() as url:
        fsspec.filesystem("s3").mkdir("bucket")
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FERKD_CACHE_BYTES", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path, monkeypatch) -> LabelStore:
    """Three record files, five images."""
    monkeypatch.setattr(arrays, "FILE_BYTES", 1)
    return write_store(tmp_path / "local")


@pytest.fixture
def url(tmp_path):
    """An empty place in fsspec's memory."""
    return f"memory://{tmp_path.name}/labels"
