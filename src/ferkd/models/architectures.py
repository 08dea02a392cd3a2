"""Networks by name: how to build them, their pretrained weights, and what they want to see.

Names are ``timm/NAME``, ``torchvision/NAME`` and ``hf/ORG/NAME`` (or ``hf/FOLDER``). Downloaded
weights are read as tensors only; code on a hub is never run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import timm
import torch
import torchvision
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.config import resolve_model_data_config
from torch import nn

from ferkd.system.download import once_a_machine, patiently
from ferkd.system.errors import InputError

PREFIXES = ("timm/", "torchvision/", "hf/")
_IMAGENET_CLASSES = 1000

Three = tuple[float, float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a network wants to see.

    ``image_size`` in pixels; ``mean`` and ``std`` per channel in units of pixel / 255; how its
    authors resize and which central share they evaluate on (recorded, for information).
    """

    image_size: int = 224
    mean: Three = (0.485, 0.456, 0.406)
    std: Three = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875


@dataclass(frozen=True)
class Architecture:
    """A network that can be built; see :func:`find_architecture`."""

    build: Callable[[int], nn.Module]  # untrained, with this many classes
    pretrained: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Inputs]
    class_names: Callable[[nn.Module], tuple[str, ...]]  # of the pretrained weights
    classes: int = _IMAGENET_CLASSES  # to build with when nobody says


def find_architecture(
    name: str, *, image_size: int | None = None, model_args: dict[str, Any] | None = None
) -> Architecture:
    """The architecture called ``name``; nothing is built or downloaded yet, except hf's config.

    ``image_size`` goes to networks whose size is fixed when they are built; ``model_args`` go to
    the constructor. Raises InputError for an unknown name, with the nearest ones.
    """
    prefix, _, rest = name.partition("/")
    args = dict(model_args or {})
    if prefix == "timm":
        return _timm(rest, image_size, args)
    if prefix == "torchvision":
        return _torchvision(rest, image_size, args)
    if prefix == "hf":
        return _hugging_face(rest)
    raise InputError(f"unknown architecture {name!r}: it starts with {', '.join(PREFIXES)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message, such as "; nearest: A, B"; empty when no known name is similar."""
    names = difflib.get_close_matches(name, list(known), n=3)
    return f"; nearest: {', '.join(names)}" if names else ""


def timm_inputs(module: nn.Module) -> Inputs:
    """What a timm network wants to see, by its ``pretrained_cfg``; else ImageNet's usual."""
    if not getattr(module, "pretrained_cfg", None):
        return Inputs()
    config = resolve_model_data_config(module)
    return Inputs(
        image_size=int(config["input_size"][-1]),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        interpolation=str(config["interpolation"]),
        crop_fraction=float(config["crop_pct"]),
    )


@lru_cache(maxsize=4)
def imagenet_names(classes: int) -> tuple[tuple[str, ...], ...]:
    """The WordNet ids and the words of ImageNet's set of so many classes; () without one."""
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    words = tuple(info.index_to_description(i).partition(",")[0] for i in range(classes))
    return tuple(info.label_names()), words


def _timm(name: str, image_size: int | None, args: dict[str, Any]) -> Architecture:
    config = None
    if ":" not in name:  # "hf-hub:ORG/NAME" and "local-dir:FOLDER" are timm's to resolve
        if not timm.is_model(name):
            raise InputError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
        try:
            config = timm.get_pretrained_cfg(name)
        except RuntimeError:
            family = timm.list_models(name.partition(".")[0], pretrained=True)
            raise InputError(f"timm has no weights {name!r}; it has {', '.join(family)}") from None
    if config and config.fixed_input_size and image_size:
        args.setdefault("img_size", image_size)

    def create(**options: Any) -> nn.Module:
        # A vision transformer that is built so takes other sizes than its own too (its position
        # embeddings are resampled then), and is the same to the bit at its own.
        if "img_size" in args and "dynamic_img_size" not in args:
            try:
                return timm.create_model(name, **options, **args, dynamic_img_size=True)
            except TypeError as error:
                if "dynamic_img_size" not in str(error):
                    raise
        return timm.create_model(name, **options, **args)

    def pretrained() -> nn.Module:
        if config and not config.has_weights:
            raise InputError(
                f"timm has no pretrained weights for {name}; {_own_weights('timm', name)}"
            )
        if config and not config.num_classes:
            raise InputError(
                f"the pretrained timm/{name} has no classification head; train one and "
                f"{_own_weights('timm', name)}"
            )
        return _fetch(f"timm/{name}", lambda: create(pretrained=True))

    return Architecture(
        build=lambda classes: _load(
            f"timm/{name}",
            lambda: create(pretrained=False, num_classes=classes),
        ),
        pretrained=pretrained,
        inputs=timm_inputs,
        class_names=lambda module: (),
    )


def _torchvision(name: str, image_size: int | None, args: dict[str, Any]) -> Architecture:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise InputError(f"torchvision has no classifier {name!r}{nearest(name, names)}")
    build = torchvision.models.get_model_builder(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    if image_size and name.startswith("vit_"):
        args.setdefault("image_size", image_size)
    # They warn of a default that will change otherwise; this is the present one.
    untrained = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}

    def pretrained() -> nn.Module:
        # The builder would unpickle the file without restriction. Loading it once as tensors
        # only, with its hash checked, refuses anything else; the builder then reads that file.
        torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
        return build(weights=weights, progress=False, **args)

    def inputs(module: nn.Module) -> Inputs:
        preset = weights.transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        return Inputs(
            image_size=crop,
            mean=_three(preset.mean),
            std=_three(preset.std),
            interpolation=preset.interpolation.value,
            crop_fraction=crop / resize,
        )

    return Architecture(
        build=lambda classes: _load(
            f"torchvision/{name}",
            lambda: build(weights=None, num_classes=classes, **{**untrained, **args}),
        ),
        pretrained=lambda: _fetch(f"torchvision/{name}", pretrained),
        inputs=inputs,
        class_names=lambda module: tuple(weights.meta["categories"]),
    )


def _hugging_face(name: str) -> Architecture:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f'teacher hf/{name} needs the package transformers: pip install "ferkd[hf]"'
        ) from error
    classifier = transformers.AutoModelForImageClassification

    def pretrained() -> nn.Module:
        module, report = classifier.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,  # else the checkpoint's own, often half precision
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise InputError(
                f"hf/{name} holds no weights for {', '.join(sorted(report['missing_keys'])[:3])}; "
                f"its head is untrained: name a fine-tuned classifier"
            )
        return module

    def inputs(module: nn.Module) -> Inputs:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"hf/{name} does not say how its images are prepared (no preprocessor_config.json "
                f"can be read: {next(iter(str(error).splitlines()), '')}); state all of it in "
                f"the spec: hf/{name}?image_size=224&mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
            ) from error
        return _probe_processor(name, processor)

    def class_names(module: Any) -> tuple[str, ...]:
        labels = module.config.id2label
        names = tuple(str(labels[i]) for i in sorted(labels))
        return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names

    config = _load(
        f"hf/{name}", lambda: patiently(lambda: transformers.AutoConfig.from_pretrained(name))
    )

    def build(classes: int) -> nn.Module:
        config.num_labels = classes
        return classifier.from_config(config)

    return Architecture(
        build=lambda classes: _load(f"hf/{name}", lambda: build(classes)),
        pretrained=lambda: _fetch(f"hf/{name}", pretrained),
        inputs=inputs,
        class_names=class_names,
        classes=config.num_labels,
    )


