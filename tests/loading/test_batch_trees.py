"""Batches and labels as nodes of torch's trees: what others' tools do to tensors reaches them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from ferkd.crops.device import Decoded, raw_images
from ferkd.loading.batch import Batch
from ferkd.store import SoftLabels


def labels(rows: int, mixed: bool) -> SoftLabels:
    found = SoftLabels.from_logits(torch.randn(rows, 7), torch.arange(rows) % 7, 3)
    if not mixed:
        return found
    return found.mixed(found[torch.arange(rows).flip(0)], torch.rand(rows))


def batch(rows: int = 6, mixed: bool = False) -> Batch:
    numbers = torch.arange(rows)
    return Batch(
        images=torch.randint(0, 256, (rows, 3, 4, 4), dtype=torch.uint8),
        labels=labels(rows, mixed),
        targets=numbers % 7,
        rows=numbers // 2,
        crops=numbers % 2,
        regions=numbers.to(torch.int8),
    )


def same(a: Batch, b: Batch) -> bool:
    ours, theirs = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return ours[1] == theirs[1] and all(
        torch.equal(x, y) for x, y in zip(ours[0], theirs[0], strict=True)
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_every_tensor_and_nothing_else_is_a_leaf(mixed):
    given = batch(mixed=mixed)
    leaves, spec = pytree.tree_flatten({"batch": given})
    # 4 of a label, twice and a share where it is mixed; 5 beside them.
    assert len(leaves) == (14 if mixed else 9)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    back = pytree.tree_unflatten(leaves, spec)["batch"]
    assert isinstance(back, Batch) and same(back, given)
    assert back.labels.num_classes == 7 and back.labels.k == 3


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_are_taken_and_put_together_again(mixed):
    given = batch(mixed=mixed)
    head, tail = given[:2], given[2:]
    assert len(head) == 2 and len(tail) == 4
    assert torch.equal(head.labels.dense(), given.labels.dense()[:2])
    assert same(Batch.cat([head, tail]), given)
    assert same(pytree.tree_map(lambda t: t[:2], given), head)
    assert same(pytree.tree_map(lambda *t: torch.cat(t), head, tail), given)
    assert same(given[torch.tensor([5, 0])][[1]], given[:1])


def test_what_is_of_two_kinds_is_not_put_together():
    given = batch()
    with pytest.raises(ValueError, match="2 kinds of labels"):
        SoftLabels.cat([given.labels, given.labels.top(2)])
    with pytest.raises(
        ValueError, match="only some of the batches have labels, regions or features"
    ):
        Batch.cat([given, replace(given, labels=None)])


def test_whole_images_travel_in_the_tree_and_are_cut_before_rows_are_taken():
    image = Decoded(torch.randint(0, 256, (9, 8, 3), dtype=torch.uint8).numpy())
    boxes = torch.tensor([[[0, 0, 9, 8], [1, 1, 5, 5]]], dtype=torch.int32).numpy()
    flips = torch.tensor([[False, True]]).numpy()
    raw = raw_images([image], torch.tensor([[9, 8]]).numpy(), boxes, flips, 4)
    uncut = replace(batch(2), images=torch.empty(2, 3, 0, 0, dtype=torch.uint8), raw=raw)
    copied = pytree.tree_map(torch.clone, uncut)
    assert torch.equal(copied.cut().images, uncut.cut().images)
    with pytest.raises(ValueError, match=r"take rows of batch\.cut\(\)"):
        uncut[:1]


def test_accelerate_sends_a_batch():
    operations = pytest.importorskip("accelerate.utils.operations")
    given = batch(mixed=True)
    sent = operations.send_to_device({"batch": given}, torch.device("meta"))["batch"]
    assert isinstance(sent, Batch)
    assert {leaf.device.type for leaf in pytree.tree_leaves(sent)} == {"meta"}
