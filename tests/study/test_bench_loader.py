"""The loader's benchmark: every side shows the same images and the same crops."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ferkd.images import decode, open_images
from ferkd.loading.crop_sources import StoredCrops
from ferkd.loading.loader import Loader
from ferkd.loading.order import ImageOrder
from ferkd.models.student import IMAGENET_MEAN, IMAGENET_STD
from ferkd.study.bench import measuring
from ferkd.study.bench.loader import (
    CACHED,
    CUTS,
    FKD,
    FLOOR,
    FULL,
    OURS,
    USUAL,
    bench_loader,
    targets,
)
from ferkd.study.bench.made_up import write_labels
from ferkd.study.bench.measuring import Target, in_turns, one_thread
from ferkd.study.bench.peers import FkdStyle, Floor, Rows, joined, loaded, usual
from ferkd.study.bench.photos import copy_photos, link_photos, write_photos
from ferkd.study.bench.store import write_fkd
from ferkd.system.errors import InputError


@pytest.fixture
def images(tiny_images):
    return tiny_images({"a": 5, "b": 4}, size=(60, 44))


def test_it_reports_every_side_and_its_targets(images):
    result = bench_loader(
        images,
        crops_per_image=(2, 4),
        workers=(0,),
        image_size=16,
        batch_size=8,
        batches=1,
        stored_crops=4,
        repeats=1,
    )
    json.dumps(result, allow_nan=False)
    rows = result["details"]["rows"]
    assert [(row["workers"], row["crops_per_image"]) for row in rows] == [(0, 2), (0, 4)]
    sides = rows[1]["crops_per_second_per_core"]
    assert {OURS, CACHED, USUAL, FKD, FLOOR, CUTS} <= set(sides) and FULL not in sides
    assert result["value"] == sides[OURS]["median"]  # of m = 4
    assert result["ratios"][FKD] == pytest.approx(sides[OURS]["median"] / sides[FKD]["median"])
    of_fkd = result["targets"][f"{OURS} / {FKD}, m = 4, 0 workers"]
    assert of_fkd["target"] == 3 and of_fkd["measured"] == pytest.approx(result["ratios"][FKD])
    # 9 images of 60 x 44 pixels in 3 channels, and 32 bytes about each.
    assert result["details"]["cache"]["bytes"] == 9 * (60 * 44 * 3 + 32)


def test_two_workers_count_as_two_processes(images):
    options = {"crops_per_image": (4,), "image_size": 16, "batch_size": 8, "stored_crops": 4}
    result = bench_loader(images, workers=(2,), batches=1, repeats=1, cache=False, **options)
    assert result["details"]["rows"][0]["workers"] == 2 and result["details"]["cache"] is None
    assert result["value"] > 0


def test_megapixel_pictures_are_also_decoded_in_full(images, monkeypatch):
    monkeypatch.setattr("ferkd.study.bench.loader.MEGAPIXEL_SIDES", (150, 200))
    result = bench_loader(
        images,
        megapixels=True,
        photos=3,
        crops_per_image=(4,),
        workers=(0,),
        image_size=16,
        batch_size=4,
        batches=1,
        stored_crops=4,
        repeats=1,
    )
    assert FULL in result["baselines"] and result["details"]["images"] == 3
    assert result["targets"][f"{OURS} / {USUAL}, m = 4, 0 workers"]["target"] == 8


def test_targets_speak_of_the_rows_that_they_are_for():
    def row(m, rates):
        sides = {name: {"median": rate} for name, rate in rates.items()}
        return {"crops_per_image": m, "workers": 2, "crops_per_second_per_core": sides}

    rates = {OURS: 60.0, USUAL: 10.0, FKD: 20.0, FLOOR: 90.0}
    found = targets([row(m, rates) for m in (1, 4, 8)], megapixels=False)
    assert found[f"{OURS} / {FKD}, m = 4, 2 workers"] == Target(3, 3.0)
    assert found[f"{OURS} / {FKD}, m = 8, 2 workers"] == Target(4, 3.0)
    assert found[f"{OURS} / {USUAL}, m = 4, 2 workers"] == Target(6, 6.0)
    assert found[f"time / time of {FLOOR}, m = 4, 2 workers"] == Target(1.35, 1.5, "<=")
    assert [t.reached for t in found.values()] == [True, True, False, False]
    assert len(found) == 4
    big = targets([row(4, {**rates, CACHED: 300.0})], megapixels=True)
    assert list(big.values()) == [Target(10, 15.0), Target(8, 6.0)]


def test_ours_and_fkd_style_read_the_same_images_and_crops(images, tmp_path):
    source = open_images(images, targets=False)
    store = write_labels(tmp_path / "store", source, 3)
    files = write_fkd(tmp_path / "fkd", store)
    order = ImageOrder(len(source), 0)
    fkd = FkdStyle([images / i for i in source.ids], files, 3, 16)
    theirs = next(iter(loaded(fkd, Rows(order, 2, 4, 6), 0, "fkd")))
    loader = Loader(
        source,
        StoredCrops(source, store),
        batch_size=6,
        crops_per_image=3,
        image_size=16,
        scaled_decoding=False,
    )
    ours = next(iter(loader.batches(4, 5)))
    pixels, labels, rows = theirs
    assert rows.tolist() == ours.rows.tolist()
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for image in range(2):  # all three crops, each in an order of its own
        some = slice(3 * image, 3 * image + 3)
        # The first class of a label tells which crop it is.
        key = labels[some, 0, 0].long().tolist()
        own = ours.labels.classes[some, 0].tolist()
        assert sorted(key) == sorted(own) and len(set(own)) == 3
        shown = (pixels[some] * std + mean) * 255
        for crop, label in enumerate(own):
            difference = shown[key.index(label)] - ours.images[some][crop].float()
            assert difference.abs().mean() < 6  # other filters, the same part of the picture


def test_the_usual_way_shows_one_crop_of_each_image(images):
    data = usual(images, 16)
    batch = next(iter(loaded(data, Rows(ImageOrder(9, 0), 9, 0, 1), 0, "usual")))
    assert batch[0].shape == (9, 3, 16, 16) and batch[0].dtype == torch.float32
    assert sorted(batch[1].tolist()) == [0] * 5 + [1] * 4


def test_the_floor_decodes_and_cuts_what_it_says(images, tmp_path, monkeypatch):
    source = open_images(images, targets=False)
    store = write_labels(tmp_path / "store", source, 4)
    decoded, cuts = [], []
    imdecode, resize = cv2.imdecode, cv2.resize
    monkeypatch.setattr(cv2, "imdecode", lambda *a: decoded.append(1) or imdecode(*a))
    monkeypatch.setattr(cv2, "resize", lambda *a, **k: cuts.append(1) or resize(*a, **k))
    assert Floor(source, 4, 16)[[0, 3]] == 8
    assert (len(decoded), len(cuts)) == (2, 0)
    assert Floor(source, 4, 16, store)[[0, 3]] == 8
    assert (len(decoded), len(cuts)) == (4, 8)


def test_rows_are_those_of_our_loader():
    order = ImageOrder(10, 3)
    steps = list(Rows(order, 4, 5, 7))
    assert steps == [order.at(20, 4)[0].tolist(), order.at(24, 4)[0].tolist()]
    assert len(Rows(order, 4, 5, 7)) == 2


def test_batches_are_joined_in_order():
    crops = [
        (torch.full((2, 1), float(i)), torch.full((2,), i), torch.tensor([i, i])) for i in (4, 7)
    ]
    pixels, labels, rows = joined(crops)
    assert pixels[:, 0].tolist() == [4, 4, 7, 7] and labels.tolist() == rows.tolist() == [
        4,
        4,
        7,
        7,
    ]


def test_made_up_labels_are_accepted_and_know_the_truth(images, tmp_path):
    store = write_labels(tmp_path / "known", open_images(images), 6)
    assert store.settings.targets and store.class_names == ("a", "b")
    assert store.targets.tolist() == [0] * 5 + [1] * 4
    hidden = write_labels(tmp_path / "hidden", open_images(images, targets=False), 6)
    assert hidden.num_classes == 1000 and hidden.record.k == 5
    confidence = hidden.labels(np.arange(9)[:, None], np.arange(6)).max_prob()
    assert confidence.min() < 0.3 and confidence.max() > 0.9


@pytest.mark.parametrize("made_from", ["photographs", "nothing"])
def test_pictures_have_the_bytes_of_a_camera(images, tmp_path, made_from):
    given = open_images(images)
    sources = [given.read(i) for i in range(3)] if made_from == "photographs" else []
    folder = write_photos(tmp_path / "new", 3, sides=(300, 400), sources=sources)
    made = open_images(folder, targets=False)
    assert len(made) == 3
    for i in range(3):
        data = made.read(i)
        assert decode(data).shape == (300, 400, 3)
        assert 0.2 < len(data) / (300 * 400) < 0.55
        # OpenCV's quality 90 has this first quantisation step, as libjpeg's table has.
        assert Image.open(io.BytesIO(data)).quantization[0][0] == 3


def test_photos_are_copied_evenly_and_linked_into_classes(images, tmp_path):
    given = open_images(images)
    copied = open_images(copy_photos(given, tmp_path / "some", 3))
    assert copied.ids == (given.ids[0], given.ids[4], given.ids[8])
    with pytest.raises(InputError, match="take 1 to all"):
        copy_photos(given, tmp_path / "more", 10)
    linked = open_images(link_photos(given, images, tmp_path / "linked", 12))
    assert len(linked) == len(linked.class_names) == 12
    assert linked.read(10) == given.read(1)


def test_wrong_counts_are_refused(images):
    for wrong in ({"crops_per_image": (0,)}, {"workers": (-1,)}, {"repeats": 0}, {"batches": 0}):
        with pytest.raises(InputError, match="at least"):
            bench_loader(images, **wrong)
    with pytest.raises(InputError, match="store as many"):
        bench_loader(images, crops_per_image=(8,), stored_crops=4)
    with pytest.raises(InputError, match="not a local folder"):
        bench_loader(images / "nowhere")
    with pytest.raises(InputError, match="photos is 0"):
        bench_loader(photos=0)


def test_turns_rotate_and_warm_ups_are_dropped():
    called = []

    def side(name):
        return lambda turn: called.append((name, turn)) or float(turn)

    found = in_turns({"a": side("a"), "b": side("b")}, 2, uncounted=1)
    assert found == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert called == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    with pytest.raises(InputError, match="repeats is 0"):
        in_turns({"a": side("a")}, 0)


def test_threads_are_given_back():
    before = cv2.getNumThreads(), torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before


def test_a_fresh_process_answers_in_json():
    assert measuring.in_a_fresh_process("posixpath:join", "a", "b") == "a/b"
    with pytest.raises(RuntimeError, match="posixpath:join failed"):
        measuring.in_a_fresh_process("posixpath:join")
    assert measuring.peak_resident() > 10e6
    assert {"processor", "cores", "software", "date"} <= set(measuring.machine())
