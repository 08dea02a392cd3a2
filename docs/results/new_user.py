"""The way of a new user, timed: a fresh environment, then three commands and no edit.

``python docs/results/new_user.py --flowers FLOWERS --weights tf_efficientnet_lite0.safetensors
--out DIR`` builds the wheel of this checkout, installs it into a new virtual environment, and runs
``ferkd distill`` on ``--each`` photographs a class, ``ferkd export --onnx`` and ``ferkd predict``
with ONNX Runtime on photographs that none of it has seen. The environment sees the packages of this
one, so that the time of downloads does not count; ferkd itself is installed from its wheel. Writes
``new-user.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment(out: Path) -> Path:
    """A virtual environment with ferkd from its wheel; its folder of commands."""
    place = out / "venv"
    venv.create(place, with_pip=True, clear=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(place)})
    Path(packages, "others.pth").write_text(
        "".join(f"{path}\n" for path in sys.path if path.endswith("site-packages"))
    )
    wheels = out / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    python = place / "bin" / "python"
    quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
    root = str(HERE.parents[1])
    subprocess.run([python, "-m", "pip", "wheel", *quiet, root, "-w", wheels], check=True)
    (wheel,) = wheels.glob("ferkd-*.whl")
    subprocess.run([python, "-m", "pip", "install", *quiet, "--force-reinstall", wheel], check=True)
    return place / "bin"


def links(source: Path, to: Path, each: int, *, flat: bool) -> Path:
    """Links to the first ``each`` photographs a class, in class folders or all in one folder."""
    shutil.rmtree(to, ignore_errors=True)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        place = to if flat else to / folder.name
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[:each]:
            name = f"{folder.name}_{file.name}" if flat else file.name
            (place / name).symlink_to(file.resolve())
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=60)
    parser.add_argument("--budget", default="8")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    commands = environment(out)
    photos = links(given.flowers / "train", out / "photos", given.each, flat=False)
    new = links(given.flowers / "val", out / "new", 20, flat=True)
    half = "0.5,0.5,0.5"
    teacher = (
        f"timm/tf_efficientnet_lite0?checkpoint={given.weights.resolve()}&mean={half}&std={half}"
    )
    typed = [
        *("ferkd", "distill", photos, "--out", out / "small", "--teacher", teacher, "--student"),
        *("timm/mobilenetv3_small_050?pretrained=false", "--image-size", "96"),
        *("--teacher-image-size", "112", "--budget", given.budget),
    ]
    steps: list[list[Any]] = [
        typed,
        ["ferkd", "export", out / "small" / "student", "--to", out / "onnx", "--onnx"],
        ["ferkd", "predict", out / "onnx" / "model.onnx", new, "--json"],
    ]
    for folder in ("small", "onnx"):
        shutil.rmtree(out / folder, ignore_errors=True)
    seconds, answer = [], ""
    for step in steps:
        begun = time.perf_counter()
        words = [str(commands / "ferkd"), *map(str, step[1:])]
        answer = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds.append(round(time.perf_counter() - begun, 1))
    answers = json.loads(answer)
    right = sum(
        Path(one["path"]).name.startswith(one["classes"][0]["name"] + "_") for one in answers
    )
    result = json.loads((out / "small" / "result.json").read_text())
    told = {
        "commands": [
            shlex.join(map(str, step)).replace(str(out), "OUT").replace(str(given.weights), "LITE0")
            for step in steps
        ],
        "edits": 0,
        "seconds": seconds,
        "images": given.each * 5,
        "teacher_top1": result["teacher"]["top1"],
        "student_top1_on_val": result["student"]["top1"],
        "new_photographs": len(answers),
        "right_of_them": right,
    }
    (HERE / "new-user.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
