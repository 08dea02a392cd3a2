"""Results: read by attribute and by key, equal to their JSON, and read back from it."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass

import pytest

from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.system.results import Result
from ferkd.system.text import to_json


@dataclass(frozen=True, eq=False, kw_only=True)
class Found(Result):
    name: str
    epochs: float | None
    top1: float | None = None


@dataclass(frozen=True, eq=False)
class Two(Result):
    first: Found
    second: Found | None = None


def test_attributes_are_keys_and_what_says_nothing_is_none():
    found = Found(name="a", epochs=None)
    assert found.name == found["name"] == "a"
    # epochs has no default: None is what was found. top1 has: there is nothing to say.
    assert dict(found) == {"name": "a", "epochs": None} and len(found) == 2
    assert "top1" not in found and found.top1 is None and found.get("top1", 1) == 1
    with pytest.raises(KeyError, match="top1"):
        found["top1"]
    with pytest.raises(FrozenInstanceError):
        found.name = "b"


def test_results_inside_results_are_objects(tmp_path):
    two = Two(Found(name="a", epochs=2.0, top1=0.5))
    plain = {"first": {"name": "a", "epochs": 2.0, "top1": 0.5}}
    write_json(tmp_path / "r.json", two)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(to_json(two)) == plain == two
    assert two != {**plain, "second": None}
    with pytest.raises(TypeError, match="set is nothing that JSON holds"):
        write_json(tmp_path / "s.json", {"a": {1}})


def test_reading_back_passes_over_unknown_keys_and_names_missing_ones():
    assert Found.from_json({"name": "a", "epochs": 1, "new": 2}, "r.json").name == "a"
    with pytest.raises(InputError, match=r"r\.json has no name, epochs, so .*; restore the file"):
        Found.from_json({"top1": 0.1}, "r.json")
