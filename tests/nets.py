"""Small networks that tests use as teachers, what they are shown, and a hostile checkpoint."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ferkd.models.teacher import Inputs, Teacher

SMALL = "timm/test_resnet"  # 0.5 M parameters, made by timm for tests
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pixel(nn.Module):
    """Its logits are the normalised RGB of the upper left pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0] * self.gain


class Brightness(nn.Module):
    """Two classes, told with a confidence of the crop's brightness: it varies from crop to crop."""

    def forward(self, images: Tensor) -> Tensor:
        z = images.mean((1, 2, 3)) * 20
        return torch.stack([z, -z], 1)


def brightness(size: int) -> Teacher:
    """Brightness as a teacher of crops of so many pixels."""
    return Teacher(Brightness(), Inputs(image_size=size, mean=(0.5,) * 3, std=(0.25,) * 3))


class Cells(nn.Module):
    """A small network of timm's form: features of 16 / 4 = 4 rows and columns, a linear head."""

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, classes)
        self.head.weight.data.mul_(20)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.convolution(images).relu()

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def batch_norm_net(classes: int = 4) -> nn.Module:
    """A net whose output in training mode depends on the whole batch, with moved statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, classes),
    )
    net(torch.randn(16, 3, 16, 16))
    return net


def crops(count: int, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def small_resnet(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=classes).eval()


def small_convnet(seed: int, classes: int = 3) -> nn.Module:
    """A net of one convolution, for crops of any size, whose answers are far apart."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    net[4].weight.data.mul_(10)
    return net


class Malicious:
    """What a hostile checkpoint looks like: unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))
