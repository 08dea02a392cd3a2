"""An objective and a method of a separate package, one file each, installed by pip."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile

import pytest
import torch
from runs import changed

from ferkd import objectives
from ferkd.images import decode, open_images, sources
from ferkd.methods import METHODS
from ferkd.store.soft import SoftLabels
from ferkd.study.compare.suite import make_suite
from ferkd.system.errors import InputError
from ferkd.training import train
from ferkd.training.recipe import load_recipe, make_recipe

BRIER = '''"""Brier's score: the squared distance of two distributions."""

from pydantic import Field

from ferkd.system.settings import Part


class Brier(Part):
    """Card: weight sum over classes of (p - q)^2, mean over crops."""

    weight: float = Field(default=1.0, gt=0)

    def __call__(self, logits, labels, targets=None):
        return self.weight * (labels.dense() - logits.softmax(1)).square().sum(1).mean()


OBJECTIVE = Brier
'''
HALVES = '''"""Half the truth, half the stored label, each by an objective of its own."""

from pydantic import Field
from torch.nn.functional import cross_entropy

from ferkd.methods.base import Method, Taught


class Settings(Taught):
    """``share`` of the truth."""

    share: float = Field(default=0.5, ge=0, le=1)


def make(settings, setup):
    objective = settings.build()

    def loss(logits, view):
        stored = objective(logits, view.labels, view.targets)
        truth = cross_entropy(logits, view.targets)
        return settings.share * truth + (1 - settings.share) * stored

    return loss



METHOD = Method(
    name="halves",
    card=__doc__,
    make=make,
    settings=Settings,
    labels="crops",
    truth=True,
    defaults={"data": {"crops_per_image": 2}},
)
'''
NOISE = '''"""Images of noise, made as they are read: noise:COUNT."""

import io

import numpy as np
from PIL import Image


class NoiseImages:
    def __init__(self, spec, targets):
        count = int(spec.partition(":")[2])
        self.name, self.ids = spec, tuple(f"{i:03}.png" for i in range(count))
        self.class_names = ("even", "odd") if targets else ()
        self.targets = np.arange(count, dtype=np.int32) % 2 if targets else np.full(count, -1)

    def __len__(self):
        return len(self.ids)

    def read(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()
'''
FILES = {
    "extras/noise.py": NOISE,
    "extras/__init__.py": "",
    "extras/brier.py": BRIER,
    "extras/halves.py": HALVES,
    "extras/broken.py": "raise OSError('no licence')",
    "extras-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: extras\nVersion: 1.0\n",
    "extras-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
    "Tag: py3-none-any\n",
    "extras-1.0.dist-info/entry_points.txt": "[ferkd.objectives]\nbrier = extras.brier:OBJECTIVE\n"
    "broken = extras.broken:OBJECTIVE\nkl = extras.brier:OBJECTIVE\n"
    "[ferkd.sources]\nnoise = extras.noise:NoiseImages\n"
    "[ferkd.methods]\nhalves = extras.halves:METHOD\nno_method = extras.brier:OBJECTIVE\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the package from its wheel."""
    folder = tmp_path_factory.mktemp("extras")
    wheel, record = folder / "extras-1.0-py3-none-any.whl", ""
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
            record += f"{name},sha256={digest.decode()},{len(text.encode())}\n"
        archive.writestr("extras-1.0.dist-info/RECORD", f"{record}extras-1.0.dist-info/RECORD,,\n")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--target", folder / "site", wheel], check=True)
    return folder / "site"


TABLES = (METHODS, objectives.CARDS, sources._ALL)


@pytest.fixture
def extras(site, monkeypatch):
    """The package is installed: found by its entry points."""
    monkeypatch.syspath_prepend(site)
    for table in TABLES:
        vars(table).pop("_others", None)
    yield
    for table in TABLES:
        vars(table).pop("_others", None)


def test_each_is_one_file(extras):
    """The count of files that an objective and a method take, beside the package's own."""
    assert [name for name in FILES if name.endswith(".py") and "broken" not in name] == [
        "extras/noise.py",
        "extras/__init__.py",
        "extras/brier.py",
        "extras/halves.py",
    ]
    assert "halves" in METHODS and "brier" in objectives.CARDS
    assert METHODS["halves"].card.startswith("Half the truth")


def test_an_objective_of_another_package(extras):
    """p = (1/4, 3/4), q = (1/2, 1/2): (1/4)^2 + (1/4)^2 = 1/8, twice that by its option."""
    logits = torch.tensor([[0.25, 0.75]]).log()
    labels = SoftLabels.from_logits(logits, None, 2)
    for name in ("brier", "extras.brier:OBJECTIVE"):
        loss = objectives.build(name, weight=2.0)(torch.zeros(1, 2), labels)
        assert float(loss) == pytest.approx(0.25)
    with pytest.raises(InputError, match="option weight of brier: must be greater than 0"):
        objectives.build("brier", weight=0.0)


@pytest.mark.parametrize("name", ["halves", "extras.halves:METHOD"])
def test_a_method_of_another_package_trains_and_is_compared(
    extras, settings, store, tmp_path, name
):
    loss = {"objective": "brier", "options": {"weight": 3.0}, "share": 0.25}
    recipe = changed(settings, name, lambda method: store("fkd"), loss=loss)
    assert recipe.data.crops_per_image == 2
    assert make_recipe(recipe.to_dict()) == recipe
    result = train(recipe, tmp_path / "run")
    assert result["method"] == name and 0 <= result["top1"] <= 1
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    suite = make_suite(
        {
            "base": {**settings, "method": "fkd", "data": recipe.to_dict()["data"], "loss": loss},
            "methods": {"fkd": {}, "ours": {"method": name}},
            "seeds": [0],
            "budgets": {"short": {"steps": 2}},
        }
    )  # fmt: skip
    assert suite.recipe("ours", 0, {"steps": 2}).loss == recipe.loss
    assert "share" not in suite.recipe("fkd", 0, {"steps": 2}).to_dict()["loss"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "extras.broken cannot be imported (OSError: no licence)"),
        ("extras.brier:Brie", "extras.brier has no Brie; did you mean 'Brier'?"),
        ("extras.gone:X", "extras.gone cannot be imported (ModuleNotFoundError"),
        ("extras.brier:__doc__", "objective extras.brier:__doc__ cannot be called"),
        ("bryer", "unknown objective 'bryer'; did you mean 'brier'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_named(extras, name, message):
    with pytest.raises(InputError) as caught:
        objectives.build(name)
    assert message in str(caught.value)


def test_what_is_no_method_is_named(extras):
    with pytest.raises(InputError, match="method no_method of extras is no ferkd"):
        _ = METHODS["no_method"]


def test_a_name_of_ferkds_own_stays_its_own(extras, caplog):
    assert type(objectives.build("kl")).__name__ == "Kl"
    assert list(objectives.CARDS).count("kl") == 1
    assert "objective kl of extras has the name of one of ferkd's" in caplog.text


@pytest.mark.parametrize("spec", ["noise:5", "extras.noise:NoiseImages:5"])
def test_images_of_another_package(extras, spec):
    images = open_images(spec)
    assert len(images) == 5 and images.targets.tolist() == [0, 1, 0, 1, 0]
    assert decode(images.read(1)).shape == (9, 9, 3)
    assert open_images(spec, targets=False).targets.tolist() == [-1] * 5
