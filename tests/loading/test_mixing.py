"""Mixing: partners, exact pixel shares, and labels that follow the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferkd.loading.mixing import (
    Mix,
    SelfMix,
    cut_boxes,
    within_batch,
    within_image,
)
from ferkd.store import SoftLabels
from ferkd.system.errors import InputError


def one_hot_labels(rows: int) -> SoftLabels:
    """Row r says class r for certain, so a mixed label shows its partner and its share."""
    return SoftLabels.hard(torch.arange(rows), rows)


def mixed_by(mix: Mix, images, labels, seed=0, m=1, **options):
    """Images and labels mixed, and the mixture."""
    rows, _, height, width = images.shape
    drawn = mix.draw(
        rows, height, width, crops_per_image=m, generator=np.random.default_rng(seed), **options
    )
    return drawn.images(images), drawn.labels(labels), drawn


def constant_images(rows: int, size: int = 8) -> torch.Tensor:
    """Row r is all r + 1, so a mixed pixel shows its partner and its share."""
    return (torch.arange(rows) + 1.0)[:, None, None, None].expand(-1, 3, size, size).clone()


@given(st.integers(1, 9), st.integers(2, 8), st.integers(0, 99))
def test_selfmix_partners_are_other_crops_of_the_same_image(images, m, seed):
    partners = within_image(images * m, m, np.random.default_rng(seed))
    rows = np.arange(images * m)
    assert (partners // m == rows // m).all() and (partners != rows).all()
    assert sorted(partners) == list(rows)


@given(st.integers(2, 40), st.integers(0, 99))
def test_batch_partners_are_other_rows(rows, seed):
    partners = within_batch(rows, np.random.default_rng(seed))
    assert (partners != np.arange(rows)).all() and sorted(partners) == list(range(rows))


@pytest.mark.parametrize("operator", ["mixup", "cutmix"])
@pytest.mark.parametrize("m", [2, 4])
def test_labels_follow_the_pixels_exactly(operator, m):
    images, labels = constant_images(8, 16), one_hot_labels(8)
    mixed, out, _ = mixed_by(SelfMix(operator), images, labels, m=m)
    # A pixel is r + 1, so the mean over pixels is the label's mean of r + 1.
    expected = (out.dense() * (torch.arange(8) + 1.0)).sum(1)
    assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-5)
    assert not torch.allclose(mixed, images)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_across_images_labels_follow_the_pixels_too(kind):
    images, labels = constant_images(6), one_hot_labels(6)
    mixed, out, _ = mixed_by(Mix(kind=kind), images, labels, 1)
    expected = (out.dense() * (torch.arange(6) + 1.0)).sum(1)
    assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-5)


def test_cutmix_pastes_a_box_and_nothing_else():
    mixed, _, drawn = mixed_by(Mix(kind="cutmix"), constant_images(4), one_hot_labels(4), 2)
    for row in range(4):
        values = set(mixed[row, 0].unique().tolist())
        assert values <= {row + 1.0, float(drawn.partners[row]) + 1}
        pasted = (mixed[row, 0] != row + 1).nonzero()
        if len(pasted):
            (y0, x0), (y1, x1) = pasted.amin(0), pasted.amax(0)
            assert len(pasted) == (y1 - y0 + 1) * (x1 - x0 + 1)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_the_share_of_a_box_is_counted_in_pixels(height, width, seed):
    rng = np.random.default_rng(seed)
    boxes, kept = cut_boxes(rng.random(5), height, width, rng)
    for (top, left, bottom, right), share in zip(boxes, kept, strict=True):
        picture = np.ones((height, width))
        picture[top:bottom, left:right] = 0
        assert picture.mean() == pytest.approx(share)


def test_probability_zero_changes_nothing_and_one_half_about_half():
    images, labels = constant_images(400, 4), one_hot_labels(400)
    same, out, _ = mixed_by(SelfMix(probability=0.0), images, labels, m=4)
    assert torch.equal(same, images) and torch.equal(out.dense(), labels.dense())
    half, _, _ = mixed_by(SelfMix(probability=0.5), images, labels, m=4)
    changed = (half != images).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6


def test_uint8_images_are_rounded_not_truncated():
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    mixed, out, _ = mixed_by(SelfMix("mixup"), images, one_hot_labels(2), 3, m=2)
    exact = 255 * out.dense()[:, 1]
    assert mixed.dtype == torch.uint8
    assert ((mixed[:, 0, 0, 0].float() - exact).abs() <= 0.5).all()


@pytest.mark.parametrize("operator", ["mixup", "cutmix"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_batches_are_mixed_in_parts_and_in_place_alike(operator, layout):
    """0.6 MB an image, so that 9 images are several parts, and those of 3 are not torn."""
    images = torch.rand(9, 3, 224, 224).contiguous(memory_format=layout)
    before = images.clone()
    mixed, out, drawn = mixed_by(SelfMix(operator), images, one_hot_labels(9), 4, m=3)
    assert torch.equal(images, before)
    partners = before[drawn.partners]
    if operator == "mixup":
        share = out.share[:, None, None, None]
        assert torch.allclose(mixed, share * before + (1 - share) * partners, atol=1e-6)
    else:
        assert ((mixed == before) | (mixed == partners)).all()
        kept = (mixed == before).all(1).float().mean((1, 2))
        assert torch.allclose(kept, out.share, atol=1e-6)

    mix = Mix(kind="selfmix", operator=operator)
    same, _ = mix(
        images,
        one_hot_labels(9),
        crops_per_image=3,
        generator=np.random.default_rng(4),
        in_place=True,
    )
    assert torch.equal(same, mixed) and same.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("mix", [SelfMix(), SelfMix("mixup"), Mix(kind="cutmix")])
def test_the_parts_of_the_ranks_are_the_whole(mix):
    """12 rows on 1 and on 2 processes: partners lie on one, and the rows are mixed alike."""
    images, labels = torch.rand(12, 3, 8, 8), one_hot_labels(12)
    whole, out, drawn = mixed_by(mix, images, labels, 5, m=3, ranks=2)
    for rank in range(2):
        some = slice(6 * rank, 6 * rank + 6)
        part = drawn.of_rank(rank, 2)
        assert ((part.partners >= 0) & (part.partners < 6)).all()
        assert torch.equal(part.images(images[some]), whole[some])
        assert torch.equal(part.labels(labels[some]).dense(), out[some].dense())
    if mix.kind == "selfmix":  # whose partners are near anyway
        assert torch.equal(mixed_by(mix, images, labels, 5, m=3)[0], whole)


def test_one_crop_per_image_cannot_be_mixed_with_itself():
    with pytest.raises(InputError, match="SelfMix needs at least 2 crops per image"):
        within_image(4, 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="5 rows are not whole images of 2 crops"):
        within_image(5, 2, np.random.default_rng(0))


def test_the_settings_apply_their_kind():
    images, labels = constant_images(4), one_hot_labels(4)
    assert SelfMix("cutmix", probability=0.5) == Mix(
        kind="selfmix", operator="cutmix", probability=0.5
    )
    for kind in ("selfmix", "mixup", "cutmix"):
        mixed, out = Mix(kind=kind)(
            images, labels, crops_per_image=2, generator=np.random.default_rng(0)
        )
        assert out.partner is not None and not torch.equal(mixed, images)
    same, out = Mix()(images, labels, crops_per_image=2, generator=np.random.default_rng(0))
    assert same is images and out is labels
    again = [
        Mix(kind="selfmix")(
            images, labels, crops_per_image=2, generator=np.random.default_rng([7, 3])
        )
        for _ in range(2)
    ]
    assert torch.equal(again[0][0], again[1][0])
