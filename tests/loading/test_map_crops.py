"""Training from label maps: RoIAlign's weights, the pooled labels, the crops of the method hard."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import Cells
from pictures import write_noise
from torchvision.ops import roi_align

from ferkd.crops import CropDistribution
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.loading.crop_sources import FreshCrops, Placed
from ferkd.loading.loader import Loader
from ferkd.loading.map_crops import MapCrops, dense_log_probs, roi_weights
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore, SoftLabels
from ferkd.store.merge import merge
from ferkd.store.publish import publish
from ferkd.system.errors import InputError

_BACK = 1e-9  # of a cell: how far a box's end is held back, see `aligned`


def aligned(maps: torch.Tensor, box, size) -> torch.Tensor:
    """torchvision's RoIAlign of one box (top, left, height, width) on maps [C, h, w], float64.

    Its number of samples is the box's length in cells, rounded up after float rounding. The end is
    held back a little, for lengths of whole cells would else take one sample more or not by luck.
    """
    scale = np.array(maps.shape[1:]) / np.array(size)
    top, left = box[0] * scale[0], box[1] * scale[1]
    bottom, right = (box[0] + box[2]) * scale[0] - _BACK, (box[1] + box[3]) * scale[1] - _BACK
    corners = torch.tensor([[left, top, right, bottom]], dtype=torch.float64)
    return roi_align(maps[None].double(), [corners], (1, 1), 1.0, aligned=True)[0, :, 0, 0]


@st.composite
def cases(draw):
    """A grid, an image's size and a box in it: also one pixel, the whole image, at the borders."""
    rows, columns = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    sides, box = [], []
    for _ in range(2):
        side = draw(st.integers(1, 500))
        start = draw(st.one_of(st.just(0), st.integers(0, side - 1)))
        length = draw(st.one_of(st.just(1), st.just(side - start), st.integers(1, side - start)))
        sides.append(side)
        box.append((start, length))
    return rows, columns, sides, [box[0][0], box[1][0], box[0][1], box[1][1]]


@given(cases(), st.integers(0, 2**32 - 1))
def test_the_weights_are_those_of_roi_align(case, seed):
    rows, columns, size, box = case
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, rows, columns)))
    weights = roi_weights(box, size, rows, columns)
    assert weights.shape == (rows * columns,)
    assert (weights >= 0).all() and math.isclose(weights.sum(), 1, rel_tol=1e-12)
    pooled = maps.flatten(1) @ torch.from_numpy(weights)
    assert torch.allclose(pooled, aligned(maps, box, size), atol=1e-6)


def test_weights_by_hand():
    """Two cells of a row of 8 pixels have their centres at pixels 2 and 6.

    The box of pixels 2..6 is one cell long: one sample at its centre, pixel 4, half way. The whole
    row takes two samples, at pixels 2 and 6. The box 0..2 has its sample at pixel 1, before the
    first centre. The box 1..7 is 1.5 cells long: samples at pixels 2.5 and 5.5.
    """
    sides = [1, 8]
    of = {
        (2, 4): [0.5, 0.5],
        (0, 8): [0.5, 0.5],
        (0, 2): [1.0, 0.0],
        (3, 2): [0.5, 0.5],
        (2, 2): [0.75, 0.25],
        (0, 6): [0.8125, 0.1875],  # samples at pixels 1.5 and 4.5: [1, 0] and [0.375, 0.625]
    }
    of[(0, 6)] = [(1 + 0.375) / 2, 0.625 / 2]
    boxes = np.array([[0, left, 1, width] for left, width in of])
    got = roi_weights(boxes, np.array(sides), 1, 2)
    assert np.allclose(got, list(of.values()))


def test_many_boxes_at_once_are_those_one_by_one():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 300, (4, 2))
    boxes = np.stack(
        [(rng.random((4, 3)) * sizes[:, None, i]).astype(int) for i in range(2)]
        + [np.ones((4, 3), int)] * 2,
        -1,
    )
    boxes[..., 2:] = sizes[:, None] - boxes[..., :2]
    together = roi_weights(boxes, sizes[:, None], 7, 5)
    for i in range(4):
        for j in range(3):
            assert (together[i, j] == roi_weights(boxes[i, j], sizes[i], 7, 5)).all()


def test_dense_log_probs_by_hand():
    """Kept classes as they are, the tail shared evenly; an empty slot's class is not touched."""
    labels = SoftLabels(
        torch.tensor([[3, 1, 0], [2, 0, 1]]),
        torch.tensor([[0.5, 0.2, 0.0], [0.5, 0.25, 0.05]]).log(),
        torch.tensor([[0.3], [0.2]]).log().expand(-1, 3),
        5,
    )
    expected = torch.tensor([[0.1, 0.2, 0.1, 0.5, 0.1], [0.25, 0.05, 0.5, 0.1, 0.1]])
    assert torch.allclose(dense_log_probs(labels).exp(), expected)
    full = SoftLabels.from_logits(torch.tensor([[1.0, -200.0, 0.0]]))
    assert torch.equal(dense_log_probs(full), full.log_probs)


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"{'abc'[i % 3]}/{i}.png": (37 + 3 * i, 50 - i) for i in range(6)}
    return write_noise(tmp_path / "images", sizes)


