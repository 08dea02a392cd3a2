from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_noise
from stores import write_store

from ferkd import label, train
from ferkd.images import open_images, refuse_inside_images
from ferkd.store.derive import subset
from ferkd.system.errors import InputError
from ferkd.training.recipe import Recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_noise(tmp_path / "images", {"a/1.png": (20, 30), "b/2.png": (30, 20)})


@pytest.mark.parametrize("out", ["images", "images/labels", "images/a/deep/er", "x/../images/l"])
def test_a_place_among_the_images_is_refused(images: Path, out: str) -> None:
    for given in (images, str(images), open_images(images), open_images(images, targets=False)):
        with pytest.raises(InputError, match="lies inside the image folder"):
            refuse_inside_images(images.parent / out, None, given)


@pytest.mark.parametrize("out", ["images-labels", "labels", "."])
def test_a_place_beside_them_is_not(images: Path, out: str) -> None:
    refuse_inside_images(images.parent / out, images)


def test_links_and_relative_paths_lead_inside_too(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images.parent / "link").symlink_to(images / "a")
    with pytest.raises(InputError, match="lies inside"):
        refuse_inside_images(images.parent / "link" / "labels", images)
    monkeypatch.chdir(images)
    with pytest.raises(InputError, match="lies inside"):
        refuse_inside_images("labels", ".")


def test_urls() -> None:
    with pytest.raises(InputError, match="s3://bucket/train/labels lies inside"):
        refuse_inside_images("s3://bucket/train/labels", "s3://bucket/train/")
    refuse_inside_images("s3://bucket/train-labels", "s3://bucket/train")
    refuse_inside_images("/bucket/train/labels", "s3://bucket/train")


def test_labels_and_runs_are_refused_before_anything_is_written(images: Path) -> None:
    with pytest.raises(InputError, match="lies inside the image folder"):
        label(images, "timm/no_such_model", images / "labels")
    recipe = {
        "method": "hard",
        "data": {"images": str(images), "image_size": 32},
        "student": {"name": "timm/no_such_model"},
        "schedule": {"steps": 1},
    }
    with pytest.raises(InputError, match="lies inside the image folder"):
        train(Recipe.model_validate(recipe), images / "run")
    assert sorted(path.name for path in images.rglob("*")) == ["1.png", "2.png", "a", "b"]
    assert open_images(images).class_names == ("a", "b")


@pytest.mark.parametrize("finished", [True, False])
def test_a_subset_inside_a_store_is_refused_and_harms_nothing(
    tmp_path: Path, finished: bool
) -> None:
    source = write_store(tmp_path / "source")
    write_store(tmp_path / "outer")
    if not finished:
        (tmp_path / "outer" / "manifest.json").unlink()
        (tmp_path / "outer" / "settings.json").write_text("{}")
        (tmp_path / "outer" / "parts").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for out in ("small", "parts/small"):
        with pytest.raises(InputError, match=r"lies inside the label store .*outer"):
            subset(source, tmp_path / "outer" / out, crops=1)
    assert sorted(tmp_path.rglob("*")) == before