def _probe_processor(name: str, processor: Any) -> Inputs:
    """What an image processor does, read off its output for uniform black, white and red images.

    Asking its code is exact where its settings have many dialects: rescale factors and offsets,
    size against crop size, swapped channels.
    """

    def run(red: int, other: int) -> np.ndarray:
        image = np.full((512, 512, 3), (red, other, other), dtype=np.uint8)
        return processor(images=image, return_tensors="np")["pixel_values"][0]

    black, white, red = run(0, 0), run(255, 255), run(255, 0)
    _, height, width = black.shape
    low, high = black[:, height // 2, width // 2], white[:, height // 2, width // 2]
    if not np.allclose(red[:, height // 2, width // 2], (high[0], low[1], low[2]), atol=1e-5):
        raise InputError(f"hf/{name} wants another channel order than RGB; give it as a function")
    if height != width:
        raise InputError(f"hf/{name} wants {height}x{width} images; only square ones are cut")
    std = 1 / (high - low)
    filters = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    return Inputs(
        image_size=height,
        mean=_three(-low * std),
        std=_three(std),
        interpolation=filters.get(int(processor.resample), "bilinear"),
    )


def _fetch(name: str, make: Callable[[], T]) -> T:
    """As :func:`_load`, of weights that a library downloads on first use: one process a machine."""
    return _load(name, lambda: once_a_machine(name, lambda: patiently(make)))


def _load(name: str, make: Callable[[], T]) -> T:
    """``make()``, with whatever a library or the network raises turned into an InputError."""
    try:
        return make()
    except InputError:
        raise
    except Exception as error:
        cause = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{name} could not be built or its pretrained weights could not be loaded "
            f"({type(error).__name__}: {cause}); they are downloaded on first use: check the "
            f"network, or {_own_weights(*name.split('/', 1))}"
        ) from error


def _own_weights(prefix: str, name: str) -> str:
    return f"give weights of yours by {prefix}/{name}?checkpoint=FILE"


def _three(values: Iterable[float]) -> Three:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
