"""Teachers: a frozen network with its own input rule, in evaluation mode whatever happens.

Which networks can be named, and how, stands in :mod:`ferkd.models.specs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from ferkd.models.architectures import Inputs, timm_inputs
from ferkd.models.specs import Found, Options, find, parse_spec
from ferkd.models.weights import fingerprint
from ferkd.system.compute import Normalise, Precision, autocast, resolve_device, resolve_precision
from ferkd.system.errors import InputError

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Teacher:
    """A frozen network in evaluation mode: uint8 crops in, logits out.

    The module is moved to ``device`` and to channels-last memory, tried once on a black image, and
    fingerprinted. ``precision`` "auto" is fp32 on the CPU and bf16 on CUDA. Raises InputError for
    an unknown device or precision, a module that cannot take the size, output that is not finite
    logits [B,C], and another number of classes than ``num_classes`` or ``class_names`` say.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Inputs | None = None,
        *,
        spec: str | None = None,
        weights: str = "as given",
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        inputs = inputs or timm_inputs(module)
        self.spec = spec or f"module {type(module).__name__}"
        self.weights = weights
        self.image_size, self.mean, self.std = inputs.image_size, inputs.mean, inputs.std
        self.interpolation, self.crop_fraction = inputs.interpolation, inputs.crop_fraction
        self.device = resolve_device(device)
        if precision not in get_args(Precision):
            raise InputError(
                f"precision {precision!r} is not one of {', '.join(get_args(Precision))}"
            )
        self._dtype = resolve_precision(cast(Precision, precision), self.device)
        self.precision = _PRECISIONS[self._dtype]
        self.module = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._normalise = Normalise(self.mean, self.std, self.device, reuse=True)
        self.num_classes = self._try_out()
        self.class_names = tuple(class_names)
        for stated, what in ((num_classes, "num_classes"), (len(class_names), "class names")):
            if stated and stated != self.num_classes:
                raise InputError(
                    f"teacher {self.spec} has {self.num_classes} classes, but {what}: {stated}; "
                    "give weights that were trained for these classes"
                )
        self.fingerprint = fingerprint(self.module)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 [B,C] on the teacher's device, for ``images`` uint8 [B,3,S,S] in RGB.

        Each row depends on its own image alone: evaluation mode is set at every call, whatever
        was done to the module between. Raises ValueError for another dtype or shape, InputError
        for output that is not finite.
        """
        return self.answers(images, self.module)

    def answers(
        self, images: Tensor, network: Callable[[Tensor], Any], *, each: int | None = 1
    ) -> Tensor:
        """As a call, of a ``network`` made of this teacher's modules: logits [B * each, C].

        ``network`` takes the normalised images; ``each`` None accepts any number of rows.
        """
        size = self.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            dtype = str(images.dtype).removeprefix("torch.")
            raise ValueError(
                f"teacher {self.spec} takes uint8 [B,3,{size},{size}], got {dtype} "
                f"{list(images.shape)}"
            )
        self.module.eval()
        with torch.inference_mode(), autocast(self.device, self._dtype):
            pixels = self._normalise(images.contiguous(memory_format=torch.channels_last))
            logits = _logits(network(pixels))
            if (
                not isinstance(logits, Tensor)
                or logits.ndim != 2
                or (each is not None and len(logits) != len(images) * each)
            ):
                got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(
                    f"teacher {self.spec} returned {got} for {len(images)} images; a classifier's "
                    "logits [B, classes] are needed"
                )
            if not bool(logits.isfinite().all()):
                raise InputError(
                    f"teacher {self.spec} returned logits that are not finite in {self.precision}; "
                    "try precision fp32, else its weights are damaged"
                )
        # A copy made outside inference mode may take part in a loss that is differentiated.
        return logits.to(torch.float32, copy=True)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits float32 [B,C] for ``pixels`` float [B,3,S,S] normalised by this teacher's mean
        and std, of any side S that its network takes.

        In evaluation mode, without gradient, and without waiting for the device: whether they are
        finite is for the caller to see.
        """
        self.module.eval()
        with torch.inference_mode(), autocast(self.device, self._dtype):
            logits = cast(Tensor, _logits(self.module(pixels)))
        # A copy made outside inference mode may take part in a loss that is differentiated.
        return logits.to(torch.float32, copy=True)

    def describe(self) -> dict[str, Any]:
        """What a label store records of its teacher: JSON types only, no path of this machine."""
        return {
            "spec": self.spec,
            "weights": self.weights,
            "fingerprint": self.fingerprint,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "precision": self.precision,
            "eval_mode": True,
        }

    def _try_out(self) -> int:
        size = self.image_size
        try:
            return self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"teacher {self.spec} cannot take normalised images [1,3,{size},{size}]: {cause}; "
                "give its own size by ?image_size=N"
            ) from error


