"""Signals of other classes than the images' folders, and the one of several that is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from signals import OPTIONS, add, teacher
from stores import bytes_of, resigned

from ferkd.labelling.run import label
from ferkd.labelling.verify import verify_store
from ferkd.store import LabelStore
from ferkd.store.derive import subset
from ferkd.store.merge import merge
from ferkd.system.errors import InputError


@pytest.fixture
def known(images, tmp_path) -> Path:
    """A store whose images' folders are the classes: three of c, two of d."""
    for i in (3, 4):
        (images / "d").mkdir(exist_ok=True)
        (images / f"c/{i}.png").rename(images / f"d/{i}.png")
    options = {**OPTIONS, "targets": True, "check_agreement": False}
    label(images, teacher(classes=2), tmp_path / "known", crops=3, top_k=1, **options)
    return tmp_path / "known"


def test_labels_of_other_classes_are_added_to_a_store_with_ground_truth(images, known, tmp_path):
    for seed in (1, 2):
        add(images, known, f"wide-{seed}", seed=seed, top_k=2)
    wide = [f"{known}#wide-{seed}" for seed in (1, 2)]
    assert LabelStore(f"{known}#labels").targets.tolist() == [0, 0, 0, 1, 1]
    assert LabelStore(wide[0]).targets.tolist() == [-1] * 5
    assert verify_store(known, images=images).ok
    alone = label(images, teacher(1), tmp_path / "alone", crops=3, top_k=2, **OPTIONS)
    assert bytes_of(known)["wide-1-00000.npy"] == bytes_of(alone.folder)["labels-00000.npy"]
    # What is derived from them has no truth either: theirs are other classes than the folders.
    for derived in (subset(wide[0], tmp_path / "sub", crops=2), merge(wide, tmp_path / "merged")):
        assert derived.images["target"].tolist() == [-1] * 5 and derived.class_names == ()
        assert verify_store(derived.folder, images=images).ok
    add(images, known, "two", seed=3, classes=2, top_k=1)
    with pytest.raises(InputError, match="its classes are the images' folders: False, not True"):
        merge([f"{known}#labels", f"{known}#two"], tmp_path / "mixed")
    merge(wide, known, signal="both", into=True)
    assert LabelStore(f"{known}#both").images["target"].tolist() == [0, 0, 0, 1, 1]
    assert verify_store(known, images=images).ok


def test_a_signal_is_added_to_no_other_signal(images, store):
    with pytest.raises(InputError, match="leave out #labels"):
        add(images, Path(f"{store}#labels"), "second", top_k=2)
    assert not Path(f"{store}#labels").exists()
    assert list(LabelStore(store).manifest.signals) == ["labels"]


def test_the_signal_that_is_named_is_compared_with_its_teacher(images, store, tmp_path):
    add(images, store, "second", top_k=2)
    with pytest.raises(InputError, match=r"several signals .*choose one by .*#labels"):
        verify_store(store, images=images, teacher=teacher(1))
    found = verify_store(f"{store}#second", images=images, teacher=teacher(1))
    assert found.ok and found.figures["replayed_crops"] == 15
    with pytest.raises(InputError, match="is not the one that made the labels"):
        verify_store(f"{store}#labels", images=images, teacher=teacher(1))
    with pytest.raises(InputError, match="has no signal 'third'"):
        verify_store(f"{store}#third")
    with pytest.raises(InputError, match=r"several signals .*choose one by .*#labels"):
        merge([store, f"{store}#second"], tmp_path / "merged")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"image_size": "8"}, "records the image_size '8'"),
        ({"class_map": 3}, "a class map without class numbers"),
        ({"class_map": {"classes": ["a"], "by": "x"}}, "a class map without class numbers"),
    ],
)
def test_what_a_store_cannot_tell_of_its_teacher_is_named(images, store, told, message):
    def change(arrays, body):
        body["signals"]["labels"]["settings"]["teacher"].update(told)

    resigned(store, change)
    with pytest.raises(InputError, match=message):
        verify_store(store, images=images, teacher=teacher())


def test_a_batch_size_that_is_none_is_not_kept_to(images, store):
    def change(arrays, body):
        body["signals"]["labels"]["settings"]["teacher"]["batch_size"] = "x"

    resigned(store, change)
    assert verify_store(store, images=images, teacher=teacher()).ok


def test_a_merge_is_added_to_a_store_whose_own_labels_are_of_other_classes(images, known, tmp_path):
    """Wide labels of two stores of the same crops, into one that has none of them."""
    for name in ("a", "b"):
        shutil.copytree(known, tmp_path / name)
        add(images, tmp_path / name, "wide", seed=ord(name), top_k=2)
    made = merge([f"{tmp_path}/a#wide", f"{tmp_path}/b#wide"], known, signal="wide", into=True)
    assert made.num_classes == 4 and LabelStore(f"{known}#labels").num_classes == 2
    assert verify_store(known, images=images).ok


def test_a_store_without_ground_truth_takes_features_and_no_labels_of_its_folders(images, store):
    add(images, store, "features", kind="features", targets=True)
    assert verify_store(store, images=images).ok
    with pytest.raises(InputError, match=r"knows no ground truth.*--no-targets"):
        add(images, store, "second", targets=True)
    assert not list(store.glob("adding-*"))


def test_a_subset_is_of_the_signal_that_is_named(images, store, tmp_path):
    add(images, store, "features", kind="features")
    fewer = subset(f"{store}#features", tmp_path / "fewer", crops=2)
    assert list(fewer.manifest.signals) == ["features"] and fewer.crops_per_image == 2
    rows, crops = np.arange(5)[:, None], np.arange(2)
    assert (fewer.features(rows, crops) == LabelStore(store).features(rows, crops)).all()
