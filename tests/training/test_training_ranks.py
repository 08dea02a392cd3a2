"""Training by several processes: the same steps as by one, whoever holds which rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nets import small_convnet
from PIL import Image
from runs import TEACHER, data_on
from safetensors.torch import load_file

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.predictions import predict
from ferkd.evaluating.run import evaluate
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.system.compute import Normalise
from ferkd.system.errors import InputError
from ferkd.training import train
from ferkd.training.metrics import read_metrics
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.trainer import whole_batch

HERE = Path(__file__).parent
STEPS, STOP, MANY = 6, 3, 729
NORMALISED = {"student": {"name": "timm/test_efficientnet"}}  # by the crops of a process


def torchrun(processes: int, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )


def noise(root: Path, classes: dict[str, int], size: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:04}.png")
    return root


def recipe(photos: Path, val: Path, store: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Without batch normalisation and dropout, and with momentum: nothing enlarges rounding."""
    data = data_on(photos, val=str(val), batch_size=8, crops_per_image=1)
    if store is not None:
        data |= {"store": str(store), "crops_per_image": 2}
    base = {
        "method": "hard",
        "data": data,
        "student": {"name": "timm/test_convnext"},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"steps": STEPS},
        "evaluation": {"every_epochs": None},
        "ema": 0.9,
        "log_steps": 1,
    }
    return {**base, **changes}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder of images and labels, and recipes on them by name."""
    root = tmp_path_factory.mktemp("ranks")
    photos = noise(root / "photos", {"a": 5, "b": 4, "c": 3}, (30, 40))
    val = noise(root / "val", {"a": 3, "b": 3, "c": 3}, (20, 24))
    noise(root / "many", {"a": 400, "b": 300, "c": MANY - 700}, (8, 8))
    label(photos, f"{TEACHER}&image_size=32", root / "labels", crops=6, workers=1)
    other = "timm/test_efficientnet?random=1&num_classes=7&image_size=32"
    label(photos, other, root / "labels", workers=1, kind="features", into=True)
    stored = (photos, val, root / "labels")
    kinds = {
        "hard": recipe(
            photos,
            val,
            mix={"kind": "selfmix"},
            data={**recipe(photos, val)["data"], "crops_per_image": 2},
        ),
        "fkd": recipe(*stored, method="fkd", mix={"kind": "selfmix"}),
        "dist": recipe(*stored, method="fkd", loss={"objective": "dist"}),
        "meal_v2": recipe(
            *stored,
            method="meal_v2",
            loss={"discriminator": 0.5},
            student={"name": "timm/test_convnext", "pretrained": False},
        ),
        "feature": recipe(*stored, method="feature", mix={"kind": "selfmix"}),
        "features": recipe(
            *stored, method="feature", loss={"beside": "soft", "objective": "dist"}, clip_grad=1.0
        ),
        "pskd": recipe(photos, val, method="pskd"),
        "kd": recipe(photos, val, method="kd", teacher=TEACHER, loss={"objective": "dist"}),
        "feature-live": recipe(photos, val, method="feature-live", teacher=TEACHER),
        "parts": recipe(*stored, method="fkd", accumulate=2),
    }
    return root, kinds


@pytest.fixture(scope="module")
def done(given) -> Path:
    """The folder with runs by 1, 2 and 4 processes."""
    root, kinds = given
    many = root / "many"
    for name, settings in kinds.items():
        train(make_recipe(settings), root / f"{name}-1")
    first = [
        {"do": "train", "recipe": kinds[name], "out": str(root / f"{name}-2")} for name in kinds
    ]
    shared = {name: kinds[name] for name in ("fkd", "dist")}
    first += [
        {"do": "together", "recipes": shared, "out": str(root / "together")},
        {"do": "train", "recipe": kinds["fkd"] | NORMALISED, "out": str(root / "normalised")},
        {"do": "train", "recipe": kinds["fkd"], "out": str(root / "stopped"), "stop": STOP},
        {"do": "predict", "images": str(many), "out": str(root / "many-2")},
    ]
    start(2, first, root)
    for ranks in (1, 2, 4):
        shutil.copytree(root / "stopped", root / f"stopped-{ranks}")
    train(make_recipe(kinds["fkd"]), root / "stopped-1", resume=True)
    second = [
        {"do": "train", "recipe": kinds[n], "out": str(root / f"{n}-4")} for n in ("fkd", "pskd")
    ]
    again = {"do": "train", "recipe": kinds["fkd"], "resume": True}
    second += [
        {**again, "out": str(root / "stopped-4")},
        {"do": "predict", "images": str(many), "out": str(root / "many-4")},
    ]
    start(4, second, root)
    start(2, [{**again, "out": str(root / "stopped-2")}], root)
    return root


def start(processes: int, tasks: list[dict[str, Any]], root: Path) -> None:
    file = root / f"tasks-{processes}.json"
    file.write_text(json.dumps(tasks))
    finished = torchrun(processes, HERE / "ranks.py", file)
    assert finished.returncode == 0, finished.stderr[-4000:]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def close(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=2e-5), name


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        *((name, 2) for name in ("hard", "fkd", "dist", "meal_v2", "pskd", "kd")),
        *((name, 2) for name in ("feature", "features", "feature-live", "parts")),
        ("fkd", 4),
        ("pskd", 4),
    ],
)
def test_several_processes_take_the_steps_of_one(done, name, ranks):
    """Losses, kept weights (the average's) and figures; dist, meal_v2 and pskd see all rows."""
    root = done
    alone, together = root / f"{name}-1", root / f"{name}-{ranks}"
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    close(together, alone)
    one, several = (json.loads((run / "result.json").read_text()) for run in (alone, together))
    assert (one["world_size"], several["world_size"]) == (1, ranks)
    assert several["top1"] == one["top1"] and several["nll"] == pytest.approx(one["nll"], rel=1e-4)
    for key in ("epochs", "steps", "decodes", "data"):
        assert one[key] == several[key], key
    crops = [read_metrics(run / "metrics.jsonl")[-1]["crops"] for run in (alone, together)]
    assert crops == [STEPS * 8] * 2


def test_figures_are_those_of_the_weights_that_are_kept(done):
    """Batch normalisation's averages differ among the processes: the first one's count for all."""
    result = json.loads((done / "normalised" / "result.json").read_text())
    found = evaluate(done / "normalised", done / "val", workers=0)
    for figure in ("nll", "brier", "ece"):
        assert result[figure] == pytest.approx(found[figure], rel=1e-5), figure


@pytest.mark.parametrize("name", ["fkd", "dist"])
def test_recipes_on_one_loader_of_two_processes_are_the_runs_that_they_are_alone(done, name):
    ours, theirs = done / "together" / name, done / f"{name}-2"
    assert losses(ours) == losses(theirs)
    ours, theirs = (load_file(run / "weights.safetensors") for run in (ours, theirs))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_checkpoint_of_two_processes_goes_on_with_any_number(done, ranks):
    root = done
    assert not (root / "stopped" / "result.json").exists()
    assert len(losses(root / "stopped")) == STOP
    again = root / f"stopped-{ranks}"
    assert losses(again) == pytest.approx(losses(root / "fkd-2"), rel=1e-4)
    close(again, root / "fkd-2")
    if ranks == 2:
        ours, theirs = (load_file(r / "weights.safetensors") for r in (again, root / "fkd-2"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("ranks", [2, 4])
def test_evaluation_counts_each_image_once(done, ranks):
    """729 images, which neither 2 nor 4 processes divide; every process knows all answers."""
    root = done
    crops = CenterCrops(open_images(root / "many"), image_size=8)
    plain = Normalise([0.5] * 3, [0.5] * 3)
    alone = predict(small_convnet(0), crops, normalise=plain, batch_size=32)
    for rank in range(ranks):
        for again in range(2):
            found = torch.load(root / f"many-{ranks}.{rank}.{again}", weights_only=True)
            assert found["rows"].tolist() == list(range(MANY))
            assert torch.equal(found["targets"], alone.targets)
            assert torch.allclose(found["logits"], alone.logits, atol=1e-5)


def test_a_killed_process_started_again_ends_with_the_same_weights(given, tmp_path):
    """Dropout, batch normalisation, AdamW: to the bit on the CPU, and one process speaks."""
    _, kinds = given
    settings = kinds["fkd"] | {
        "student": {"name": "timm/test_efficientnet", "model_args": {"drop_rate": 0.5}},
        "optimizer": {"name": "adamw", "lr": 0.002},
        "checkpoint_seconds": 1e-9,
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    command = ("train", tmp_path / "r.yaml", "--json", "--resume", "--out")
    whole = torchrun(2, HERE / "killed.py", -1, *command, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert json.loads(whole.stdout)["world_size"] == 2
    assert whole.stderr.count("training: 6/6") == 1
    killed = torchrun(2, HERE / "killed.py", 4, *command, tmp_path / "killed", restarts=1)
    assert killed.returncode == 0, killed.stderr[-3000:]
    assert json.loads(killed.stdout)["steps"] == STEPS
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / n / "weights.safetensors") for n in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # What is wrong is said once, by the first.
    refused = torchrun(
        2, "-m", "ferkd", *[c for c in command if c != "--resume"], tmp_path / "whole"
    )
    assert refused.returncode == 1  # torchrun's own
    assert refused.stderr.count("already holds a run") == 1


@pytest.mark.parametrize("method", ["hard", "fkd", "feature"])
def test_a_step_in_parts_is_the_step_as_a_whole(given, done, tmp_path, method):
    root, kinds = given
    train(make_recipe({**kinds[method], "accumulate": 4}), tmp_path / "parts")
    assert losses(tmp_path / "parts") == pytest.approx(losses(root / f"{method}-1"), rel=1e-4)
    close(tmp_path / "parts", root / f"{method}-1")


def test_what_cannot_be_done_in_parts_is_refused(given, tmp_path):
    _, kinds = given
    with pytest.raises(InputError, match=r"accumulate is 2, but OwnPredictions must see the rows"):
        train(make_recipe({**kinds["pskd"], "accumulate": 2}), tmp_path / "a")
    with pytest.raises(InputError, match=r"8 rows of a step do not make 3 equal parts"):
        train(make_recipe({**kinds["fkd"], "accumulate": 3}), tmp_path / "b")


def test_a_remembering_objective_that_does_not_say_is_refused():
    class Remembers:
        def __call__(self, logits, view):
            return logits.sum()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    with pytest.raises(InputError, match="Remembers has a state and does not say"):
        whole_batch(Remembers())
    assert not whole_batch(lambda logits, view: logits.sum())


def test_batches_that_processes_cannot_share_are_refused_first(given, monkeypatch, tmp_path):
    from ferkd.system.distributed import Ranks

    _, kinds = given
    monkeypatch.setattr("ferkd.loading.loader.find_ranks", lambda *given: Ranks(0, 3))
    with pytest.raises(InputError, match=r"3 processes cannot share evenly; use batch_size 6 or 1"):
        build_trainer(make_recipe(kinds["fkd"]))


def test_synchronised_batch_normalisation_needs_cuda(given, monkeypatch):
    from ferkd.system.distributed import Ranks

    _, kinds = given
    monkeypatch.setattr("ferkd.loading.loader.find_ranks", lambda *given: Ranks(0, 2))
    with pytest.raises(InputError, match="sync_batchnorm needs CUDA devices, and the device is cp"):
        build_trainer(make_recipe({**kinds["fkd"], "sync_batchnorm": True, "device": "cpu"}))


def test_a_restart_without_resume_is_refused(given, monkeypatch, tmp_path):
    _, kinds = given
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(InputError, match=r"\(restart 1\), and only --resume goes on"):
        train(make_recipe(kinds["fkd"]), tmp_path / "run", overwrite=True)
