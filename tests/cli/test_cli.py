"""The command line: results on stdout, messages on stderr, statuses, and bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import write_noise

TEACHER = "timm/resnet10t?random=0&num_classes=2&image_size=32"


def write_images(root: Path, classes: dict[str, int]) -> Path:
    names = [f"{name}/{i}.jpg" for name, count in classes.items() for i in range(count)]
    return write_noise(root, dict.fromkeys(names, (40, 36)))


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_images(tmp_path / "images", {"cat": 4, "dog": 5})


@pytest.fixture
def ferkd(command_line):
    return command_line


RECIPE = """
method: ferkd
data: {images: IMAGES, val: IMAGES, store: STORE, image_size: 32, batch_size: 8, crops_per_image: 2,
       workers: 0}
student: {name: timm/resnet10t, model_args: {channels: [8, 8, 8, 8], stem_width: 4}}
schedule: {steps: 4}
"""


def test_label_inspect_train_evaluate(ferkd, folder, tmp_path):
    store, run = tmp_path / "labels", tmp_path / "run"
    status, out, _ = ferkd(
        "label", folder, "--teacher", TEACHER, "--out", store, "--crops", 4, "--json"
    )
    labelled = json.loads(out)
    assert status == 0 and labelled["images"] == 9 and labelled["crops_per_image"] == 4
    assert {"seconds", "crops_per_second", "store"} <= set(labelled)

    page = tmp_path / "page.html"
    status, out, _ = ferkd(
        "inspect", store, "--thresholds", "0.1,0.5,1", "--images", folder, "--html", page, "--json"
    )
    inspected = json.loads(out)
    assert status == 0 and inspected["thresholds"] == [0.1, 0.5, 1.0]
    assert set(inspected["regions"]) == {"discarded", "hard", "important"}
    assert sum(inspected["regions"].values()) == pytest.approx(1)
    assert inspected["bytes_per_crop"] > 0 and 'id="chart"' in page.read_text()

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("IMAGES", str(folder)).replace("STORE", str(store)))
    status, out, err = ferkd("train", recipe, "--out", run, "--set", "optimizer.lr=0.01", "--json")
    trained = json.loads(out)
    assert status == 0 and trained["steps"] == 4 and "regions: thresholds" in err
    assert {"top1", "top5", "nll", "ece", "epochs", "seconds", "crops_per_second", "run"} <= set(
        trained
    )
    assert "lr: 0.01" in (run / "recipe.yaml").read_text()

    status, out, _ = ferkd("evaluate", run, folder, "--store", store, "--workers", 1, "--json")
    evaluated = json.loads(out)
    assert status == 0 and evaluated["top1"] == trained["top1"]
    assert {"brier", "balanced_accuracy", "agreement"} <= set(evaluated)
    assert set(evaluated["per_class"]) == {"cat", "dog"}

    # The run is itself a teacher.
    status, out, _ = ferkd(
        "label", folder, "--teacher", run, "--out", tmp_path / "again", "--crops", 2
    )
    assert status == 0 and "9 images x 2 crops labelled" in out


def test_bad_input_gets_one_message_and_status_2(ferkd, folder, tmp_path):
    def refused(*arguments: object) -> str:
        status, out, err = ferkd(*arguments)
        assert (status, out) == (2, ""), err
        assert "Traceback" not in err
        return err

    out = tmp_path / "labels"
    label = ("label", folder, "--teacher", TEACHER, "--out", out, "--crops", 2)
    assert "nowhere" in refused("label", tmp_path / "nowhere", "--teacher", TEACHER, "--out", out)
    three = TEACHER.replace("num_classes=2", "num_classes=3")
    message = refused("label", folder, "--teacher", three, "--out", out)
    assert "3 classes" in message and "--no-targets" in message
    (folder / "empty").mkdir()
    assert "empty" in refused(*label)
    (folder / "empty").rmdir()
    (folder / "dog/text.jpg").write_text("not an image")
    message = refused(*label)
    assert "dog/text.jpg" in message and "unreadable" in message
    (folder / "dog/text.jpg").unlink()
    data = (folder / "dog/0.jpg").read_bytes()
    (folder / "dog/0.jpg").write_bytes(data[:300])
    assert "dog/0.jpg" in refused(*label, "--overwrite")
    (folder / "dog/0.jpg").write_bytes(data)
    assert "--resume" in refused(*label) and "--overwrite" in refused(*label)
    assert ferkd(*label, "--overwrite")[0] == 0
    assert "--resume" in refused(*label)
    message = refused("inspect", out, "--thresholds", "0.5,0.4,0.9")
    assert "out of order" in message and "0 <= low <= middle <= top <= 1" in message
    assert "three numbers" in refused("inspect", out, "--thresholds", "0.5,x")
    assert "holds no label store" in refused("inspect", tmp_path)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("IMAGES", str(folder)).replace("STORE", str(out)))
    run = tmp_path / "run"
    message = refused("train", recipe, "--out", run, "--set", "optimizer.lrr=1")
    assert "optimizer.lr" in message and "lr" in message
    others = write_images(tmp_path / "others", {"cat": 2, "dog": 2})
    (others / "cat/0.jpg").rename(others / "cat/zero.jpg")
    other_store = tmp_path / "other-labels"
    ferkd("label", others, "--teacher", TEACHER, "--out", other_store, "--crops", 2)
    message = refused("train", recipe, "--out", run, "--set", f"data.store={other_store}")
    assert "belong to another image set" in message
    one = write_images(tmp_path / "one", {"cat": 3})
    message = refused(
        "train", recipe, "--out", run, "--set", "method=hard", "--set", f"data.images={one}"
    )
    assert "1 class" in message
    assert not run.exists()
    assert refused("train", recipe, "--out", tmp_path / "others").count("nothing is written") == 1


def test_usage_errors_and_help(ferkd):
    status, _, err = ferkd("label")
    assert status == 2 and "Missing" in err
    status, _, err = ferkd("lable")
    assert status == 2
    status, out, _ = ferkd("--help")
    assert status == 0 and all(c in out for c in ("label", "train", "evaluate", "inspect", "demo"))
    status, out, _ = ferkd("--version")
    assert status == 0 and out.startswith("ferkd ")


def test_failures_at_run_time_are_status_1_and_debug_shows_where(
    ferkd, folder, tmp_path, monkeypatch
):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("ferkd.labelling.run.label", broken)
    arguments = ("label", folder, "--teacher", TEACHER, "--out", tmp_path / "s")
    status, _, err = ferkd(*arguments)
    assert status == 1 and "RuntimeError: the disk is on fire" in err and "Traceback" not in err
    status, _, err = ferkd("--debug", *arguments)
    assert status == 1 and "Traceback" in err


def test_an_interrupt_is_status_130(ferkd, folder, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ferkd.labelling.run.label", interrupted)
    status, _, _ = ferkd("label", folder, "--teacher", TEACHER, "--out", tmp_path / "s")
    assert status == 130


def test_shipped_recipes_are_listed_shown_and_copied(ferkd, tmp_path):
    from ferkd.training.recipe import load_recipe, shipped_recipes

    status, out, _ = ferkd("recipes", "ls")
    assert status == 0 and shipped_recipes()
    for name in shipped_recipes():
        assert name in out
        shown = ferkd("recipes", "show", name)[1]
        copy = tmp_path / f"{name}.yaml"
        assert ferkd("recipes", "copy", name, copy)[0] == 0 and copy.read_text() == shown
        assert load_recipe(str(copy), []) == load_recipe(name, [])
        assert ferkd("recipes", "copy", name, copy)[0] == 2
    status, _, err = ferkd("recipes", "show", "nothing")
    assert status == 2 and "shipped" in err


EVIL = "dog\x1b[2J\u202e"


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Class folders and files whose names hold terminal escapes and a line end."""
    root = write_images(tmp_path / "images", {"cat": 4, EVIL: 5})
    (root / EVIL / "x\n\x1b]0;t\x07.jpg").write_bytes(b"")
    return root


