"""Label files of FKD's authors are paired with images and become a store.

"Mistake n" is one of those found in published systems, which must not be repeated.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fkd_files import CROPS, as_fkd, saved, some_probs

from ferkd.images import open_images
from ferkd.loading.crop_sources import match
from ferkd.loading.loader import SoftLabelLoader
from ferkd.store.fkd import importing as importer
from ferkd.store.fkd.importing import import_fkd
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError

# Pairing files with images ----------------------------------------------------------------------


class Ids:
    """An image source of names alone."""

    def __init__(self, ids, name="images") -> None:
        self.ids, self.name = sorted(ids), name

    def __len__(self) -> int:
        return len(self.ids)


def paired(files, ids, name="images"):
    found = importer.match_labels(sorted(files), Ids(ids, name))
    return found, {sorted(ids)[place]: path for place, path in found.pairs}


def test_names_with_dots_are_found_by_the_authors_rule_and_by_the_whole_name():
    """Mistake 9: FKD cuts `my.photo.v2.jpg` to `my`."""
    found, pairs = paired(
        ["train/a/my.tar", "train/b.c/x.y.tar"], ["a/my.photo.v2.jpg", "b.c/x.y.png"]
    )
    assert pairs == {"a/my.photo.v2.jpg": "train/a/my.tar", "b.c/x.y.png": "train/b.c/x.y.tar"}
    assert not found.unmatched_labels and not found.unmatched_images


def test_a_file_that_fits_two_images_is_given_to_neither():
    found, pairs = paired(
        ["t/a/my.tar", "t/a/one.tar", "t/a/x.tar", "t/a/x.2.tar"],
        ["a/my.v1.jpg", "a/my.v2.jpg", "a/one.jpg", "a/one.png", "a/x.1.jpg", "a/x.2.jpg"],
    )
    assert found.ambiguous == ("t/a/my.tar", "t/a/one.tar")
    assert pairs == {"a/x.1.jpg": "t/a/x.tar", "a/x.2.jpg": "t/a/x.2.tar"}


@pytest.mark.parametrize("prefix", ["", "train/", "imagenet/train/", "a/"])
def test_any_folders_above_the_classes_are_found_out(prefix):
    ids = ["a/a/1.jpg", "a/2.jpg", "b/1.jpg"]
    found, pairs = paired([f"{prefix}{Path(i).with_suffix('.tar')}" for i in ids], ids)
    assert len(pairs) == 3 and found.unmatched_labels == found.unmatched_images == ()


def test_two_splits_of_the_same_names_are_told_by_the_image_folder_or_refused():
    files = ["train/a/1.tar", "train/a/2.tar", "val/a/1.tar", "val/a/2.tar"]
    assert paired(files, ["a/1.jpg", "a/2.jpg"], "some/val")[1]["a/1.jpg"] == "val/a/1.tar"
    with pytest.raises(InputError, match="fit 2 label files in each of train/, val/; give one"):
        paired(files, ["a/1.jpg", "a/2.jpg"])
    found, pairs = paired([*files, "train/a/3.tar"], [f"a/{i}.jpg" for i in range(1, 5)])
    assert pairs["a/1.jpg"] == "train/a/1.tar"
    assert found.unmatched_images == ("a/4.jpg",)
    assert found.unmatched_labels == ("val/a/1.tar", "val/a/2.tar")


def test_nothing_to_pair_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none of the 1 label files \(first: t/a/1.tar\)"):
        paired(["t/a/1.tar"], ["b/1.jpg"])
    with pytest.raises(InputError, match="is not a folder"):
        importer.label_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no label files"):
        importer.label_files(tmp_path)


# Import -----------------------------------------------------------------------------------------


def test_an_import_holds_what_the_files_hold(fkd):
    report = fkd.run()
    store = report.store
    assert list(store.ids) == fkd.names and store.targets.tolist() == [0, 0, 1, 2]
    assert store.class_names == ("a", "b", "c") and store.crops_per_image == CROPS
    assert (report.matched, report.kind, report.uncertain_boxes) == (4, "top-k", 0)
    right = 0
    for row, name in enumerate(fkd.names):
        crops = np.arange(CROPS)
        assert (store.boxes(row, crops) == fkd.boxes[name]).all()
        assert (store.flips(row, crops) == fkd.flips[name]).all()  # mistake 10
        dense = store.labels(row, crops).dense().numpy()
        assert np.abs(dense - fkd.probs[name]).max() < 0.02  # 3 classes less 2: all are told
        right += int((fkd.probs[name].argmax(1) == store.targets[row]).sum())
    assert report.teacher_right == pytest.approx(right / 24)
    assert store.settings.images.exif is False
    assert store.settings.teacher["spec"] == "imported from FKD"
    assert store.settings.teacher["kind"] == "top-k"


def test_labels_import_with_tensors_and_in_half_precision(fkd):
    for i, name in enumerate(fkd.names):
        state, _ = as_fkd(name, 40 + i, 31 + 2 * i, fkd.probs[name], 2, np.float16)
        saved(fkd.file(name), [torch.from_numpy(a) for a in state], "legacy")
    store = fkd.run(values="f32").store
    for row, name in enumerate(fkd.names):
        assert (store.boxes(row, np.arange(CROPS)) == fkd.boxes[name]).all()
        dense = store.labels(row, np.arange(CROPS)).dense().numpy()
        assert np.abs(dense - fkd.probs[name]).max() < 1.5e-3


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("hard", np.full(CROPS, 2), [0, 0, 1]),
        ("smoothing", np.tile(np.float32([2, 0.5]), (CROPS, 1)), [0.25, 0.25, 0.5]),
        ("full", np.tile(np.float32([0.25, 0.125, 0.625]), (CROPS, 1)), [0.25, 0.125, 0.625]),
    ],
)
def test_the_other_kinds_import(fkd, kind, labels, expected):
    for i, name in enumerate(fkd.names):
        state, _ = as_fkd(name, 40 + i, 31 + 2 * i, fkd.probs[name], 2)
        saved(fkd.file(name), [*state[:2], labels])
    report = fkd.run()
    assert report.kind == kind and report.store.record.full == (kind == "full")
    assert (report.store.labels(3, 0).dense()[0] - torch.tensor(expected)).abs().max() < 0.01


def test_other_images_and_labels_are_reported(fkd):
    cv2.imwrite(str(fkd.images / "b" / "new.png"), np.zeros((9, 9, 3), np.uint8))
    fkd.file("a/0.png").rename(fkd.file("a/gone.png"))
    report = fkd.run()
    assert report.matched == 3 and list(report.store.ids) == fkd.names[1:]
    assert report.unmatched_images == ("a/0.png", "b/new.png")
    assert report.unmatched_labels == ("train/a/gone.tar",)
    assert any("2 images without a label file (first: a/0.png)" in w for w in report.warnings)


def test_damaged_files_and_other_images_are_listed_within_a_stated_share(fkd):
    """Mistake 11: a half-written file is not a finished one."""
    whole = fkd.file("a/1.png").read_bytes()
    fkd.file("a/1.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(fkd.images / "c/3.png"), np.zeros((97, 89, 3), np.uint8))
    (fkd.images / "a/0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3 of 4 images cannot be imported, more than the 1.0%"):
        fkd.run()
    report = fkd.run(max_skipped=0.75, resume=True)
    assert list(report.store.ids) == ["b/2.png"]
    reasons = {s.id: s.reason for s in report.store.manifest.skipped}
    assert "damaged or not a file of torch.save" in reasons["a/1.png"]
    assert "another size or version" in reasons["c/3.png"]
    assert "no image of a known kind" in reasons["a/0.png"]
    assert fkd.run(max_skipped=0.75, resume=True, resized=False).store.ids.find("b/2.png") == 0


def test_images_of_another_size_are_accepted_where_asked(fkd):
    cv2.imwrite(str(fkd.images / "c/3.png"), np.zeros((97, 89, 3), np.uint8))
    store = fkd.run(resized=True).store
    expected = np.rint(fkd.boxes["c/3.png"] / [43, 37, 43, 37] * [97, 89, 97, 89])
    moved = np.abs(store.boxes(3, np.arange(CROPS)) - expected)
    assert moved.max() <= 1 and len(store) == 4
    assert "boxes are rounded" in store.settings.crops.rule


def test_boxes_that_half_precision_cannot_tell_are_counted(tmp_path):
    (tmp_path / "i" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "i/a/x.png"), np.zeros((3000, 2000, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "i/a/y.png"), np.zeros((2048, 4, 3), np.uint8))
    probs = np.array([[0.75, 0.25]] * 200)
    large, boxes = as_fkd("x", 3000, 2000, probs, 1, np.float16)
    saved(tmp_path / "l/a/x.tar", large)
    saved(tmp_path / "l/a/y.tar", as_fkd("y", 2048, 4, probs, 1, np.float16)[0])
    report = import_fkd(
        tmp_path / "l", tmp_path / "i", tmp_path / "s", targets=False, num_classes=2
    )
    wrong = (report.store.boxes(0, np.arange(200)) != boxes).any(1).sum()
    assert 0 < wrong <= report.uncertain_boxes < 200
    assert any("may be off by a pixel" in line for line in report.warnings)


@pytest.mark.parametrize("turned", [False, True])
def test_exif_orientation_is_ignored_as_the_authors_do(tmp_path, turned):
    from PIL import Image

    (tmp_path / "i" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.new("RGB", (60, 47)).save(tmp_path / "i/a/x.jpg", exif=exif)
    state, boxes = as_fkd("x", 47, 60, np.array([[0.75, 0.25]] * 3), 1)
    saved(tmp_path / "l/a/x.tar", state)
    store = import_fkd(
        tmp_path / "l", tmp_path / "i", tmp_path / "s", targets=False, num_classes=2
    ).store
    assert (store.images["height"][0], store.images["width"][0]) == (47, 60)
    assert (store.boxes(0, np.arange(3)) == boxes).all()


def test_the_number_of_crops_is_the_same_or_asked_for(fkd):
    state, _ = as_fkd("b/2.png", 42, 35, some_probs(CROPS - 2, 3), 2)
    saved(fkd.file("b/2.png"), state)
    with pytest.raises(InputError, match=r"2.tar differs .*: crops 4, not 6.*--crops"):
        fkd.run()
    assert fkd.run(crops=4, overwrite=True).store.crops_per_image == 4
    with pytest.raises(InputError, match="holds 4 crops, fewer than the 5 asked for"):
        fkd.run(crops=5, overwrite=True)


def test_more_crops_than_a_store_may_have_are_refused(fkd):
    many = np.broadcast_to(np.float16(0), (1_000_001, 4))
    saved(fkd.file("a/0.png"), [many, np.zeros(1_000_001, bool), np.zeros((1_000_001, 2, 1))])
    with pytest.raises(InputError, match="holds 1000001 crops; give crops"):
        fkd.run()


def test_class_numbers_that_half_precision_cannot_hold_are_refused(fkd):
    """Mistake 2: 2049 is not a half precision number; with 21,841 classes it would be 2048."""
    for i, name in enumerate(fkd.names):
        state, _ = as_fkd(name, 40 + i, 31 + 2 * i, fkd.probs[name], 2, np.float16)
        saved(fkd.file(name), state)
    with pytest.raises(InputError, match="half precision, which is exact up to 2048 only"):
        fkd.run(targets=False, num_classes=21_841)
    assert fkd.run(targets=False, num_classes=2049).store.num_classes == 2049


def test_class_counts_are_checked(fkd):
    with pytest.raises(InputError, match=r"num_classes is 4, but .* has 3 class folders"):
        fkd.run(num_classes=4)
    with pytest.raises(InputError, match="do not tell of how many classes; give num_classes"):
        fkd.run(targets=False)
    report = fkd.run(targets=False, num_classes=1000)
    assert report.teacher_right is None and report.store.targets.tolist() == [-1] * 4
    assert report.store.class_names == ()
    with pytest.raises(InputError, match="kind is 'soft'; it must be one of auto"):
        fkd.run(kind="soft")


def test_folders_in_another_order_than_the_classes_are_warned_of(fkd):
    for i, name in enumerate(fkd.names):
        state, _ = as_fkd(name, 40 + i, 31 + 2 * i, fkd.probs[name], 2)
        wrong = ("abc".index(name[0]) + 1) % 3
        state[2][:] = [[wrong, "abc".index(name[0])], [0.75, 0.125]]
        saved(fkd.file(name), state)
    report = fkd.run()
    assert report.teacher_right == 0
    assert any("may not be in the order of the teacher's classes" in w for w in report.warnings)


def test_interruptions_and_workers_do_not_change_a_byte(fkd, monkeypatch):
    monkeypatch.setattr(importer, "_PART_IMAGES", 1)
    whole = fkd.run(workers=3).store.path
    seen = []

    def killed(done, total):
        seen.append((done, total))
        raise KeyboardInterrupt

    for number in range(4):
        with pytest.raises(KeyboardInterrupt):
            import_fkd(
                fkd.labels,
                fkd.images,
                fkd.root / "other",
                workers=1,
                progress=killed,
                resume=number > 0,
            )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    other = import_fkd(fkd.labels, fkd.images, fkd.root / "other", resume=True).store.path
    for file in whole.iterdir():
        assert (other / file.name).read_bytes() == file.read_bytes()


def test_parts_are_small_where_records_are_large(fkd, monkeypatch):
    assert fkd.run().store.settings.part_images == 256
    monkeypatch.setattr(
        importer, "_PART_BYTES", 2 * CROPS * RecordFormat.choose(2, 3, tail="mass").dtype.itemsize
    )
    assert fkd.run(overwrite=True).store.settings.part_images == 2


# Training from imported labels ------------------------------------------------------------------


def test_imported_labels_train_with_a_warning(fkd, caplog):
    store = fkd.run().store
    batches = SoftLabelLoader(fkd.images, store, batch_size=4, crops_per_image=2, image_size=16)
    assert "imported labels" in caplog.text and "another rule than the teacher's" in caplog.text
    batch = next(iter(batches))
    assert batch.images.shape == (4, 3, 16, 16) and torch.isfinite(batch.labels.dense()).all()


def test_an_unknown_rule_is_still_refused(fkd, monkeypatch):
    store = fkd.run().store
    crops = store.geometry.crops.model_copy(update={"rule": "imported by hand"})
    changed = store.geometry.model_copy(update={"crops": crops})
    monkeypatch.setattr(type(store), "geometry", changed)
    with pytest.raises(InputError, match="were made with the crop rule"):
        match(open_images(fkd.images), store)
