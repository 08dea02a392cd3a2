"""Planted scenes: exact shares of wrong labels, a clean val, and a truth that is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ferkd.calibration.regions import scores_of
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.models.teacher import Inputs, Teacher
from ferkd.study.inspection import inspect
from ferkd.study.scenes.drawn import SceneSettings, read_boxes, write_scenes
from ferkd.study.scenes.planted import against_truth, plant, read_truth
from ferkd.system.errors import InputError

pytest.importorskip("sklearn", reason="the scenes' digits come with scikit-learn (extra demo)")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    root = tmp_path_factory.mktemp("planted")
    for noise in (0.0, 0.25, 0.5):
        plant(root / str(noise), images=40, val_images=10, label_noise=noise, seed=3)
    return {noise: root / str(noise) for noise in (0.0, 0.25, 0.5)}


def test_shares_of_wrong_labels_are_exact(noisy: dict[float, Path]) -> None:
    for noise, out in noisy.items():
        truth = read_truth(out / "truth.json")
        assert len(truth) == 40
        assert sum(t.shown != t.given for t in truth.values()) == round(noise * 40)
        assert sorted(truth) == sorted(open_images(out / "train").ids)
        assert all(key.startswith(f"{t.given}/") for key, t in truth.items())
        shown = [t.shown for t in truth.values()]
        assert all(shown.count(str(digit)) == 4 for digit in range(10))


def test_val_is_clean_and_the_same_for_all_noise(noisy: dict[float, Path]) -> None:
    first = contents(noisy[0.0] / "val")
    assert len(first) == 10
    for out in noisy.values():
        assert contents(out / "val") == first
        truth = read_truth(out / "truth.json", "val")
        assert all(t.shown == t.given for t in truth.values()) and set(truth) == set(first)


def test_pictures_are_the_demos_and_only_their_folders_change(
    noisy: dict[float, Path], tmp_path: Path
) -> None:
    plain = write_scenes(
        tmp_path / "plain", SceneSettings(train_per_class=4, val_per_class=1, seed=3)
    )
    boxes = read_boxes(plain.train)
    pictures = {(plain.train / key).read_bytes(): (key, box) for key, box in boxes.items()}
    for out in noisy.values():
        for key, entry in read_truth(out / "truth.json").items():
            original, box = pictures[(out / "train" / key).read_bytes()]
            assert original.partition("/")[0] == entry.shown and tuple(box) == tuple(entry.box)


def test_more_noise_holds_the_wrong_labels_of_less(noisy: dict[float, Path]) -> None:
    def moved(noise: float) -> set[str]:
        truth = read_truth(noisy[noise] / "truth.json")
        return {key for key, t in truth.items() if t.shown != t.given}

    assert moved(0.25) < moved(0.5)


def test_small_objects_are_smaller(noisy: dict[float, Path], tmp_path: Path) -> None:
    plant(tmp_path / "small", images=40, val_images=10, object_scale="small", seed=3)

    def sides(out: Path) -> float:
        return float(np.mean([max(t.box[2:]) for t in read_truth(out / "truth.json").values()]))

    assert sides(tmp_path / "small") < 0.7 * sides(noisy[0.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 45}, "--images 45: give a positive multiple of 10"),
        ({"val_images": 0}, "--val-images 0: give a positive multiple of 10"),
        ({"label_noise": 0.95}, "--label-noise 0.95: give a share from 0 to 0.9"),
        ({"label_noise": float("nan")}, "--label-noise nan"),
        ({"object_scale": "tiny"}, "--object-scale 'tiny': it must be small or normal"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_bad_ranges_are_refused_before_anything_is_written(wrong, message, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        plant(tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plant(out, images=10, val_images=10)
    before = contents(out)
    with pytest.raises(InputError, match="holds planted scenes already"):
        plant(out, images=10, val_images=10, seed=1)
    assert contents(out) == before
    plant(out, images=10, val_images=10, seed=1, overwrite=True)
    assert contents(out) != before and {p.name for p in tmp_path.iterdir()} == {"out"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no planted scenes"):
        plant(tmp_path / "mine", images=10, val_images=10, overwrite=True)


def test_a_foreign_truth_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    for text in ("not json", "{}", '{"train": {"a": {"box": [1, 2]}}}'):
        file.write_text(text)
        with pytest.raises(InputError, match="cannot be read as a truth file"):
            read_truth(file)


def test_auroc_against_the_truth_by_counting_pairs(noisy: dict[float, Path], tmp_path) -> None:
    """P(score of a crop that holds the object > score of one that does not), pair by pair."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 10)
    )
    teacher = Teacher(module, Inputs(image_size=8), spec="test")
    store = label(noisy[0.25] / "train", teacher, tmp_path / "labels", crops=6, device="cpu")
    file = noisy[0.25] / "truth.json"
    truth = read_truth(file)
    found = against_truth(store, truth)

    scores, _ = scores_of(store)
    true, _ = scores_of(store, "true_prob")
    held, wrong = np.zeros((2, *scores.shape), bool)
    for row, key in enumerate(store.ids):
        top, left, height, width = truth[key].box
        for crop in range(6):
            y, x, h, w = store.boxes(row, crop).tolist()
            down = max(0, min(y + h, top + height) - max(y, top))
            across = max(0, min(x + w, left + width) - max(x, left))
            held[row, crop] = down * across >= 0.5 * height * width
        wrong[row] = truth[key].shown != truth[key].given
    assert wrong.mean() == found["wrong_label"]["share"] == 0.25
    assert 0.1 < held.mean() < 0.9 and found["holds_object"]["share"] == held.mean()
    for name, positive in (("holds_object", held), ("wrong_label", wrong)):
        for score, values in (("max_prob", scores), ("true_prob", true)):
            pairs = values[positive][:, None] - values[~positive]
            expected = np.mean(pairs > 0) + np.mean(pairs == 0) / 2
            assert found[name][score] == pytest.approx(expected)
        assert found[name]["1 - true_prob"] == pytest.approx(1 - found[name]["true_prob"])

    assert inspect(store, truth=file)["truth"] == found
    with pytest.raises(InputError, match=r"39 of the 40 images .* are not in the truth file"):
        against_truth(store, {store.ids[0]: truth[store.ids[0]]})


@pytest.mark.parametrize("truth", [None, "{}", "my notes", '{"train": {}}'])
def test_a_folder_with_anything_else_in_it_is_never_replaced(truth, tmp_path: Path) -> None:
    """A file called truth.json makes no folder ours, and other files beside planted scenes stay."""
    out = tmp_path / "out"
    if truth is None:
        plant(out, images=10, val_images=10)
        (out / "thesis.txt").write_text("precious")
        said = r"holds more than planted scenes \(thesis.txt\)"
    else:
        (out / "train").mkdir(parents=True)
        (out / "train" / "mine.jpg").write_text("mine")
        (out / "truth.json").write_text(truth)
        said = "cannot be read as a truth file"
    before = contents(out)
    with pytest.raises(InputError, match=said):
        plant(out, images=10, val_images=10, overwrite=True)
    assert contents(out) == before
