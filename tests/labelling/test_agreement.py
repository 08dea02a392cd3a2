"""Labels are compared with the ground truth: wrong orders end a labelling pass, with a remedy."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import write_noise
from torch import Tensor, nn
from typer.testing import CliRunner

from ferkd.cli import app
from ferkd.images import open_images
from ferkd.labelling.agreement import Agreement, agreement_of
from ferkd.labelling.run import label
from ferkd.labelling.verify import verify_store
from ferkd.models.architectures import Inputs, imagenet_names
from ferkd.models.teacher import Teacher
from ferkd.store import LabelStore
from ferkd.system.errors import InputError
from ferkd.training.recipe import make_recipe
from ferkd.training.run import train


class Red(nn.Module):
    """Perfect: class c where the red of the picture is ``step`` * c, in ``order``."""

    def __init__(self, classes: int, step: float, order: list[int] | None = None) -> None:
        super().__init__()
        levels = torch.arange(float(classes)) if order is None else torch.tensor(order).float()
        self.register_buffer("levels", levels)
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0].mean((1, 2)) * 255 / self.step
        return -4 * (red[:, None] - self.levels).abs()


def perfect(classes: int, step: float = 20, order: list[int] | None = None, **more) -> Teacher:
    inputs = Inputs(image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Teacher(Red(classes, step, order), inputs, spec="red", device="cpu", **more)


def painted(root: Path, names: dict[str, int], each: int = 2) -> Path:
    """``each`` pictures of one colour in each folder, of its red level."""
    for name, level in names.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.zeros((24 + i, 20, 3), np.uint8)
            pixels[..., 2] = level  # OpenCV writes BGR
            assert cv2.imwrite(str(root / name / f"{i}.png"), pixels)
    return root


OPTIONS = {"crops": 3, "values": "f32", "top_k": None, "device": "cpu"}


def test_natural_order_is_found_named_and_remedied(tmp_path: Path) -> None:
    images = painted(tmp_path / "i", {str(n): 20 * n for n in range(12)})
    with pytest.raises(InputError, match=r"16\.7% .* but in 100\.0% by .*--class-map natural"):
        label(images, perfect(12), tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()  # found before anything was begun
    store = label(images, perfect(12), tmp_path / "s", class_map="natural", **OPTIONS)
    assert agreement_of(store) == 1.0
    assert store.settings.class_names == ("0", "1", "10", "11", *map(str, range(2, 10)))
    # Sorted: 0, 1, 10, 11, 2, ...; the teacher numbers by value.
    recorded = store.settings.teacher["class_map"]
    assert recorded == {"by": "natural order", "classes": [0, 1, 10, 11, *range(2, 10)]}
    assert verify_store(store.path, images=images, teacher=perfect(12), device="cpu").ok


def test_folders_named_by_class_numbers_are_a_part_of_the_teachers_classes(tmp_path: Path) -> None:
    images = painted(tmp_path / "i", {"0": 0, "3": 60, "10": 200})
    store = label(images, perfect(12), tmp_path / "s", class_map="number", **OPTIONS)
    assert store.class_names == ("0", "10", "3") and agreement_of(store) == 1.0
    assert store.settings.teacher["class_map"]["classes"] == [0, 10, 3]


def test_any_other_order_is_found(tmp_path: Path) -> None:
    names = {c: 40 * n for n, c in enumerate("abcdef")}
    shifted = perfect(6, 40, [1, 2, 3, 4, 5, 0])  # its class 0 is the second folder, and so on
    images = painted(tmp_path / "i", names, each=6)
    with pytest.raises(InputError, match=r"0\.0% .*'a' is answered as class 5, 'f'.*--class-map"):
        label(images, shifted, tmp_path / "s", **OPTIONS)
    given = {"a": 5, "b": 0, "c": 1, "d": 2, "e": 3, "f": 4}
    assert agreement_of(label(images, shifted, tmp_path / "s", class_map=given, **OPTIONS)) == 1.0
    kept = label(images, shifted, tmp_path / "k", check_agreement=False, **OPTIONS)
    assert agreement_of(kept) == 0.0


def test_wordnet_folders_use_a_teacher_of_a_thousand_classes(tmp_path: Path) -> None:
    ids = imagenet_names(1000)[0]
    teacher = perfect(1000, 0.2)
    folders = {ids[100]: 20, ids[500]: 100, ids[900]: 180}
    store = label(painted(tmp_path / "i", folders), teacher, tmp_path / "s", **OPTIONS)
    assert store.settings.teacher["class_map"] == {"by": "WordNet id", "classes": [100, 500, 900]}
    assert store.num_classes == 3 and agreement_of(store) == 1.0


def counted(images: int, right: float, classes: int = 10) -> Agreement:
    """The agreement of so many images whose answers are right in the share ``right``."""
    teacher = perfect(classes)
    found = Agreement(teacher, [f"c{i}" for i in range(classes)])
    rng = np.random.default_rng(0)
    targets = np.arange(images) % classes
    answers = np.where(rng.random(images) < right, targets, rng.integers(0, classes, images))
    found.add(targets, answers, images)
    return found


def test_chance_is_an_error_on_many_images_and_a_warning_on_few(caplog) -> None:
    with pytest.raises(InputError, match=r"no more than by chance; .*--no-agreement-check goes on"):
        counted(400, 0.0).check()
    few = counted(60, 0.0)
    few.check()
    with caplog.at_level(logging.WARNING, "ferkd"):
        few.warn()
    assert "no more than by chance: are the folders its classes" in caplog.text
    weak = counted(400, 0.2)  # right in 28 %, far above 10 %
    weak.check()
    assert 0.2 < weak.share < 0.36


def test_a_constant_answer_is_chance_and_no_other_order() -> None:
    found = Agreement(perfect(6), list("abcdef"))
    targets = np.repeat([0, 1, 2, 3, 4, 5], [300, 20, 20, 20, 20, 20])
    found.add(targets, np.full(400, 3), 400)  # right in 5 %; class 0 would be right in 75 %
    with pytest.raises(InputError, match="no more than by chance"):
        found.check()


def test_what_was_labelled_before_the_error_is_kept(tmp_path: Path) -> None:
    images = write_noise(tmp_path / "i", {f"c{i % 5}/{i}.png": (9, 9) for i in range(260)})

    class Blind(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.stack([pixels[:, 0, 0, 0] * 7 % k for k in (1.0, 1.1, 1.2, 1.3, 1.4)], 1)

    inputs = Inputs(image_size=8)
    options = {**OPTIONS, "crops": 1, "part_images": 130}
    with pytest.raises(InputError, match="--no-agreement-check goes on; what is labelled is kept"):
        label(images, Teacher(Blind(), inputs, device="cpu"), tmp_path / "s", **options)
    assert len(list((tmp_path / "s" / "parts").iterdir())) == 2
    again = Teacher(Blind(), inputs, device="cpu")
    store = label(images, again, tmp_path / "s", resume=True, check_agreement=False, **options)
    assert len(store) == 260


def test_a_live_teacher_in_another_order_is_refused(tmp_path: Path, monkeypatch) -> None:
    images = painted(tmp_path / "i", {str(n): 20 * n for n in range(12)})
    monkeypatch.chdir(tmp_path)
    text = Path(__file__).read_text(encoding="utf-8")
    body = text[text.index("class Red") : text.index("def perfect")]
    (tmp_path / "mine_in_order.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n"
        "from ferkd.models.architectures import Inputs\n"
        f"from ferkd.models.teacher import Teacher\n{body}\n"
        "def make():\n    inputs = Inputs(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)\n"
        "    return Teacher(Red(12, 20.0), inputs, spec='red', device='cpu')\n"
    )
    settings = {
        "method": "kd",
        "teacher": "mine_in_order:make",
        "data": {"images": str(images), "image_size": 32, "batch_size": 6, "workers": 0},
        "student": {"name": "timm/test_resnet"},
        "schedule": {"steps": 1},
        "device": "cpu",
    }
    with pytest.raises(InputError, match="--class-map natural"):
        train(make_recipe(settings), tmp_path / "run")
    result = train(make_recipe({**settings, "class_map": "natural"}), tmp_path / "run")
    assert result["steps"] == 1


def test_the_command_takes_a_map_and_says_the_agreement(tmp_path: Path) -> None:
    images = write_noise(tmp_path / "i", {f"{c}/{i}.png": (9, 9) for c in "ab" for i in range(2)})
    (tmp_path / "map.json").write_text('{"a": 3, "b": "1"}')
    teacher = "timm/test_resnet?random=0&num_classes=5"
    arguments = ["label", str(images), "--teacher", teacher, "--out", str(tmp_path / "s")]
    arguments += ["--image-size", "32", "--crops", "2", "--class-map", str(tmp_path / "map.json")]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and 0 <= json.loads(done.stdout)["agreement"] <= 1
    store = LabelStore.open(tmp_path / "s")
    assert store.settings.teacher["class_map"] == {"by": "class map", "classes": [3, 1]}
    assert store.settings.teacher["num_classes"] == 5 and store.num_classes == 2
    assert open_images(images).class_names == store.class_names


def test_images_added_since_are_counted_wherever_a_store_is_used(tmp_path: Path, caplog) -> None:
    images = write_noise(tmp_path / "i", {f"{c}/{i}.png": (40, 40) for c in "ab" for i in range(4)})
    teacher = "timm/test_resnet?random=0&num_classes=2"
    label(images, teacher, tmp_path / "s", crops=2, image_size=32, device="cpu")
    write_noise(images, {f"b/new{i}.png": (40, 40) for i in range(3)})
    settings = {
        "method": "fkd",
        "data": {
            "images": str(images),
            "store": str(tmp_path / "s"),
            "image_size": 32,
            "batch_size": 4,
            "crops_per_image": 1,
            "workers": 0,
        },
        "student": {"name": "timm/test_resnet"},
        "schedule": {"steps": 1},
        "device": "cpu",
    }
    with caplog.at_level(logging.WARNING, "ferkd"):
        result = train(make_recipe(settings), tmp_path / "run")
    assert result["images_without_labels"] == 3
    assert "3 of the 11 images of" in caplog.text and "added since" in caplog.text
    found = verify_store(tmp_path / "s", images=images)
    assert found.ok and found.figures["images_without_labels"] == 3
    arguments = ["inspect", str(tmp_path / "s"), "--images", str(images)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "3 images of" in done.stdout


def test_without_ground_truth_ferkd_says_that_it_is_fkd(tmp_path: Path, caplog) -> None:
    images = write_noise(tmp_path / "i", {f"{i}.png": (40, 40) for i in range(8)})
    teacher = "timm/test_resnet?random=0&num_classes=2"
    label(images, teacher, tmp_path / "s", crops=2, image_size=32, device="cpu", targets=False)
    settings = {
        "method": "ferkd",
        "data": {
            "images": str(images),
            "store": str(tmp_path / "s"),
            "image_size": 32,
            "batch_size": 4,
            "crops_per_image": 1,
            "workers": 0,
        },
        "student": {"name": "timm/test_resnet"},
        "schedule": {"steps": 1},
        "device": "cpu",
    }
    with caplog.at_level(logging.WARNING, "ferkd"):
        result = train(make_recipe(settings), tmp_path / "run")
    assert "training is FKD's" in result["note"] and "training is FKD's" in caplog.text
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s")], catch_exceptions=False)
    assert "training is FKD's" in done.stdout
