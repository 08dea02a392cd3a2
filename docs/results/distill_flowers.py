"""``ferkd distill`` on the flowers: the runs of docs/distill.md, killed and continued.

``python docs/results/distill_flowers.py CASE --flowers FLOWERS --weights DIR --out DIR`` runs one
case and writes ``distill-CASE.json`` beside this file. ``--weights`` holds what
pretrained_weights.py wrote. Cases:

- ``scratch``: EfficientNet-Lite0 teaches a small student from scratch, beside the baseline
- ``pretrained``: EfficientNet-Lite1 teaches a pretrained Lite0, beside the baseline
- ``few``: as scratch, with a tenth of the labels; the other images are given by --unlabelled
- ``killed``: as scratch, run whole, and again killed twice at random by SIGKILL and continued; the
  files of both are compared byte by byte

``--every N`` takes every N-th training photograph of a class, and every (N + 1) / 2-th to validate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent
CASES = ("scratch", "pretrained", "few", "killed")


def command(case: str, given: argparse.Namespace, out: Path) -> list[str]:
    """The command of a case, as a user would type it."""

    def network(number: int) -> str:
        file = given.weights / f"tf_efficientnet_lite{number}.safetensors"
        return (
            f"timm/tf_efficientnet_lite{number}?checkpoint={file}&mean=0.5,0.5,0.5&std=0.5,0.5,0.5"
        )

    small = "timm/mobilenetv3_small_050?pretrained=false"
    images = _some(given.flowers, given.out / f"{case}-images", given.every)
    more: list[str] = []
    if case == "few":
        known = _few(images, given.out / "few-known")
        more = ["--unlabelled", str(known / "rest"), "--val", str(images / "val")]
        images = known / "known"
    sizes = ["--image-size", "64", "--teacher-image-size", "112"]
    if case == "pretrained":
        sizes = ["--image-size", "96", "--teacher-image-size", "128"]
    return [
        *("ferkd", "distill", str(images), "--out", str(out), "--json", *more),
        *("--teacher", network(1 if case == "pretrained" else 0)),
        *("--student", network(0) if case == "pretrained" else small, *sizes),
        *("--budget", given.budget or {"pretrained": "2", "killed": "4"}.get(case, "12")),
        *(["--baseline"] if case != "killed" else []),
        *("--workers", "1", "--device", "cpu"),
    ]


def _some(flowers: Path, to: Path, every: int) -> Path:
    """Links to a part of the photographs."""
    if every == 1:
        return flowers
    for part, step in (("train", every), ("val", (every + 1) // 2)):
        for folder in sorted(path for path in (flowers / part).iterdir() if path.is_dir()):
            place = to / part / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir())[::step]:
                if not (place / file.name).is_symlink():
                    (place / file.name).symlink_to(file.resolve())
    return to


def _few(flowers: Path, to: Path) -> Path:
    """Every tenth image in its class folder, the others in one folder without a class; links."""
    if to.exists():
        return to
    for folder in sorted((flowers / "train").iterdir()):
        if not folder.is_dir():
            continue
        (to / "known" / folder.name).mkdir(parents=True)
        (to / "rest").mkdir(exist_ok=True)
        for number, file in enumerate(sorted(folder.iterdir())):
            known = number % 10 == 0
            place = to / "known" / folder.name if known else to / "rest"
            (place / file.name).symlink_to(file.resolve())
    return to


def run(words: list[str]) -> dict[str, Any]:
    """A command that ends well; its JSON."""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def killed(words: list[str], out: Path, seconds: float, seed: int) -> dict[str, Any]:
    """The same command, killed twice within ``seconds`` of its length, and continued."""
    random.seed(seed)
    kills = []
    for _ in range(2):
        resume = ["--resume"] if (out / "distill.json").is_file() else []
        process = subprocess.Popen([*words, *resume], stdout=subprocess.DEVNULL)
        wait = random.uniform(0.1, 0.5) * seconds
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills.append(
            {
                "after_seconds": round(wait),
                "found": sorted(p.name for p in out.iterdir() if not p.name.startswith(".")),
            }
        )
    result = run([*words, "--resume"])
    return {"kills": kills, "result": result}


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of what the phases leave."""
    names = [
        *("teacher/weights.safetensors", "labels/manifest.json", "student/weights.safetensors"),
        "model/model.safetensors",
    ]
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", help="the student's epochs")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    given = parser.parse_args()
    given.flowers, given.weights = given.flowers.resolve(), given.weights.resolve()
    out = given.out / given.case
    words = command(given.case, given, out)
    print("$", " ".join(words), file=sys.stderr, flush=True)
    begun = time.monotonic()
    resume = ["--resume"] if (out / "distill.json").is_file() else []
    found: dict[str, Any] = {"every": given.every, "result": run([*words, *resume])}
    seconds = time.monotonic() - begun
    if given.case == "killed":
        again = given.out / "killed-again"
        shutil.rmtree(again, ignore_errors=True)
        other = [str(again) if word == str(out) else word for word in words]
        found["killed"] = killed(other, again, seconds, given.seed)
        ours, theirs = digests(out), digests(again)
        found["same"] = {name: ours[name] == theirs[name] for name in ours}
    found["seconds_by_phase"] = json.loads((out / "distill.json").read_text())["seconds"]
    asked = shlex.join(["python", "docs/results/distill_flowers.py", *sys.argv[1:]])
    text = json.dumps({"command": asked, **found}, indent=1)
    # The longest first: one of these folders may lie in another.
    named = {given.flowers: "FLOWERS", given.weights: "WEIGHTS", given.out.resolve(): "OUT"}
    for path in sorted(named, key=lambda path: -len(str(path))):
        text = text.replace(str(path), named[path])
    (RESULTS / f"distill-{given.case}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