def load_teacher(
    spec: str | Path | nn.Module | Teacher,
    *,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    num_classes: int | None = None,
) -> Teacher:
    """The teacher that ``spec`` names (see the module's text), or an object made into one.

    ``image_size`` and ``num_classes`` take precedence over the spec's. An ``nn.Module`` is taken
    with its timm ``pretrained_cfg`` where it has one, else with ImageNet's mean and std at 224 px;
    a :class:`Teacher` is returned as it is. Raises InputError for anything that cannot be found,
    read or matched.
    """
    stated = {"image_size": image_size, "num_classes": num_classes}
    update = {key: value for key, value in stated.items() if value is not None}
    if isinstance(spec, str | Path):
        target, options = parse_spec(str(spec))
        options = options.model_copy(update=update)
        with torch.random.fork_rng(devices=[]):  # building a network must not move the caller's
            found = find(target, options)
    else:
        options = Options().model_copy(update=update)
        found = Found(spec, timm_inputs, f"module {type(spec).__name__}")
    if isinstance(found.network, Teacher):
        _agrees(found.network, options)
        return found.network
    if not isinstance(found.network, nn.Module):
        raise InputError(
            f"teacher {found.spec} is a {type(found.network).__name__}; an nn.Module, a Teacher, "
            "or a function that returns one or maps images to logits is needed"
        )
    return Teacher(
        found.network,
        found.inputs(options),
        spec=found.spec,
        weights=found.weights,
        class_names=found.class_names,
        num_classes=options.num_classes,
        device=device,
        precision=precision,
    )


def check_classes(
    teacher: Teacher, class_names: Sequence[str], num_images: int | None = None
) -> None:
    """Raise InputError unless the teacher's classes are ``class_names``, one by one.

    Nothing is checked when ``class_names`` is empty (no ground truth). Where the teacher's names
    are known too they must agree, less case, spaces, "_" and "-"; WordNet ids (ImageNet's folder
    names) are compared by number alone, as pretrained networks name their classes in words.
    ``num_images`` is for the message.
    """
    if not class_names:
        return
    if len(class_names) != teacher.num_classes:
        images = f"the {num_images} images" if num_images else "the images"
        raise InputError(
            f"teacher {teacher.spec} has {teacher.num_classes} classes, but {images} have "
            f"{len(class_names)}; give a teacher for these classes, or --no-targets if the folders "
            "are not the teacher's classes"
        )
    if not teacher.class_names or all(_WORDNET_ID.fullmatch(name) for name in class_names):
        return
    for index, (own, theirs) in enumerate(zip(teacher.class_names, class_names, strict=True)):
        if _plain(own) != _plain(theirs):
            raise InputError(
                f"class {index} is {own!r} for teacher {teacher.spec}, but {theirs!r} for the "
                "images; give a teacher for these classes, rename the folders, or --no-targets if "
                "the folders are not the teacher's classes"
            )


_WORDNET_ID = re.compile(r"n\d{8}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _agrees(teacher: Teacher, options: Options) -> None:
    """Refuse options that differ from what a finished teacher states of itself."""
    for key, value in options.model_dump(exclude_none=True).items():
        if getattr(teacher, key, None) != value:
            raise InputError(
                f"teacher {teacher.spec} states its own {key}, {getattr(teacher, key, None)}; "
                f"{key}={value} cannot be applied: make the Teacher with it"
            )


def _logits(output: Any) -> Any:
    """The logits in what a classifier returns: a tensor, a tuple, or an object with ``logits``."""
    if isinstance(output, Mapping):
        return output.get("logits")
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) and output else output
