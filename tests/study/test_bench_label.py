"""The labelling benchmark: a whole pass beside the same teacher's forward pass."""

from __future__ import annotations

import json

import pytest
import torch

from ferkd.models.teacher import load_teacher
from ferkd.study.bench.label import CALL, FORWARD, PASS, bench_label, forwards, probe
from ferkd.system.errors import InputError

TEACHER = "timm/test_resnet?random=0"


def test_it_reports_the_pass_and_the_teacher_alone(tiny_images):
    images = tiny_images({"a": 4, "b": 4})
    result = bench_label(
        images,
        teacher=TEACHER,
        image_size=32,
        batch_size=8,
        photos=4,
        crops=4,
        workers=1,
        repeats=1,
        memory=False,
        device="cpu",
    )
    json.dumps(result, allow_nan=False)
    rates = {name: side["median"] for name, side in result["details"]["crops_per_second"].items()}
    assert list(rates) == [PASS, FORWARD, CALL] and result["value"] == rates[PASS]
    (name,) = result["targets"]
    assert result["targets"][name]["measured"] == pytest.approx(rates[PASS] / rates[FORWARD])
    assert result["targets"][name]["target"] == 0.9
    assert result["details"]["peak_bytes"] is None


def test_memory_is_that_of_fresh_processes(tiny_images, monkeypatch):
    asked = []

    def fresh(function, folder, out, crops, *rest):
        asked.append((function, len(list((tmp(folder)).rglob("*.jpg"))), crops))
        return 1000 + 100 * len(asked)

    def tmp(folder):
        from pathlib import Path

        return Path(folder)

    monkeypatch.setattr("ferkd.study.bench.label.in_a_fresh_process", fresh)
    result = bench_label(
        tiny_images({"a": 3, "b": 3}),
        teacher=TEACHER,
        image_size=32,
        batch_size=4,
        photos=6,
        crops=2,
        workers=1,
        repeats=1,
        device="cpu",
    )
    assert asked == [
        ("ferkd.study.bench.label:probe", 3, 2),
        ("ferkd.study.bench.label:probe", 6, 2),
        ("ferkd.study.bench.label:probe", 3, 4),
    ]
    found = result["targets"]["peak memory with twice the images"]
    assert found["measured"] == pytest.approx(1200 / 1100) and not found["reached"]


def test_the_probe_labels_and_tells_its_peak(tiny_images, tmp_path):
    images = tiny_images({"a": 2, "b": 2})
    peak = probe(str(images), str(tmp_path / "s"), 2, TEACHER, 2, 32, 4, "fp32", "cpu", 1)
    assert peak > 50e6 and (tmp_path / "s" / "manifest.json").is_file()


def test_the_bare_pass_is_the_teachers_own():
    teacher = load_teacher(TEACHER, image_size=32, num_classes=3, device="cpu")
    forward, call = forwards(teacher, 5)
    assert torch.allclose(forward(), call(), atol=1e-5)
    assert call().shape == (5, 3)


def test_wrong_counts_are_refused(tiny_images):
    for wrong in ({"photos": 1}, {"crops": 0}, {"repeats": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="at least"):
            bench_label(**wrong)
    with pytest.raises(InputError, match="take 1 to all"):
        bench_label(tiny_images({"a": 1, "b": 1}), photos=3)
