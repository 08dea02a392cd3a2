"""README's lines run as they stand, on small photographs and small models."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from pictures import write_noise

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
# What makes the shipped recipes small, and what the reader is told to edit.
EDITS = {
    r"flowers(?=/(train|val))": "photos",
    r"image_size: 112": "image_size: 32",
    r"batch_size: \d+": "batch_size: 4",
    r"timm/(resnet18|mobilenetv3_small_050)": "timm/resnet10t",
    r"epochs: \d+, warmup_epochs: 3": "epochs: 2",
    r"every_epochs: \d+": "every_epochs: 1",
}


def commands_after(words: str) -> list[list[str]]:
    """The commands of the first block of code that follows, comments left out."""
    block = re.search(r"```bash[^\n]*\n(.*?)```", README[README.index(words) :], re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = [f"{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("cat", "dog") for i in range(4)]
    return write_noise(tmp_path / "photos", dict.fromkeys(names, (40, 36)))


def test_the_step_by_step_runs_line_by_line(photos, command_line, tmp_path):
    lines = commands_after("Or step by step")
    assert len(lines) > 10 and all(words[0] == "ferkd" for words in lines)
    done = set()
    for words in lines:
        arguments = [word.replace("s3://bucket", f"memory://{tmp_path.name}") for word in words[1:]]
        if "runs/other" in arguments:
            shutil.copytree("runs/teacher", "runs/other")
        status, _, said = command_line(*arguments)
        assert status == 0, (words, said)
        done.add(words[1])
        if words[1:3] == ["recipes", "copy"]:
            recipe = Path(words[-1])
            text = recipe.read_text()
            for pattern, replacement in EDITS.items():
                text = re.sub(pattern, replacement, text)
            recipe.write_text(text)
    assert {"label", "inspect", "train", "plan", "evaluate", "verify", "merge", "publish"} <= done
    assert Path("labels.html").is_file() and Path("runs/student/result.json").is_file()