def test_names_do_not_reach_the_terminal_or_the_page_raw(ferkd, hostile, tmp_path, monkeypatch):
    store, page, run = tmp_path / "labels", tmp_path / "page.html", tmp_path / "run"
    label = ("label", hostile, "--teacher", TEACHER, "--out", store, "--crops", 2)
    said = "".join(ferkd(*label)[1:])  # the empty file is one of ten: too many
    said += "".join(ferkd(*label, "--max-unreadable", 0.5, "--overwrite")[1:])
    assert r"left out dog\x1b[2J\u202e/x\n\x1b]0;t\x07.jpg: the file is empty" in said
    said += "".join(ferkd("inspect", store, "--images", hostile, "--html", page)[1:])
    assert re.search(f"written to +{re.escape(str(page))}\n", said)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("IMAGES", str(hostile)).replace("STORE", str(store)))
    (hostile / EVIL / "x\n\x1b]0;t\x07.jpg").unlink()
    said += "".join(ferkd("train", recipe, "--out", run)[1:])
    for form in ((), ("--json",)):
        status, out, err = ferkd("evaluate", run, hostile, *form)
        assert status == 0
        said += out + err
    said += "".join(ferkd("inspect", store, EVIL)[1:])  # wrong use: the name is in the message
    assert r"dog\x1b[2J\u202e" in said
    for raw in ("\x1b", "\u202e", "\x07"):
        assert raw not in said and raw not in page.read_text()


def test_json_stays_json_where_the_terminal_knows_ascii_only(tmp_path):
    """A real process with PYTHONIOENCODING=ascii: names are escaped as JSON escapes them."""
    images = write_images(tmp_path / "images", {"café": 2, "thé": 2})
    arguments = ["label", images, "--teacher", TEACHER, "--out", tmp_path / "l", "--crops", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ferkd", *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    command = [sys.executable, "-m", "ferkd", "inspect", str(tmp_path / "l"), "--json"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    assert done.stdout.isascii()
    said = {s["labelled"] for s in json.loads(done.stdout)["suspicious"]}
    assert said <= {"café", "thé"} and said
