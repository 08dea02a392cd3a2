"""Whole suites on tiny photographs, through the command line: run, interrupted, continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import ferkd
from ferkd.labelling.run import label
from ferkd.study.compare import compare_suite, execute
from ferkd.study.compare.suite import load_suite
from ferkd.training.data import open_data
from ferkd.training.recipe import load_recipe
from ferkd.training.run import train


@pytest.fixture
def command(command_line):
    return command_line


@pytest.fixture
def suite(tiny_images, tmp_path) -> Path:
    """Two methods, one named like markup, on two seeds and four steps."""
    photos = tiny_images({"a": 5, "b": 4})
    teacher = "timm/test_resnet?random=0&num_classes=2&image_size=32"
    label(photos, teacher, tmp_path / "labels", crops=4, workers=1)
    settings = {
        "base": {
            "method": "hard",
            "data": {
                "images": str(photos),
                "val": str(photos),
                "store": str(tmp_path / "labels"),
                "image_size": 32,
                "batch_size": 4,
                "crops_per_image": 2,
                "workers": 0,
            },
            "student": {"name": "timm/test_efficientnet"},
            "schedule": {"warmup": 0.0},
            "ema": 0.9,
            "evaluation": {"every_epochs": 0.9},
        },
        "seeds": [0, 1],
        "budgets": {"short": {"steps": 4}},
        "methods": {"hard": {}, "<b>": {"method": "fkd"}},
    }
    return dump(tmp_path / "suite.yaml", settings)


def dump(path: Path, settings: dict) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def changed(suite: Path, name: str, **changes) -> Path:
    settings = yaml.safe_load(suite.read_text()) | changes
    return dump(suite.with_name(name), settings)


def runs(out: Path) -> list[str]:
    return sorted(str(file.parent.relative_to(out)) for file in out.glob("*/*/result.json"))


ALL = ["short/<b>-0", "short/<b>-1", "short/hard-0", "short/hard-1"]


def test_the_progress_names_the_run_at_work_and_counts_finished_ones(suite, tmp_path):
    out, told = tmp_path / "out", []

    def progress(done, total, note):
        told.append((done, total, note, len(runs(out))))

    compare_suite(load_suite(str(suite)), out, name="suite", progress=progress)
    assert {total for _, total, _, _ in told} == {4}
    for done, _, note, finished in told:
        assert int(done) == finished
        assert (done == finished and note == "runs") or note.startswith("runs, short/")
    named = [note.removeprefix("runs, ").split(" at ")[0] for _, _, note, _ in told if "," in note]
    order = ["short/hard-0", "short/<b>-0", "short/hard-1", "short/<b>-1"]
    assert list(dict.fromkeys(named)) == order
    shares = [note for _, _, note, _ in told if note.startswith("runs, short/hard-0 at ")]
    assert shares[0].endswith(" at 0 %") and shares[-1].endswith(" at 99 %")
    assert told[-1] == (4, 4, "runs", 4)


def test_a_suite_is_interrupted_continued_and_reported(command, suite, tmp_path, monkeypatch):
    out, page = tmp_path / "out", tmp_path / "page.html"
    trained = []

    def once(recipe, folder, **options):
        if trained:
            raise KeyboardInterrupt
        trained.append(folder.name)
        return train(recipe, folder, **options)

    monkeypatch.setattr(execute, "train", once)
    status, _, err = command("compare", suite, "--out", out)
    assert status == 130 and runs(out) == ["short/hard-0"]
    assert "short/hard-0: top-1" in err

    status, text, _ = command("compare", suite, "--out", out, "--report-only")
    assert status == 0 and "not finished: <b>-0, hard-1, <b>-1" in text
    first = (out / "short" / "hard-0" / "result.json").stat().st_mtime_ns

    def counted(recipe, folder, **options):
        trained.append(folder.name)
        return train(recipe, folder, **options)

    monkeypatch.setattr(execute, "train", counted)
    status, text, _ = command("compare", suite, "--out", out, "--html", page, "--json")
    assert status == 0 and runs(out) == ALL
    assert trained == ["hard-0", "<b>-0", "hard-1", "<b>-1"]  # seed by seed, the first not again
    assert (out / "short" / "hard-0" / "result.json").stat().st_mtime_ns == first

    found = json.loads(text)
    assert set(found["methods"]) == {"hard", "<b>"}
    row = found["methods"]["<b>"]
    assert row["seeds"] == [0, 1] and row["steps"] == 4
    assert (row["decodes"], row["crops"]) == (8, 16)  # 2 images of 2 crops a step
    results = [json.loads((out / name / "result.json").read_text()) for name in ALL[:2]]
    assert row["top1_mean"] == pytest.approx(sum(r["top1"] for r in results) / 2)
    assert set(row["top1_difference"]) >= {"mean", "low", "high"}
    assert (
        found["budgets"]["short"]["amount"] == 4 and found["budgets"]["short"]["count"] == "steps"
    )
    assert found["machine"]["cores"] and found["date"] and found["suite"] == str(suite)
    assert found["command"].startswith("ferkd compare ")

    html = page.read_text()
    assert "<b>-" not in html and "&lt;b&gt;" in html and html.count("<svg") == 6

    # The same runs, given as folders, and the folder of the suite alone.
    folders = [out / name for name in ALL]
    status, text, _ = command("compare", *folders, "--json")
    assert status == 0
    given = json.loads(text)
    assert set(given["methods"]) == {"hard", "fkd"} and given["baseline"] == "hard"
    assert given["methods"]["fkd"]["top1_mean"] == row["top1_mean"]
    status, text, _ = command("compare", out)
    assert status == 0 and "short: 4 steps" in text and "What it cost" not in text

    # Refusals: the page exists; another suite; a wrong method.
    status, _, err = command("compare", out, "--html", page)
    assert status == 2 and "exists; give another file or --overwrite" in err
    other = changed(suite, "other.yaml", set={"ema": 0.5})
    status, _, err = command("compare", other, "--out", out)
    assert status == 2 and "suite.set.ema: 'unset' in the folder, 0.5 in this suite" in err
    status, _, err = command("compare", suite, "--out", out, "--only", "hrad")
    assert status == 2 and "did you mean 'hard'?" in err

    # Another seed may be added: only it is run.
    more = changed(suite, "more.yaml", seeds=[0, 1, 2])
    trained.clear()
    status, text, _ = command("compare", more, "--out", out, "--only", "hard", "--json")
    assert status == 0 and trained == ["hard-2"]
    assert json.loads(text)["methods"]["hard"]["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_run_is_reported_and_the_others_go_on(
    command, suite, tmp_path, monkeypatch, jobs
):
    source = str(Path(ferkd.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", source)
    settings = yaml.safe_load(suite.read_text())
    settings["methods"] = {"bad": {"optimizer.lr": 1e30, "log_steps": 1}, "hard": {}}
    settings["seeds"] = [0]
    status, text, err = command(
        "compare", dump(suite, settings), "--out", tmp_path / "out", "--jobs", jobs
    )
    assert status == 1 and runs(tmp_path / "out") == ["short/hard-0"]
    said = "NonFiniteLoss: the loss became"
    assert f"short/bad-0 failed: {'failed: ' if jobs > 1 else ''}{said}" in err
    assert "not finished: bad-0" in text
    if jobs > 1:  # two runs at a time: neither's seconds say how fast its method is
        assert "seconds are not compared: other work ran beside hard" in text


def test_one_seed_gives_all_methods_the_same_start(command, suite, tmp_path):
    out = tmp_path / "out"
    still = changed(suite, "still.yaml", set={"optimizer": {"name": "adamw", "lr": 1e-30}})
    status, _, _ = command("compare", still, "--out", out)
    assert status == 0

    def weights(name: str) -> dict[str, torch.Tensor]:
        state = safetensors.torch.load_file(out / "short" / name / "weights.safetensors")
        return {k: v for k, v in state.items() if k.endswith("weight")}

    def images(name: str) -> list[list[int]]:
        loader = open_data(load_recipe(out / "short" / name / "recipe.yaml")).loader
        return [batch.rows.tolist() for batch in loader.batches(0, 4)]

    hard, fkd = weights("hard-0"), weights("<b>-0")
    assert len(hard) > 10 and all(torch.equal(hard[key], fkd[key]) for key in hard)
    assert not all(torch.equal(hard[key], value) for key, value in weights("hard-1").items())
    assert images("hard-0") == images("<b>-0") != images("hard-1")


def test_missing_data_is_named_before_anything_is_written(command, suite, tmp_path):
    shutil.rmtree(tmp_path / "labels")
    status, _, err = command("compare", suite, "--out", tmp_path / "out")
    assert status == 2 and "labels" in err and "--only" in err
    assert not (tmp_path / "out").exists()


def test_foreign_folders_are_left_alone(command, suite, tmp_path):
    out = tmp_path / "full"
    out.mkdir()
    for name in ("mine.txt", "suite.yaml"):
        (out / name).write_text("mine")
        status, _, err = command("compare", suite, "--out", out)
        assert status == 2 and "holds no suite.yaml that ferkd compare wrote" in err
    assert {file.name: file.read_text() for file in out.iterdir()} == {
        "mine.txt": "mine",
        "suite.yaml": "mine",
    }


def test_usage_mistakes(command, suite, tmp_path):
    for arguments, said in (
        ([suite], "give --out DIR"),
        (["flowers-mian"], "did you mean 'flowers-main'?"),
        ([suite, "x", "--out", tmp_path / "o"], "give one suite"),
        ([tmp_path, "--only", "hard"], "are for suites"),
        ([suite, "--out", tmp_path / "o", "--jobs", "0"], "--jobs 0"),
        ([suite, "--out", tmp_path / "o", "--baseline", "hrd"], "did you mean 'hard'?"),
        ([suite, "--out", tmp_path / "o", "--report-only"], "holds no finished run"),
    ):
        status, _, err = command("compare", *arguments)
        assert status == 2 and said in err, (arguments, err)


def test_seeds_are_added_to_one_method(command, suite, tmp_path):
    out = tmp_path / "out"
    command("compare", suite, "--out", out)
    status, text, _ = command(
        "compare", suite, "--out", out, "--seeds", 3, "--only", "hard", "--json"
    )
    assert status == 0 and runs(out) == sorted([*ALL, "short/hard-2"])
    assert list(json.loads(text)["methods"]["hard"]["runs"]) == ["0", "1", "2"]

    status, _, err = command("compare", suite, "--out", out)
    assert status == 0, err  # a part of the folder's seeds is reported, and the rest stays
    for form in ((), ("--report-only",)):
        status, text, _ = command("compare", suite, "--out", out, *form, "--seeds", 1, "--json")
        assert status == 0 and json.loads(text)["methods"]["hard"]["seeds"] == [0]
    assert (out / "short/hard-2/result.json").is_file()
    status, text, _ = command("compare", out)  # the folder knows its seeds
    assert status == 0 and "not finished: <b>-2" in text

    status, _, err = command("compare", suite, "--out", out, "--seeds", 0)
    assert (status, err.strip()) == (2, "error: --seeds 0: it must be at least 1")
    status, _, err = command("compare", out / "short" / "hard-0", "--seeds", 2)
    assert status == 2 and "are for suites, not for runs" in err


def test_what_is_not_on_the_baselines_terms_is_said(command, suite, tmp_path):
    methods = {
        "hard": {},
        "fkd": {"method": "fkd"},
        "m4": {"method": "ferkd", "data.crops_per_image": 4},
    }
    other = changed(suite, "other.yaml", seeds=[0], methods=methods)
    status, text, _ = command("compare", other, "--out", tmp_path / "out", "--json")
    found = json.loads(text)
    assert status == 0 and found["budgets"]["short"]["remarks"][-1:] == [
        "not on hard's terms: data.crops_per_image 4 (m4) instead of 2"
    ]
    run = found["methods"]["m4"]["runs"]["0"]
    assert set(run["regions"]) == {"discarded", "hard", "important"} and len(run["thresholds"]) == 3
    assert "regions" not in found["methods"]["hard"]["runs"]["0"]


def test_a_budget_in_seconds_keeps_its_trial(command, suite, tmp_path, monkeypatch):
    timed = changed(suite, "timed.yaml", budgets={"clock": {"seconds": 1e-6}})
    out, trials = tmp_path / "out", []
    true = execute.train

    def counted(recipe, folder, **options):
        trials.append(recipe.schedule.steps)
        return true(recipe, folder, **options)

    monkeypatch.setattr(execute, "train", counted)
    status, _, _ = command("compare", timed, "--out", out, "--only", "hard")
    assert status == 0
    # One trial for both seeds: 8 steps to warm up and 32 on the clock; then a run of each seed.
    assert trials == [40, 1, 1]
    kept = [json.loads((out / "clock" / f"hard-{s}" / "trial.json").read_text()) for s in (0, 1)]
    assert kept[0] == kept[1] and kept[0]["steps"] == 32
    assert kept[0]["steps_per_second"] == pytest.approx(32 / kept[0]["seconds"])
    # A seed added later is as long as the others, by the rate that was kept.
    fast = {**kept[0], "steps_per_second": 3e6}
    (out / "clock" / "hard-0" / "trial.json").write_text(json.dumps(fast))
    more = changed(timed, "more.yaml", seeds=[0, 1, 2])
    status, _, _ = command("compare", more, "--out", out, "--only", "hard")
    assert status == 0 and trials[3:] == [3]
    assert not list(out.glob("*/.trial-*"))


def test_runs_in_processes_stop_at_ctrl_c_and_go_on(suite, tmp_path):
    long = changed(suite, "long.yaml", budgets={"short": {"steps": 100_000}})
    source = str(Path(ferkd.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    words = [sys.executable, "-m", "ferkd", "compare", str(long), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        metrics = [out / "short" / f"{name}-0" / "metrics.jsonl" for name in ("hard", "<b>")]
        deadline = time.monotonic() + 120
        while not all(file.is_file() and file.stat().st_size for file in metrics):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert runs(out) == []
    assert sorted(f.parent.name for f in out.glob("*/*/checkpoint.pt")) == ["<b>-0", "hard-0"]
