"""The ``ferkd bench`` commands, each with tiny sizes."""

from __future__ import annotations

import json

import pytest

TEACHER = "timm/test_resnet?random=0"


@pytest.fixture
def ferkd(command_line):
    """Run a command; returns (exit status, what it printed)."""

    def run(*arguments: object) -> tuple[int, str]:
        status, out, err = command_line(*arguments)
        return status, out or err

    return run


def commands(images):
    small = f"--image-size 32 --batch-size 8 --repeats 1 --images {images}"
    lines = {
        "loader": f"{small} --crops-per-image 2,4 --workers 0 --batches 1 --stored-crops 4",
        "label": f"{small} --teacher {TEACHER} --photos 4 --crops 2 --workers 1 --no-memory "
        "--device cpu",
        "loss": "--classes 50,60 --batch-size 4 --repeats 1 --device cpu",
        "step": f"{small} --student timm/test_resnet --teacher {TEACHER} --workers 0 --classes 6 "
        "--stored-crops 4 --steps 1 --device cpu",
    }
    return {name: line.split() for name, line in lines.items()}


@pytest.mark.parametrize("name", ["loader", "label", "loss", "step"])
def test_a_benchmark_states_what_it_is(name, ferkd, tiny_images):
    arguments = ["bench", name, *commands(tiny_images({"a": 3, "b": 3}))[name], "--json"]
    status, text = ferkd(*arguments)
    assert status == 0
    found = json.loads(text)
    keys = ["command", "date", "benchmark", "value", "unit", "baselines", "ratios", "targets"]
    assert list(found) == [*keys, "details", "machine"]
    assert found["benchmark"] == name
    assert (
        found["command"].startswith(f"ferkd bench {name} --") and "--repeats 1" in found["command"]
    )
    assert {"processor", "cores", "torch_threads", "software"} <= set(found["machine"])
    assert "opencv" in found["machine"]["software"] and "torch" in found["machine"]["software"]
    for target in found["targets"].values():
        ok = target["measured"] >= target["target"]
        if target["rule"] == "<=":
            ok = target["measured"] <= target["target"]
        assert target["reached"] == ok
    assert found["ratios"].keys() == found["baselines"].keys()


@pytest.mark.parametrize("name", ["loader", "loss", "step"])
def test_people_get_a_table_and_the_targets(name, ferkd, tiny_images):
    status, text = ferkd("bench", name, *commands(tiny_images({"a": 3, "b": 3}))[name])
    assert status == 0 and "|--:|" in text
    if name != "loss":  # which has none at these numbers of classes
        assert "ferkd / " in text and "(>= " in text


def test_bad_counts_are_bad_usage(ferkd):
    status, text = ferkd("bench", "loader", "--workers", "0;2")
    assert status == 2 and "'0;2': give whole numbers separated by commas" in text