def maps(folder: Path, out: Path, seed: int = 0, classes: int = 3, **options) -> LabelStore:
    model = Teacher(Cells(classes, seed), Inputs(image_size=16), spec="test", device="cpu")
    exact = {"top_k": None, "values": "f32", "kind": "map", "targets": classes == 3}
    return label(folder, model, out, **exact | options)


def labels_of(source: MapCrops, boxes: np.ndarray, rows: np.ndarray) -> SoftLabels:
    """The labels of these boxes [n, m, 4] of the images ``rows``."""
    chosen = source.choose(rows, np.zeros(len(rows), np.int64), boxes.shape[1])
    images = source.store.images[rows]
    sizes = np.stack([images["height"], images["width"]], 1).astype(np.int64)
    placed = Placed(boxes.astype(np.int32), np.zeros(boxes.shape[:2], bool))
    found, regions = source.labels(chosen, placed, sizes)
    assert regions is None
    return found


def test_a_whole_image_is_the_softmax_of_its_mean_logits(folder, tmp_path):
    """On a grid of 4 x 4 the whole image takes one sample at each cell's centre."""
    store = maps(folder, tmp_path / "s")
    images = open_images(folder)
    source = MapCrops(images, store)
    boxes = np.array([[[0, 0, e["height"], e["width"]]] for e in store.images])
    found = labels_of(source, boxes, np.arange(6)).dense()
    for row in range(6):
        cells = store.labels(row, np.arange(16)).log_probs
        assert torch.allclose(found[row], cells.mean(0).softmax(0), atol=1e-5)


@pytest.mark.parametrize("classes", [3, 40])
def test_pooled_labels_are_softmax_of_roi_align(folder, tmp_path, classes):
    store = maps(folder, tmp_path / "s", classes=classes)
    source = MapCrops(open_images(folder, targets=classes == 3), store, top_k=None)
    rows = np.array([4, 0, 5])
    boxes = np.array([[[0, 1, 9, 30], [7, 6, 20, 13]], [[3, 0, 8, 8], [30, 40, 7, 10]]] * 2)[:3]
    found = labels_of(source, boxes, rows)
    kept = 3 if classes == 3 else 16
    assert found.k - found.truth_slot == kept and len(found) == 6
    for i, row in enumerate(rows):
        grid = store.labels(row, np.arange(16)).log_probs.T.reshape(classes, 4, 4)
        size = [int(store.images[row][s]) for s in ("height", "width")]
        for j in range(2):
            expected = aligned(grid, boxes[i, j], size).softmax(0)
            own = found[2 * i + j : 2 * i + j + 1]
            top = expected.topk(kept).values
            got = own.log_probs[0].exp().sort(descending=True).values[:kept]
            assert torch.allclose(got.double(), top, atol=1e-5)
            assert own.top1()[0] == expected.argmax()
            rest = 1 - top.sum()
            assert math.isclose(own.tail[0, 0].exp(), rest, abs_tol=1e-5)
    with pytest.raises(InputError, match="top_k is 0"):
        MapCrops(open_images(folder, targets=classes == 3), store, top_k=0)


def test_the_truth_keeps_its_pooled_probability_outside_of_the_top_k(folder, tmp_path):
    store, images = maps(folder, tmp_path / "s"), open_images(folder)
    boxes = np.array([[[5, 3, 20, 30], [0, 0, 10, 10]]] * 6)
    every, one = (labels_of(MapCrops(images, store, top_k=k), boxes, np.arange(6)) for k in (3, 1))
    targets = torch.from_numpy(np.repeat(images.targets, 2).astype(np.int64))
    assert (every.k, one.k) == (3, 2) and one.truth_slot
    missed = every.top1() != targets
    assert missed.any() and not missed.all()
    assert torch.allclose(one.prob_of(targets), every.prob_of(targets), atol=1e-5)
    # A truth that is not the top class has the last slot, with as much as the other class left.
    assert (one.classes[missed, 1] == targets[missed]).all()
    assert not torch.isfinite(one.log_probs[~missed, 1]).any()


def test_a_map_of_a_few_classes_pools_what_it_keeps(folder, tmp_path):
    """Of cells that keep 2 of 40 classes, the others count with an even share of the rest."""
    store = maps(folder, tmp_path / "s", classes=40, top_k=2)
    source = MapCrops(open_images(folder, targets=False), store, top_k=40)
    cells = store.labels(2, np.arange(16)).dense().log()
    size = [int(store.images[2][s]) for s in ("height", "width")]
    box = [4, 9, 30, 21]
    found = labels_of(source, np.array([[box]]), np.array([2]))
    expected = aligned(cells.T.reshape(40, 4, 4), box, size).softmax(0)
    assert torch.allclose(found.dense()[0].double(), expected, atol=1e-4)


