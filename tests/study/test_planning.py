"""Plans, worked out by hand from round rates."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from ferkd.store.records import RecordFormat
from ferkd.study.planning import Cores, Rates, Scale, plan, worker_memory
from ferkd.system.errors import InputError
from ferkd.training.recipe import load_recipe

# 36,000 images, 10 crops each, 30 epochs, 4 crops per decode.
SCALE = Scale(images=36_000, crops=10, classes=1000, epochs=30)
RATES = Rates(teacher=100, student=1000, decode=500)


def test_hours_by_hand():
    """Labelling 360,000 / 100 s = 1 h. 30 epochs show 1,080,000 crops: stepping .3 h, decoding
    one crop each .6 h, four each .15 h; a live step takes 1/1000 + 1/100 s, so 3.3 h."""
    found = plan(SCALE, RATES)
    assert found.labelling.hours == pytest.approx(1.0) and found.labelling.bound == "stepping"
    training = {name: (round(w.hours, 9), w.bound) for name, w in found.training.items()}
    assert training == {
        "hard": (0.6, "loading"),
        "live": (3.3, "stepping"),
        "fkd": (0.3, "stepping"),
        "ferkd": (0.3, "stepping"),
    }
    assert found.total_hours("ferkd", 3) == pytest.approx(1.9)
    assert found.total_hours("live", 3) == pytest.approx(9.9)


def test_devices_share_the_steps_but_not_the_decoder():
    """Four devices: labelling .25 h, live .825 h, the stored labels' .075 h of steps wait for
    .15 h of decoding."""
    found = plan(Scale(36_000, 10, 1000, 30, devices=4), RATES)
    assert found.labelling.hours == pytest.approx(0.25)
    assert found.training["live"].hours == pytest.approx(0.825)
    assert found.training["ferkd"].hours == pytest.approx(0.15)
    assert found.training["ferkd"].bound == "loading"


def test_break_even_by_hand():
    """Each student saves 3 h of live teaching, and 1 h of labelling is due: from the first
    student on, or from 10 epochs, as many as there are crops to label."""
    found = plan(SCALE, RATES)
    assert found.break_even_students == 1 and found.break_even_epochs == pytest.approx(10)
    short = plan(Scale(36_000, 10, 1000, 4), RATES)  # a student saves .4 h: three are needed
    assert short.break_even_students == 3
    assert short.total_hours("ferkd", 3) <= short.total_hours("live", 3)
    assert short.total_hours("ferkd", 2) > short.total_hours("live", 2)


def test_a_teacher_that_slows_nothing_is_never_replaced():
    """Both wait for the decoder, which the live one asks for no more images (m = 1)."""
    found = plan(Scale(1000, 10, 1000, 4, crops_per_image=1), Rates(1e6, 1e6, 10))
    assert found.break_even_students is None and found.break_even_epochs is None


def test_bytes_are_those_of_the_record_and_the_image_table():
    """Top 5 of 1000 in one byte each: box 8, classes 10, gaps 4, tail 3, truth 1 = 26;
    24 bytes an image."""
    found = plan(SCALE, RATES)
    assert found.bytes_per_crop == 26
    assert found.storage_bytes == 360_000 * 26 + 36_000 * 24
    every = plan(Scale(10, 10, 1000, 1, top_k=None), RATES)
    assert every.bytes_per_crop == 8 + RecordFormat.choose(None, 1000).dtype.itemsize > 2000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "images 0: it must be at least 1"),
        ({"classes": 1}, "classes 1: it must be at least 2"),
        ({"epochs": 0.0}, "epochs 0: it must be above 0"),
        ({"crops": 2}, "4 crops per image and visit of 2 stored ones"),
        ({"students": 0}, "students 0: it must be at least 1"),
    ],
)
def test_impossible_scales_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Scale(**{"images": 10, "crops": 10, "classes": 5, "epochs": 3, **wrong})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_are_numbers_above_0(rate):
    with pytest.raises(InputError, match=r"student rate .*: a rate is a number above 0"):
        Rates(1, rate, 1)


def run(capsys, *arguments: object) -> str:
    from typer.testing import CliRunner

    from ferkd.cli import app

    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


GIVEN = ("--teacher-rate", 100, "--student-rate", 1000, "--decode-rate", 500)


def test_the_command_gives_costs_and_says_where_rates_come_from(capsys):
    out = run(
        capsys, "fkd-resnet50", "--images", 36_000, "--crops", 10, "--price", 2, "--students", 2,
        "--set", "schedule={epochs: 30}", *GIVEN, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert found["rates"]["teacher"] == {"per_second": 100, "from": "given"}
    assert found["labelling"]["cost"] == pytest.approx(2.0)
    assert found["training"]["ferkd"]["total_hours"] == pytest.approx(1.6)
    assert found["training"]["ferkd"]["total_cost"] == pytest.approx(3.2)
    text = run(capsys, "fkd-resnet50", "--images", 36_000, "--crops", 10, *GIVEN)
    assert "from 1 student on, or from 10.0 epochs of one" in text


def test_a_length_in_steps_counts_as_epochs(capsys):
    """2250 steps of 1024 crops over 36,000 images are 64 epochs."""
    out = run(
        capsys, "fkd-resnet50", "--images", 36_000, "--crops", 10,
        "--set", "schedule={steps: 2250}", *GIVEN, "--json",
    )  # fmt: skip
    assert json.loads(out)["epochs"] == pytest.approx(64)


def test_the_command_refuses_bad_rates_and_a_missing_teacher():
    from typer.testing import CliRunner

    from ferkd.cli import app

    for arguments, message in (
        (["plan"], "give --teacher-rate, or --teacher to measure"),
        (["plan", "--teacher-rate", "0"], "--teacher-rate 0: a rate is a number above 0"),
        (["plan", "--teacher-rate", "1", "--price", "-1"], "--price -1"),
    ):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, InputError) and message in str(error)


def test_rates_are_measured_where_they_are_not_given(tiny_images):
    from ferkd.study.rates import loading_rates, student_rate

    folder = tiny_images({"a": 2, "b": 2})
    sets = ("data.image_size=32", "student={name: timm/mobilenetv3_small_050}", "device=cpu")
    recipe = load_recipe("fkd-resnet50", sets)
    rate = student_rate(recipe, 10, seconds=0.1)
    assert np.isfinite(rate) and rate > 0
    found = loading_rates(folder, 32, seconds=0.1)
    assert found.decode > 0 and found.cut > 0 and found.what.startswith("4 images of ")
    assert found.pixels == 48 * 40
    found = loading_rates(folder / "absent", 32, seconds=0.1)
    assert found.what.startswith("a made picture of 500x375 pixels, one core times ")
    assert found.pixels == 375 * 500


def test_nodes_share_the_decoding_too():
    """Two nodes of two devices: labelling .25 h; the stored labels' .075 h of steps a node equals
    the decoding of half of 270,000 images at 500 a second, .075 h; each node reads 500 files/s."""
    scale = Scale(36_000, 10, 1000, 30, devices=2, nodes=2, image_bytes=100_000)
    found = plan(scale, RATES)
    assert found.labelling.hours == pytest.approx(0.25)
    stored = found.training["ferkd"]
    assert stored.hours == pytest.approx(0.075)
    assert stored.files_per_second == pytest.approx(500)
    assert stored.bytes_per_second == pytest.approx(5e7)


def test_cutting_counts_beside_decoding():
    """1,080,000 crops at 2000 a second are .15 h more than the .15 h of decoding."""
    found = plan(SCALE, Rates(100, 1e9, 500, cut=2000))
    assert found.training["ferkd"].hours == pytest.approx(0.3)
    assert found.training["ferkd"].bound == "loading"


@pytest.mark.parametrize(
    ("cores", "hours"),
    [
        (Cores(2, threads=1, workers=0), 0.3 + 0.3),  # one after the other, on one core
        (Cores(2, threads=1, workers=1), 0.3),  # side by side: .3 h of loading by one core
        (Cores(2, threads=2, workers=1), (0.3 * 2 + 0.3) / 2),  # three shares on two cores
        (Cores(4, threads=1, workers=1), 0.6),  # .15 h of four cores by one of them
    ],
)
def test_steps_on_the_loading_cores(cores, hours):
    """Stepping .3 h; decoding .15 h of all cores together."""
    assert plan(SCALE, RATES, cores).training["ferkd"].hours == pytest.approx(hours)


def test_a_workers_memory_by_hand():
    """8 files of 100 kB, a picture of 3 x 0.2 MB, three batches of 64 x 3 x 64 x 64 bytes."""
    found = worker_memory(batch_size=64, image_size=64, pixels=200_000, image_bytes=100_000)
    assert found == 800_000 + 600_000 + 3 * 64 * 3 * 64 * 64


def test_the_plan_of_a_small_job_is_near_the_measured_one(tiny_images, tmp_path, monkeypatch):
    """Within 30 % on an idle machine (docs/planning.md); twice that here, for other work beside."""
    from ferkd.labelling.run import label
    from ferkd.study.rates import loading_rates, student_rate, teacher_rate
    from ferkd.training import train

    folder = tiny_images({"a": 40, "b": 40}, size=(320, 240))
    teacher = "timm/resnet18?random=0&num_classes=2"
    settings = (
        f"data.images={folder}", "data.image_size=96", "data.batch_size=32", "data.workers=0",
        "student={name: timm/resnet10t}", "schedule={steps: 20}", "device=cpu", "precision=fp32",
    )  # fmt: skip
    recipe = load_recipe("fkd-resnet50", [*settings, f"data.store={tmp_path / 'labels'}"])
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"val": None})})
    started = time.perf_counter()
    label(folder, teacher, tmp_path / "labels", crops=8, image_size=96, workers=1, device="cpu")
    labelled = time.perf_counter() - started
    rates = Rates(
        teacher_rate(f"{teacher}&image_size=96", device="cpu", precision="fp32", seconds=0.5),
        student_rate(recipe, 2, seconds=0.5),
        *loading_rates(folder, 96, seconds=0.5)[:2],
    )
    scale = Scale(80, 8, 2, epochs=20 * 32 / 80, crops_per_image=recipe.data.crops_per_image)
    found = plan(scale, rates, Cores(2, torch.get_num_threads(), workers=0))
    trained = train(recipe, tmp_path / "run")["seconds"]
    for name, hours, measured in (
        ("labelling", found.labelling.hours, labelled),
        ("training", found.training["fkd"].hours, trained),
    ):
        ratio = hours * 3600 / measured
        print(name, ratio)
        assert 1 / 2.5 < ratio < 2.5, (name, ratio)
