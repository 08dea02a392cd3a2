"""Features judged by their nearest neighbours and by a linear probe."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.embedding import Embedded, Embedder, Seen, judge, linear_probe, nearest
from ferkd.images import open_images
from ferkd.system.errors import InputError

TEACHER = "timm/test_resnet?random=0&num_classes=3&image_size=32"


def at(*degrees: float) -> torch.Tensor:
    """Vectors of different lengths at these angles."""
    angles = torch.tensor(degrees) * math.pi / 180
    lengths = torch.arange(1, len(degrees) + 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths


def test_neighbours_vote_by_their_cosine():
    """At 0 degrees lies class 1, at 20 and at 21 class 0. For 8 degrees, of three neighbours:
    exp(cos 8 / .07) = 1.39e6 against exp(cos 12 / .07) + exp(cos 13 / .07) = 2.28e6."""
    known = Embedded(at(0, 20, 21, 180), torch.tensor([1, 0, 0, 1]))
    assert nearest(known, at(8), 1).tolist() == [1]
    assert nearest(known, at(8), 3).tolist() == [0]
    votes = {
        1: math.exp(math.cos(math.radians(3)) / 0.07),
        0: math.exp(math.cos(math.radians(17)) / 0.07)
        + math.exp(math.cos(math.radians(18)) / 0.07),
    }
    assert nearest(known, at(3), 3).tolist() == [max(votes, key=votes.__getitem__)]


def test_a_probe_separates_what_a_plane_separates():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0])
    y = (x[:, 2] > 0).long()  # told by the smallest number: features are standardised
    x[:, 2] += 0.02 * (2 * y - 1)
    known = Embedded(x[:150], y[:150])
    answers, c = linear_probe(known, x[150:])
    assert (answers == y[150:]).double().mean() >= 0.98 and c in (0.01, 0.1, 1.0, 10.0)
    with pytest.raises(InputError, match="at least 2 classes"):
        linear_probe(Embedded(x, torch.zeros(200, dtype=torch.long)), x)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r'pip install "ferkd\[probe\]"'):
        linear_probe(Embedded(torch.eye(2), torch.tensor([0, 1])), torch.eye(2))


def test_a_teacher_is_judged_by_its_spec(tiny_images, command_line):
    photos = tiny_images({"a": 6, "b": 5})
    found = judge(TEACHER, photos, reference=photos, neighbours=1, workers=0)
    assert found["knn_top1"] == 1.0  # each image is its own nearest neighbour
    assert (found["image_size"], found["features"]) == (32, 96)
    split = judge(TEACHER, photos, probe=False, workers=0)
    assert (split["judged_images"], split["reference_images"]) == (2, 9)
    source, seen = open_images(photos), Seen()
    again = [dict(judge(TEACHER, source, probe=False, workers=0, seen=seen)) for _ in range(2)]
    assert again == [dict(split)] * 2 and len(seen) == 1
    assert "probe_top1" not in split and split["knn_k"] == 9
    status, _, err = command_line("evaluate", TEACHER, photos, "--reference", photos)
    assert status == 2 and "--reference is what --knn and --probe learn from" in err
    with pytest.raises(InputError, match="neighbours is 0; it must be at least 1"):
        judge(TEACHER, photos, neighbours=0)
    with pytest.raises(InputError, match="no directory of a run, and no spec"):
        judge("nowhere", photos)


@pytest.mark.parametrize("lost", ["judged", "reference"])
def test_features_that_are_not_finite_are_named_by_their_images(
    tiny_images, tmp_path, monkeypatch, lost
):
    sources = {}
    for seed, name in enumerate(("judged", "reference")):
        folder = tiny_images({"a": 3, "b": 3}, seed=seed).rename(tmp_path / name)
        sources[name] = open_images(folder)
    batches = CenterCrops.batches

    def some(self, batch_size):
        for pixels, rows in batches(self, batch_size):
            yield pixels.float().mul(math.nan if self.images is sources[lost] else 1), rows

    monkeypatch.setattr(CenterCrops, "batches", some)
    plain = Embedder(lambda pixels: pixels.float().mean((2, 3)), 32, 1.0)
    monkeypatch.setattr("ferkd.evaluating.embedding.embedder_of", lambda *_, **given: plain)
    with pytest.raises(InputError, match=rf"of a net for .*{lost} are not finite; give precision"):
        judge("a net", sources["judged"], reference=sources["reference"], workers=0)


def test_classes_are_matched_by_name(tiny_images, tmp_path):
    photos = tiny_images({"a": 3, "b": 3})
    other = photos.rename(tmp_path / "first")
    (other / "b").rename(other / "c")
    photos = tiny_images({"a": 3, "b": 3})
    with pytest.raises(InputError, match="the classes do not match"):
        judge(TEACHER, photos, reference=other, workers=0)
