"""Networks whose answers are no logits of single images are refused, by name."""

from __future__ import annotations

from collections import namedtuple

import pytest
import timm
import torch
import torchvision
from nets import crops, small_convnet, small_resnet
from torch import Tensor, nn
from torch.nn import functional as F

from ferkd.models.architectures import Inputs
from ferkd.models.teacher import Teacher
from ferkd.system.errors import InputError

INPUTS = Inputs(image_size=16)


class Around(nn.Module):
    """A network whose answer ``change`` makes into something else."""

    def __init__(self, change, net: nn.Module | None = None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.net, self.change = net or small_convnet(0), change

    def forward(self, images: Tensor) -> object:
        return self.change(self.net(images))


def test_probabilities_are_refused_and_their_logarithm_is_taken() -> None:
    with pytest.raises(InputError, match=r"answers with probabilities .*leave its softmax out"):
        Teacher(Around(lambda z: z.softmax(1)), INPUTS, device="cpu")
    plain, log = Teacher(small_convnet(0), INPUTS, device="cpu"), Around(lambda z: z.log_softmax(1))
    images = crops(3)
    assert torch.allclose(
        Teacher(log, INPUTS, device="cpu")(images).softmax(1), plain(images).softmax(1), atol=1e-6
    )


def test_a_network_without_its_head_is_refused() -> None:
    headless = torchvision.models.resnet18(weights=None)
    headless.fc = nn.Identity()
    for module in (headless, timm.create_model("test_resnet", num_classes=0)):
        with pytest.raises(InputError, match="has no classification head: it answers with feat"):
            Teacher(module, Inputs(image_size=64), device="cpu")


def test_features_beside_logits_need_the_number_of_classes() -> None:
    both = Around(lambda z: (z.repeat(1, 4), z))
    with pytest.raises(InputError, match=r"returned 2 tensors .*\[2, 12\], \[2, 3\].*num_classes"):
        Teacher(both, INPUTS, device="cpu")
    plain, images = Teacher(small_convnet(0), INPUTS, device="cpu"), crops(3)
    assert torch.equal(Teacher(both, INPUTS, num_classes=3, device="cpu")(images), plain(images))
    pair = namedtuple("pair", "logits aux")
    for one in (Around(lambda z: {"logits": z}), Around(lambda z: pair(z, z * 2))):
        assert torch.equal(Teacher(one, INPUTS, device="cpu")(images), plain(images))


def test_weights_in_half_precision_are_used_in_fp32() -> None:
    images = crops(4, size=64)
    half = Teacher(small_resnet().half(), Inputs(image_size=64), device="cpu")
    whole = Teacher(small_resnet(), Inputs(image_size=64), device="cpu")
    assert half.precision == "fp32"
    assert torch.allclose(half(images), whole(images), atol=0.02)


def test_answers_that_depend_on_the_batch_are_refused() -> None:
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(InputError, match=r"own statistics \(1 BatchNorm has track_running_stats"):
        Teacher(norm, INPUTS, device="cpu")
    centred = Around(lambda z: z - z.mean(0))
    with pytest.raises(InputError, match="otherwise for an image alone than beside another"):
        Teacher(centred, INPUTS, device="cpu")


def test_dropout_that_stays_on_is_refused() -> None:
    with pytest.raises(InputError, match="answers otherwise when asked again"):
        Teacher(Around(lambda z: F.dropout(z, 0.5)), INPUTS, device="cpu")


def test_a_network_that_exits_is_named() -> None:
    def leave(z: Tensor) -> Tensor:
        raise SystemExit(0)

    with pytest.raises(InputError, match=r"Around ended the program \(exit status 0\)"):
        Teacher(Around(leave), INPUTS, device="cpu")