def test_published_maps_train_from_their_url(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKD_CACHE", str(tmp_path / "cache"))
    store, url = maps(folder, tmp_path / "s"), f"memory://{tmp_path.name}/maps"
    publish(store, url)
    images = open_images(folder)
    (here,), (there,) = (
        loader(folder, MapCrops(images, s), images).batches(0, 1) for s in (store, LabelStore(url))
    )
    assert torch.equal(here.labels.log_probs, there.labels.log_probs)


def loader(folder: Path, crops, images, **options) -> Loader:
    return Loader(images, crops, batch_size=6, crops_per_image=2, image_size=16, seed=3, **options)


def test_the_crops_are_those_of_the_method_hard(folder, tmp_path):
    """Comparisons are paired: same images, same boxes, same flips, same targets."""
    store, images = maps(folder, tmp_path / "s"), open_images(folder)
    area = CropDistribution(scale=(0.3, 0.6))
    hard = FreshCrops(images, seed=5, distribution=area)
    ours = MapCrops(images, store, seed=5, distribution=area)
    pairs = zip(
        loader(folder, hard, images).batches(0, 5),
        loader(folder, ours, images, workers=1).batches(0, 5),
        strict=True,
    )
    for a, b in pairs:
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        assert torch.equal(a.rows, b.rows) and torch.equal(a.crops, b.crops)
        assert b.regions is None and len(b.labels) == 6
        assert torch.allclose(b.labels.dense().sum(1), torch.ones(6))


def test_an_images_crops_do_not_move_with_other_images(folder, tmp_path):
    """An image that came after labelling is not shown, and shifts no other image's crops."""
    store = maps(folder, tmp_path / "s")
    before = MapCrops(open_images(folder), store, seed=1)
    cv2.imwrite(str(folder / "a/!.png"), np.zeros((9, 9, 3), np.uint8))
    images = open_images(folder)
    after = MapCrops(images, store, seed=1)
    rows, sizes = np.arange(6), np.stack([store.images[s] for s in ("height", "width")], 1)
    assert len(after) == 6 and [images.ids[after.image(r)[0]] for r in rows] == list(store.ids)
    placed = [s.boxes(s.choose(rows, rows, 3), sizes.astype(np.int64)) for s in (before, after)]
    assert (placed[0].boxes == placed[1].boxes).all()
    assert (placed[0].flips == placed[1].flips).all()


def test_a_crop_is_labelled_as_the_part_of_the_image_it_shows(tmp_path):
    """Of an image half of whose map is one class and half another, crops say what they show."""
    (tmp_path / "images/a").mkdir(parents=True)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    cv2.imwrite(str(tmp_path / "images/a/1.png"), pixels)
    net = Cells(2)
    with torch.no_grad():
        net.convolution.weight.fill_(1.0)
        net.convolution.bias.zero_()
        net.head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 8))
        net.head.bias.copy_(torch.tensor([10.0, -10.0]))
    model = Teacher(net, Inputs(image_size=16), spec="test", device="cpu")
    store = label(tmp_path / "images", model, tmp_path / "s", kind="map", targets=False, top_k=1)
    source = MapCrops(open_images(tmp_path / "images", targets=False), store)
    boxes = np.array([[[0, 0, 64, 24], [0, 40, 64, 24]]])
    assert labels_of(source, boxes, np.array([0])).top1().tolist() == [0, 1]


def test_merged_maps_train(folder, tmp_path):
    merge([maps(folder, tmp_path / "1"), maps(folder, tmp_path / "2", seed=1)], tmp_path / "m")
    images = open_images(folder)
    crops = MapCrops(images, LabelStore(tmp_path / "m"), seed=1)
    (batch,) = loader(folder, crops, images).batches(0, 1)
    assert torch.allclose(batch.labels.dense().sum(1), torch.ones(6))


def test_stores_that_do_not_fit_are_refused(folder, tmp_path):
    images = open_images(folder)
    crops = label(
        folder,
        Teacher(Cells(), Inputs(image_size=16), spec="test", device="cpu"),
        tmp_path / "crops",
        crops=2,
    )
    with pytest.raises(InputError, match=r"holds labels of random crops, .*--kind map"):
        MapCrops(images, crops)
    store = maps(folder, tmp_path / "s")
    path = folder / "a/0.png"
    old = path.read_bytes()
    cv2.imwrite(str(path), np.zeros((37, 50, 3), np.uint8))
    with pytest.raises(InputError, match="is not the file that was labelled"):
        MapCrops(open_images(folder), store)
    path.write_bytes(old)
    source = MapCrops(open_images(folder), store)
    chosen = source.choose(np.array([0]), np.array([0]), 1)
    with pytest.raises(InputError, match=r"a/0.png is 37x51 pixels, but was labelled at 37x50"):
        source.boxes(chosen, np.array([[37, 51]]))
