"""Teachers: a frozen network with its own input rule, in evaluation mode whatever happens.

Which networks can be named, and how, stands in :mod:`ferkd.models.specs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from ferkd.models.answers import check_answers, check_network, logits_of
from ferkd.models.architectures import Inputs, imagenet_names, timm_inputs
from ferkd.models.classes import Known, Matching, match_folders
from ferkd.models.specs import UNTRAINED, Found, Options, find, parse_spec
from ferkd.models.weights import fingerprint
from ferkd.system.compute import Normalise, Precision, autocast, resolve_device, resolve_precision
from ferkd.system.errors import InputError

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Teacher:
    """A frozen network in evaluation mode: uint8 crops in, logits out.

    The module is moved to ``device``, to float32 and to channels-last memory, tried on three small
    batches, and fingerprinted. ``precision`` "auto" is fp32 on the CPU and bf16 on CUDA. Raises
    InputError for an unknown device or precision, a module that cannot take the size, output that
    is not finite logits [B,C] (probabilities, features, answers that depend on the other images of
    a batch; see :mod:`ferkd.models.answers`), and another number of classes than ``num_classes`` or
    ``class_names`` say.

    Those who store labels their own way need three lines::

        teacher = ferkd.load_teacher("timm/resnet50")         # or Teacher(module, Inputs(...))
        logits = teacher(crops)                               # uint8 [B,3,S,S] to float32 [B,C]
        labels = ferkd.SoftLabels.from_logits(logits, k=5)    # classes, log_probs and the tail
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
        self.module.float()  # weights in half precision: autocast chooses, where it is exact enough
        self._normalise = Normalise(self.mean, self.std, self.device, reuse=True)
        self.matching: Matching | None = None  # to class folders, where they are not all classes
        self._columns: Tensor | None = None
        check_network(self.module, self.spec)
        self.num_classes = self._own_classes = self._try_out(num_classes)
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
            logits = logits_of(network(pixels), self._width, self.spec)
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
        return self._taken(logits)

    def logits(self, pixels: Tensor, network: Callable[[Tensor], Any] | None = None) -> Tensor:
        """Logits float32 [B,C] for ``pixels`` float [B,3,S,S] normalised by this teacher's mean
        and std, of any side S that its network takes; or the answers of a ``network`` made of its
        modules.

        In evaluation mode, without gradient, and without waiting for the device: whether they are
        finite is for the caller to see.
        """
        self.module.eval()
        with torch.inference_mode(), autocast(self.device, self._dtype):
            answers = (network or self.module)(pixels)
            logits = cast(Tensor, logits_of(answers, self._width, self.spec))
        return self._taken(logits)

    def for_folders(
        self,
        folders: Sequence[str],
        class_map: str | Path | Mapping[str, Any] | None = None,
    ) -> Teacher:
        """This teacher with the class folders ``folders`` as its classes, one by one.

        Itself where they are its classes in its order, and where there are none; else a copy whose
        logits are those of the folders' classes. See
        :func:`ferkd.models.classes.match_folders` for ``class_map`` and what is refused.
        """
        if not folders and class_map is not None:
            raise InputError(
                "a class map is given, but the images have no class folders; leave it out, or give "
                "images in class folders without --no-targets"
            )
        if not folders:
            return self
        return self.matched(match_folders(folders, self._known(), class_map), folders)

    def matched(self, matching: Matching, folders: Sequence[str]) -> Teacher:
        """As :meth:`for_folders`, by a ``matching`` that is known."""
        if matching.columns == tuple(range(self.num_classes)):
            return self
        beyond = [c for c in matching.columns if not 0 <= c < self.num_classes]
        if beyond:
            raise InputError(
                f"class {beyond[0]} is asked of teacher {self.spec}, which has "
                f"{self.num_classes} classes; give the teacher that the classes were matched with"
            )
        made = copy.copy(self)
        made.matching = matching
        made._columns = torch.tensor(matching.columns, device=self.device)
        made.num_classes, made.class_names = len(matching.columns), tuple(folders)
        return made

    def _known(self) -> Known:
        aliases = imagenet_names(self.num_classes)
        if self.class_names and aliases:
            # As many classes as ImageNet, but are they these? Its own words come first, or its ids.
            own = [name.partition(",")[0] for name in self.class_names]
            same = max(sum(a == b for a, b in zip(own, names, strict=True)) for names in aliases)
            aliases = aliases if same > self.num_classes / 2 else ()
        return Known(f"teacher {self.spec}", self.num_classes, self.class_names, aliases)

    def _taken(self, logits: Tensor) -> Tensor:
        # A copy made outside inference mode may take part in a loss that is differentiated.
        if self._columns is None:
            return logits.to(torch.float32, copy=True)
        with torch.inference_mode():
            logits = logits[:, self._columns]
        return logits.to(torch.float32, copy=True)

    @property
    def untrained(self) -> bool:
        """Whether its weights are random because its spec says so, for tests and benchmarks."""
        return self.weights.startswith(UNTRAINED)

    @property
    def _width(self) -> int | None:
        """The classes that its network answers with; None before that is known."""
        return getattr(self, "_own_classes", None)

    def describe(self) -> dict[str, Any]:
        """What a label store records of its teacher: JSON types only, no path of this machine."""
        matched: dict[str, Any] = {}
        if self.matching is not None:
            matching = {"by": self.matching.by, "classes": list(self.matching.columns)}
            matched = {"class_map": matching}
        return {
            "spec": self.spec,
            "weights": self.weights,
            "fingerprint": self.fingerprint,
            "num_classes": self._own_classes,
            **matched,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "precision": self.precision,
            "eval_mode": True,
        }

    def _try_out(self, stated: int | None) -> int:
        size = self.image_size
        noise = torch.Generator().manual_seed(0)
        pair = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=noise)
        if stated is not None:
            self._own_classes = stated  # tells logits from features where both are returned
        try:
            answers = [self(torch.zeros_like(pair)), self(pair), self(pair), self(pair[:1])]
        except InputError:
            raise
        except SystemExit as error:
            raise InputError(
                f"teacher {self.spec} ended the program (exit status {error.code}) when it was "
                "called; take the call of exit out of it"
            ) from error
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"teacher {self.spec} cannot take normalised images [1,3,{size},{size}]: {cause}; "
                "give its own size by ?image_size=N"
            ) from error
        check_answers(answers, self.spec, self.precision)
        return answers[0].shape[1]


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


def _agrees(teacher: Teacher, options: Options) -> None:
    """Refuse options that differ from what a finished teacher states of itself."""
    for key, value in options.model_dump(exclude_none=True).items():
        if getattr(teacher, key, None) != value:
            raise InputError(
                f"teacher {teacher.spec} states its own {key}, {getattr(teacher, key, None)}; "
                f"{key}={value} cannot be applied: make the Teacher with it"
            )
