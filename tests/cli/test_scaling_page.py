"""The commands of docs/scaling.md in their forms of two processes: the labels of one process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from pictures import write_noise
from stores import bytes_of

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
SPEC = "timm/test_resnet?random={}&num_classes=2&image_size=32"
SMALL = ["--crops", "2", "--no-agreement-check", "--device", "cpu", "--workers", "1"]
# What makes the page's cluster of 8 GPUs a node, or of 4 nodes, one of two processes.
FEWER = {
    "timm/resnet50": SPEC.format(0), "timm/resnet101": SPEC.format(1), "0-31": "0-1",
    "--nproc-per-node 8": "--nproc-per-node 2", "--ray-workers 8": "--ray-workers 2",
}  # fmt: skip


def lines_of(title: str, kind: str = "bash no-run") -> list[str]:
    """The commands below a heading of the page."""
    section = PAGE[PAGE.index(f"\n## {title}\n") :]
    block = re.search(rf"```{kind}[^\n]*\n(.*?)```", section, re.DOTALL)
    assert block is not None
    text = block[1]
    for written, fewer in FEWER.items():
        text = text.replace(written, shlex.quote(fewer) if "&" in fewer else fewer)
    return text.splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, what one process makes of them, and a recipe."""
    from ferkd import label, train
    from ferkd.training.recipe import load_recipe

    root = tmp_path_factory.mktemp("scaling")
    names = [f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(20)]  # two parts
    photos = write_noise(root / "photos" / "train", dict.fromkeys(names, (40, 36)))
    options: dict[str, Any] = {
        "crops": 2, "check_agreement": False, "device": "cpu", "workers": 1
    }  # fmt: skip
    label(photos, SPEC.format(0), root / "one", **options)
    shutil.copytree(root / "one", root / "both")
    label(photos, SPEC.format(1), root / "both", into=True, signal="second", **options)
    recipe = {
        "method": "fkd",
        "data": {
            "images": "photos/train", "store": "labels", "image_size": 32, "batch_size": 8,
            "crops_per_image": 2, "workers": 0,
        },
        "student": {"name": "timm/test_convnext"},  # without batch statistics
        "schedule": {"steps": 2},
        "device": "cpu",
    }  # fmt: skip
    (root / "my.yaml").write_text(yaml.safe_dump(recipe))
    alone = load_recipe(root / "my.yaml", [f"data.images={photos}", f"data.store={root / 'one'}"])
    train(alone, root / "student")
    return root


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working directory, without labels and runs of the test before."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("FERKD_CACHE", str(place / "cache"))
    for left in ("labels", "runs"):
        shutil.rmtree(place / left, ignore_errors=True)
    return place


@pytest.fixture
def ferkd(command_line: Callable[..., tuple[int, str, str]]) -> Callable[[str], None]:
    """Run a line of the page that begins with ferkd."""

    def run(line: str) -> None:
        program, *words = shlex.split(line, comments=True)
        assert program == "ferkd"
        status, _, said = command_line(*words, *(SMALL if words[0] == "label" else []))
        assert status == 0, (line, said)

    return run


def torchrun(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    command += SMALL if "label" in words else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def is_one(run: Path, place: Path, world_size: int) -> None:
    """A run of several processes took the steps of one: what it lost, it lost alike."""
    import json

    one, other = (
        json.loads((folder / "result.json").read_text()) for folder in (place / "student", run)
    )
    assert other["world_size"] == world_size and other["steps"] == one["steps"] == 2
    losses = [
        [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]
        for text in ((f / "metrics.jsonl").read_text() for f in (place / "student", run))
    ]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_one_gpu(here: Path, ferkd: Callable[[str], None]) -> None:
    for line in lines_of("One GPU"):
        ferkd(line)
    assert bytes_of(Path("labels")) == bytes_of(here / "one")
    is_one(Path("runs/student"), here, 1)


def test_one_node(here: Path) -> None:
    first, second, third = lines_of("One node of 8 GPUs")
    torchrun(first)
    assert bytes_of(Path("labels")) == bytes_of(here / "one")
    torchrun(second)
    assert bytes_of(Path("labels")) == bytes_of(here / "both")
    shutil.rmtree("labels")  # a store of one signal, as the recipe wants
    shutil.copytree("one", "labels")
    torchrun(third)
    is_one(Path("runs/student"), here, 2)


def test_machines_without_a_scheduler(here: Path, ferkd: Callable[[str], None]) -> None:
    for line in lines_of("Machines without a scheduler"):
        ferkd(line)
    assert bytes_of(Path("labels")) == bytes_of(here / "one")


def test_an_array(
    here: Path, ferkd: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = lines_of("A SLURM array")
    words = shlex.split(line)
    assert words[:3] == ["sbatch", "--array", "0-1"]
    for task in (1, 0):
        for key, value in {"ID": task, "MIN": 0, "MAX": 1, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
        ferkd(words[-1])
        assert Path("labels/manifest.json").exists() == (task == 0)
    assert bytes_of(Path("labels")) == bytes_of(here / "one")


SLURM = {  # two nodes of one process each, both here
    "scontrol": "echo 127.0.0.1; echo 127.0.0.2",
    "srun": '"$@" & "$@" & wait -n || exit 1; wait -n',
    "torchrun": 'exec "$PYTHON" -m torch.distributed.run --local-addr 127.0.0.1 "$@" $SMALL',
}


def test_several_nodes(here: Path) -> None:
    """The page's job, whose programs of SLURM start two launchers of one process each."""
    job = "\n".join(lines_of("torchrun on several nodes by SLURM", "sh"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = job.replace(":29500", f":{port}").replace("--nproc-per-node 2", "--nproc-per-node 1")
    label = next(line for line in job.splitlines() if line.startswith("launch label"))
    job = job.replace(label, f"{label} {' '.join(SMALL)}")
    (here / "job.sh").write_text(job)
    programs = here / "slurm"
    programs.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable,
        "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SMALL": "",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "job.sh"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert bytes_of(Path("labels")) == bytes_of(here / "one")
    is_one(Path("runs/student"), here, 2)


def test_ray(here: Path, ferkd: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever other cluster this machine has
    install, line = lines_of("Ray")
    assert install == "pip install 'ferkd[ray]'"
    ferkd(line)
    assert bytes_of(Path("labels")) == bytes_of(here / "one")


def test_s3(here: Path, ferkd: Callable[[str], None]) -> None:
    import fsspec

    install, *lines = lines_of("S3")
    assert install == "pip install 'ferkd[s3]'"
    with s3_server.server():
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        s3.put("photos/train", "bucket/photos/train", recursive=True)
        for line in lines:
            ferkd(line)
        s3.get("bucket/labels", "labels", recursive=True)
    ours, theirs = bytes_of(Path("labels")), bytes_of(here / "one")
    assert ours == theirs
    is_one(Path("runs/student"), here, 1)
