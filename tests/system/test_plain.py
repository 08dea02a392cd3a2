"""YAML and JSON from elsewhere: bounded, plain, and every mistake one message."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest

from ferkd.study.compare.folder import read_folder
from ferkd.study.compare.runs import read_run
from ferkd.study.compare.suite import load_suite
from ferkd.system.errors import InputError
from ferkd.system.plain import JSON_BYTES, YAML_BYTES, parse_yaml, read_json, read_yaml
from ferkd.training.folder import prepare
from ferkd.training.recipe import load_recipe

# Nine levels of ten aliases each: 600 bytes that stand for ten thousand million words.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
RECIPE = "# The resolved recipe of a run, written by ferkd train\n"
SUITE = "# The resolved suite of this folder, written by ferkd compare\n"


def recipe(path):
    (path / "r.yaml").write_text(BOMB)
    load_recipe(path / "r.yaml")


def override(path):
    (path / "r.yaml").write_text("method: hard\n")
    load_recipe(path / "r.yaml", ["student.model_args={a: &a x, b: *a}"])


def suite(path):
    (path / "s.yaml").write_text(BOMB)
    load_suite(path / "s.yaml")


def resumed_run(path):
    (path / "recipe.yaml").write_text(RECIPE + BOMB)
    prepare(path, {}, resume=True, overwrite=False)


def received_run(path):
    (path / "recipe.yaml").write_text(RECIPE + BOMB)
    (path / "result.json").write_text("{}")
    read_run(path)


def suite_folder(path):
    (path / "suite.yaml").write_text(SUITE + BOMB)
    read_folder(path)


@pytest.mark.parametrize("read", [recipe, override, suite, resumed_run, received_run, suite_folder])
def test_aliases_are_refused_before_they_grow(tmp_path, read):
    tracemalloc.start()
    with pytest.raises(InputError, match=r"line \d+: not valid YAML: the alias \*a0? is not taken"):
        read(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "integer"),
        ("? [1, 2]\n: 3\n", "found unhashable key"),
        ("a: \x07", "special characters are not allowed"),
        ("x" * (YAML_BYTES + 1), "longer than the 1,048,576 bytes"),
    ],
)
def test_each_damage_is_one_message(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_yaml(text, "r.yaml")
    assert str(caught.value).startswith("r.yaml") and "\n" not in str(caught.value)


def test_files_are_read_no_further_than_their_bound(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    for read, limit in ((read_yaml, YAML_BYTES), (read_json, JSON_BYTES)):
        with pytest.raises(InputError, match=f"longer than the {limit:,} bytes that a thing may"):
            read(large, "thing")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(InputError, match="is not a regular file; give the recipe as one"):
            read_yaml(tmp_path / name, "recipe")


@pytest.mark.parametrize("text", ["{", "[1]", "3", "[" * 100_000, '{"a": \xff}'])
def test_damaged_json_is_one_message(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"result\.json is (damaged or )?no result of a run"):
        read_json(path, "result of a run")


def test_json_that_is_an_object_is_read(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"é": [1, None]}), encoding="utf-8")
    assert read_json(tmp_path / "r.json", "result") == {"é": [1, None]}
