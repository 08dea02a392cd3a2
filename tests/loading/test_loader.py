"""Batches: the crops of the record, the same whatever the workers, and refusals."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from nets import Brightness, brightness
from pictures import write_noise

from ferkd.calibration.regions import Region, Regions
from ferkd.crops import cut
from ferkd.images import decode, open_images
from ferkd.labelling.run import label
from ferkd.loading.crop_sources import FreshCrops, StoredCrops
from ferkd.loading.loader import Loader, SoftLabelLoader
from ferkd.loading.mixing import Mix, SelfMix
from ferkd.store import LabelStore
from ferkd.system.errors import InputError

SIZE, CROPS = 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    sizes = {f"{'ab'[i % 2]}/photo.{i}.jpg": (30 + i, 40 - i) for i in range(11)}
    return write_noise(tmp_path_factory.mktemp("images"), sizes)


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory) -> LabelStore:
    out = tmp_path_factory.mktemp("s") / "s"
    return label(folder, brightness(SIZE), out, crops=CROPS, part_images=4)


def loader(folder, store, **options) -> SoftLabelLoader:
    settings = {"batch_size": 12, "crops_per_image": 3, "image_size": SIZE, **options}
    return SoftLabelLoader(folder, store, **settings)


def test_a_batch_shows_exactly_the_recorded_crops_and_labels(folder, store):
    source = open_images(folder)
    for batch in loader(folder, store):
        assert batch.images.shape == (12, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for i in range(12):
            row, crop = int(batch.rows[i]), int(batch.crops[i])
            image = decode(source.read(row))
            expected = cut(image, store.boxes(row, crop), bool(store.flips(row, crop)), SIZE)
            assert (batch.images[i].permute(1, 2, 0).numpy() == expected).all()
            assert batch.targets[i] == store.targets[row]
        assert torch.equal(
            batch.labels.dense(), store.labels(batch.rows.numpy(), batch.crops.numpy()).dense()
        )
        assert (batch.rows.reshape(4, 3) == batch.rows.reshape(4, 3)[:, :1]).all()


def test_the_teacher_replayed_on_a_batch_says_what_the_store_says(folder, store):
    """The student sees what the teacher saw: flips, boxes and pixels agree."""
    batch = next(iter(loader(folder, store)))
    normalised = (batch.images.float() / 255 - 0.5) / 0.25
    replayed = Brightness()(normalised).softmax(1)
    assert (replayed - batch.labels.dense()).abs().max() < 2e-3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(folder, store, workers):
    alone = list(loader(folder, store, regions=Regions()).batches(3, 8))
    parallel = list(loader(folder, store, regions=Regions(), workers=workers).batches(3, 8))
    for a, b in zip(alone, parallel, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.crops, b.crops)
        assert torch.equal(a.labels.dense(), b.labels.dense())


def test_passes_visit_every_image_and_cycles_every_crop(folder, store):
    """11 images, 4 a batch, 3 of 6 crops a visit: in 2 passes every crop once."""
    batches = loader(folder, store)
    assert len(batches) == 3
    seen = [
        (int(r), int(c))
        for b in batches.batches(0, 6)
        for r, c in zip(b.rows, b.crops, strict=True)
    ]
    first_two_passes = seen[: 11 * 6]
    assert sorted(first_two_passes) == [(r, c) for r in range(11) for c in range(6)]
    assert [len(list(batches)) for _ in range(4)] == [3, 3, 3, 3]  # 11 / 4


def test_discarded_crops_are_never_drawn_and_hard_ones_get_hard_labels(folder, store):
    scores = store.labels(np.arange(11)[:, None], np.arange(CROPS)).max_prob()
    low, middle, top = (float(v) for v in scores.quantile(torch.tensor([0.3, 0.6, 0.9])))
    batches = loader(folder, store, regions=Regions(thresholds=(low, middle, top), epsilon=0.25))
    regions = batches.mining.regions
    kinds = set()
    for batch in batches.batches(0, 9):
        found = regions[batch.rows.numpy(), batch.crops.numpy()]
        assert (found != Region.DISCARDED).all() and (batch.regions.numpy() == found).all()
        dense = batch.labels.dense()
        for i in np.flatnonzero(found == Region.HARD):
            expected = torch.full((2,), 0.25)
            expected[batch.targets[i]] = 0.75
            assert torch.allclose(dense[i], expected)
        kinds |= set(found.tolist())
    assert kinds == {Region.HARD, Region.IMPORTANT}


def test_mixing_is_applied_and_reproducible(folder, store):
    plain = next(iter(loader(folder, store)))
    mixed = next(iter(loader(folder, store, mix=SelfMix())))
    again = next(iter(loader(folder, store, mix=SelfMix(), workers=1)))
    assert torch.equal(mixed.images, again.images) and not torch.equal(mixed.images, plain.images)
    assert torch.allclose(mixed.labels.dense().sum(1), torch.ones(12), atol=1e-5)


def test_labels_of_other_images_are_refused(folder, store, tmp_path):
    other = tmp_path / "other"
    for i in range(3):
        (other / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(other / "ab"[i % 2] / f"{i}.jpg"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"11 of the 11 images of the labels .* are not in"):
        loader(other, store)
    (other / "c").mkdir()
    cv2.imwrite(str(other / "c" / "x.jpg"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"the classes of .* \(3: a, b, c\) are not those"):
        loader(other, store)


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*.jpg"):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        (to / path.parent.name / path.name).write_bytes(path.read_bytes())
    return to


def test_changed_images_are_refused(folder, store, tmp_path):
    changed = copied(folder, tmp_path / "changed")
    cv2.imwrite(str(changed / "a/photo.0.jpg"), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"photo\.0\.jpg in .* is not the file that was labelled"):
        loader(changed, store)


def test_every_labelled_image_is_checked_at_its_first_visit(folder, store, tmp_path, monkeypatch):
    """Opening checks a sample only; here none, so that the loader itself must notice."""
    changed = copied(folder, tmp_path / "changed")
    monkeypatch.setattr("ferkd.loading.crop_sources._CHECKED", 0)
    batches = loader(changed, store)
    cv2.imwrite(str(changed / "a/photo.4.jpg"), np.zeros((34, 36, 3), np.uint8))  # the same size
    with pytest.raises(InputError, match=r"photo\.4\.jpg is not the file that was labelled"):
        list(batches.batches(0, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_change_while_training_are_named(folder, store, tmp_path, workers):
    changed = copied(folder, tmp_path / "changed")
    batches = loader(changed, store, workers=workers)
    cv2.imwrite(str(changed / "a/photo.0.jpg"), np.zeros((31, 40, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"photo\.0\.jpg is 31x40 pixels, but was labelled at 30x40"
    ):
        list(batches)
    (changed / "a/photo.0.jpg").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"photo\.0\.jpg of .* was labelled but cannot be read now"
    ):
        list(batches)


def test_fresh_crops_differ_from_visit_to_visit(folder):
    source = open_images(folder)
    batches = Loader(
        source, FreshCrops(source, seed=1), batch_size=11, crops_per_image=1, image_size=SIZE
    )
    one, two = batches.batches(0, 2)
    order_one, order_two = one.rows.argsort(), two.rows.argsort()
    assert not torch.equal(one.images[order_one], two.images[order_two])
    again = next(batches.batches(1, 2))
    assert torch.equal(again.images, two.images) and one.labels is None


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_worker_kinds_give_the_same_batches_and_errors(folder, store, tmp_path, kind):
    alone, random = list(loader(folder, store)), torch.get_rng_state()
    worked = list(loader(folder, store, workers=2, worker_kind=kind))
    assert torch.equal(torch.get_rng_state(), random)  # dropout draws what it drew without workers
    for one, two in zip(alone, worked, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.crops, two.crops)
        assert torch.equal(one.labels.dense(), two.labels.dense())
    changed = copied(folder, tmp_path / "changed")
    batches = loader(changed, store, workers=2, worker_kind=kind)
    cv2.imwrite(str(changed / "a/photo.0.jpg"), np.zeros((31, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"photo\.0\.jpg is 31x40 pixels") as error:
        list(batches)
    # The error is still held, and with it the place where it was raised.
    assert error.value and not multiprocessing.active_children()
    assert not [t for t in threading.enumerate() if t.name.startswith("ferkd-worker")]


def test_an_unknown_worker_kind_is_refused(folder, store):
    with pytest.raises(InputError, match="worker_kind is 'fibres'; use threads or processes"):
        loader(folder, store, worker_kind="fibres")


def test_a_file_that_changed_is_noticed_when_training_goes_on_in_a_later_pass(
    folder, store, tmp_path
):
    changed = copied(folder, tmp_path / "changed")
    batches = loader(changed, store)
    height, width = store.images[["height", "width"]][0]
    cv2.imwrite(str(changed / store.ids[0]), np.zeros((height, width, 3), np.uint8))
    batches.epoch = 2
    with pytest.raises(InputError, match="its content differs"):
        list(batches)


def test_fresh_crops_are_never_those_that_a_teacher_labels(folder, store):
    """Same seed, same image, same numbers: a teacher must not be trained on what it labels."""
    source = open_images(folder)
    fresh = FreshCrops(source, seed=store.settings.crops.seed)
    chosen = fresh.choose(np.arange(11), np.zeros(11, np.int64), CROPS)
    sizes = np.stack([store.images["height"], store.images["width"]], 1).astype(np.int64)
    boxes = fresh.boxes(chosen, sizes).boxes
    for row in range(11):
        assert (boxes[row] != store.boxes(row, np.arange(CROPS))).any(axis=1).mean() > 0.5


def test_an_unreadable_image_is_replaced_in_ordinary_training_and_listed(folder, tmp_path, caplog):
    many = copied(folder, tmp_path / "many")
    data = (many / "a/photo.0.jpg").read_bytes()
    for i in range(200):
        (many / "b" / f"copy{i}.jpg").write_bytes(data)
    (many / "a/photo.2.jpg").write_bytes(data[: len(data) // 2])
    source = open_images(many)
    batches = Loader(
        source, FreshCrops(source), batch_size=16, crops_per_image=1, image_size=SIZE, workers=1
    )
    bad = source.ids.index("a/photo.2.jpg")
    for batch in batches.batches(0, 2 * 14):
        assert bad not in batch.rows
        assert (batch.targets.numpy() == source.targets[batch.rows]).all()
    assert list(batches.unreadable) == ["a/photo.2.jpg"]
    assert caplog.text.count("photo.2.jpg cannot be read") == 1
    for i in range(5):
        (many / "b" / f"copy{i}.jpg").write_bytes(b"not an image")
    with pytest.raises(InputError, match="unreadable"):
        list(batches.batches(0, 14))


def test_labels_made_by_another_crop_rule_are_refused(folder, store, monkeypatch):
    monkeypatch.setattr("ferkd.loading.crop_sources.CUT_RULE", "another rule")
    with pytest.raises(InputError, match="were made with the crop rule"):
        StoredCrops(open_images(folder), store)


@pytest.mark.parametrize("name", ["batch_size", "crops_per_image", "image_size"])
def test_sizes_below_one_are_refused(folder, store, name):
    with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
        loader(folder, store, **{name: 0})


def test_each_batch_of_each_pass_is_mixed_by_numbers_of_its_own(folder, store):
    """One draw of the generator that a batch is mixed with: no two alike, and the seed's own."""

    class Watched(Mix):
        drawn: ClassVar[list[float]] = []

        def draw(self, *size, generator, **rest):
            self.drawn.append(generator.random())

    def passes(seed):
        Watched.drawn.clear()
        batches = loader(folder, store, mix=Watched(), seed=seed)
        for _ in range(3):
            list(batches)
        return list(Watched.drawn), len(batches)

    (first, count), (again, _), (other, _) = passes(1), passes(1), passes(2)
    assert len({*first}) == 3 * count and first == again and not {*first} & {*other}
