"""What all tests share: real photographs where they are at hand, small ones where they are not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # read when a hub library is first imported; no test downloads
torch.set_num_threads(1)
# A shared machine stands still for longer than any deadline.
settings.register_profile("ferkd", deadline=None)
settings.load_profile("ferkd")


@pytest.fixture(scope="session")
def flowers() -> Path:
    """The folder of flower photographs with train/ and val/, or a skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "flowers"
    if not (folder / "train").is_dir():
        pytest.skip("needs the flower photographs in ../shared/data/flowers")
    return folder


@pytest.fixture
def command_line(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)``: the command line ferkd -> (exit status, stdout, stderr)."""
    from ferkd import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ferkd", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def tiny_images(tmp_path: Path) -> Callable[..., Path]:
    """``write(classes, size=(width, height), seed=0)`` -> the root of small JPEGs in class folders.

    ``classes`` gives the number of images by class name. The images are coarse smooth noise, so
    that JPEG keeps them nearly whole.
    """

    def write(classes: Mapping[str, int], size: tuple[int, int] = (48, 40), seed: int = 0) -> Path:
        root = tmp_path / "images"
        generator = np.random.default_rng(seed)
        for name, count in classes.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                image = coarse.resize(size, Image.Resampling.BICUBIC)
                image.save(root / name / f"{index:04}.jpg", quality=95)
        return root

    return write


# Of a training run; a file may have its own of these names.


@pytest.fixture
def photos(tiny_images) -> Path:
    """Ten small images of three classes."""
    return tiny_images({"a": 4, "b": 3, "c": 3})


@pytest.fixture
def settings(photos) -> dict[str, Any]:
    """A short run on ``photos``, without a method."""
    from runs import settings_on

    return settings_on(photos)


@pytest.fixture
def store(photos, tmp_path) -> Callable[[str], str | None]:
    """``store(method)`` -> the labels of ``photos`` that the method trains on."""
    from runs import labels_for

    return lambda method: labels_for(method, photos, tmp_path / "labels")
