"""Teacher specs: how a teacher is named in one string, and the network that the name leads to.

A spec is ``TARGET`` or ``TARGET?key=value&key=value``. Targets:

- ``timm/NAME``, ``torchvision/NAME``: pretrained weights, or yours by ``?checkpoint=FILE``;
- ``hf/ORG/NAME``: an image classifier of the Hugging Face Hub, or ``hf/FOLDER``; safetensors only;
- a directory written by ``ferkd train``;
- ``package.module:name``: an ``nn.Module``, a :class:`Teacher`, a function of no argument that
  returns one of them, or a function from normalised images float32 [B,3,S,S] to logits [B,C].
  Importing runs that code: name only code that you trust.

Keys: ``checkpoint`` (safetensors, or ``torch.save`` of tensors), ``num_classes``, ``image_size``,
``mean`` and ``std`` (one number or three, in units of pixel / 255), ``random`` (a seed: untrained
weights, for tests and benchmarks), ``transform_input`` (torchvision's Inception and GoogLeNet: true
for weights that go back to the pretrained ones, which is assumed of a checkpoint). A function's
network is taken with ImageNet's mean and std at 224 px unless it carries timm's ``pretrained_cfg``
or the keys say otherwise.

Options stand after the first ``?`` alone. A checkpoint's path may hold any character where that
file exists; else, and in other values, ``%26`` is "&", ``%3D`` "=", ``%2C`` ",", ``%40`` "@" and
``%25`` "%". ``~`` at the beginning of a folder or a checkpoint is the home folder.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from ferkd.models.architectures import (
    PREFIXES,
    Inputs,
    Three,
    find_architecture,
    nearest,
    timm_inputs,
)
from ferkd.models.student import finished_run, load_run
from ferkd.models.weights import head_classes, load_strict, read_state_dict
from ferkd.system.errors import InputError
from ferkd.system.settings import rule

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_OLD_INCEPTIONS = ("torchvision/inception_v3", "torchvision/googlenet")
UNTRAINED = "random weights"  # how the record of such a teacher's weights begins

log = logging.getLogger("ferkd")


class Options(BaseModel):
    """What may follow the ``?`` of a spec; the module's text says what each key means."""

    # Values come as text, so numbers are read from it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Path | None = None
    num_classes: int | None = Field(default=None, ge=1)
    image_size: int | None = Field(default=None, ge=1)
    mean: Three | None = None
    std: Three | None = None
    random: int | None = None
    transform_input: bool | None = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_or_three(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        numbers = value.split(",")
        return numbers * 3 if len(numbers) == 1 else numbers

    @field_validator("std")
    @classmethod
    def _positive(cls, value: Three | None) -> Three | None:
        if value and min(value) <= 0:
            raise ValueError("must be above 0")
        return value


def parse_spec(spec: str) -> tuple[str, Options]:
    """Split a spec into its target and options; raises InputError for what it cannot mean."""
    target, _, query = spec.partition("?")
    target = _at_home(target)
    if not Path(target).is_dir() and any(names_teacher(m) for m in target.split(",")[1:]):
        raise InputError(f"teacher {spec!r} names several teachers; only ferkd label takes several")
    values: dict[str, str] = {}
    for item in _items(query):
        key, equals, value = item.partition("=")
        if key not in Options.model_fields or not equals or key in values:
            raise InputError(
                f"teacher {spec!r}: {item!r} is no option, or given twice; options are "
                f"KEY=VALUE with KEY one of {', '.join(Options.model_fields)}"
                f"{nearest(key, Options.model_fields)}"
            )
        values[key] = _unescaped(key, value)
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        raise InputError(f"teacher {spec!r}: {_complaint(error)}") from None
    if options.checkpoint and options.random is not None:
        raise InputError(f"teacher {spec!r}: give either checkpoint or random, not both")
    return target, options


def names_teacher(text: str) -> bool:
    """Whether ``text`` begins a spec of its own, as what follows a comma in ``A,B`` does."""
    target = text.partition("?")[0]
    bare = target.rpartition("@")[0] or target
    return (
        target.startswith(PREFIXES)
        or _FUNCTION.fullmatch(bare) is not None
        or any(Path(_at_home(one)).is_dir() for one in {target, bare})
    )


def _items(query: str) -> list[str]:
    """The ``KEY=VALUE`` of a query; a checkpoint reaches as far as a file of that name exists."""
    pieces = query.split("&") if query else []
    items: list[str] = []
    while pieces:
        stop = 1
        if pieces[0].startswith("checkpoint="):
            for end in range(len(pieces), 1, -1):
                path = "&".join(pieces[:end]).removeprefix("checkpoint=")
                if Path(_at_home(path)).is_file():
                    stop = end
                    break
        items.append("&".join(pieces[:stop]))
        del pieces[:stop]
    return items


def _unescaped(key: str, value: str) -> str:
    if key == "checkpoint":
        path = _at_home(value)
        return path if Path(path).is_file() else _at_home(unquote(value))
    return unquote(value)


def _at_home(path: str) -> str:
    """``path`` with a leading ``~`` replaced, also behind ``hf/``."""
    prefix = "hf/" if path.startswith("hf/~") else ""
    rest = path.removeprefix(prefix)
    return prefix + os.path.expanduser(rest) if rest.startswith("~") else path


@dataclass(frozen=True)
class Found:
    """What a spec led to, not yet a teacher: ``network`` is whatever a user's function returned."""

    network: Any
    own_inputs: Callable[[nn.Module], Inputs]
    spec: str  # as the label store records it: folder names without their place
    weights: str = "as given"
    class_names: tuple[str, ...] = ()

    def inputs(self, options: Options) -> Inputs:
        """The inputs that ``options`` state, and the network's own for what they do not."""
        stated = options.model_dump(include={"image_size", "mean", "std"}, exclude_none=True)
        own = Inputs() if len(stated) == 3 else self.own_inputs(self.network)
        return replace(own, **stated)


def find(target: str, options: Options) -> Found:
    """Build what ``target`` names, with its weights; moves torch's global random generator.

    Raises InputError for anything that cannot be found, read or matched.
    """
    if target.startswith(PREFIXES):
        return _named(target, options)
    if options.random is not None:
        raise InputError(f"teacher {target}: random needs one of {', '.join(PREFIXES)}")
    if Path(target).is_dir():
        return _run(Path(target), options)
    if _FUNCTION.fullmatch(target):
        return _imported(target, options)
    raise _unknown(target)


def check_exists(target: str, options: Options) -> None:
    """Raise InputError where what ``target`` names is not there, as far as can be told without
    building a network, running a user's code or asking a hub."""
    if options.checkpoint is not None and not options.checkpoint.is_file():
        raise InputError(
            f"teacher {target}: checkpoint {options.checkpoint} is not a file; give the path of a "
            "weights file"
        )
    if target.startswith(PREFIXES):
        if not target.startswith("hf/"):
            find_architecture(target, image_size=options.image_size)
    elif Path(target).is_dir():
        finished_run(Path(target))
    elif not _FUNCTION.fullmatch(target):
        raise _unknown(target)


def _unknown(target: str) -> InputError:
    return InputError(
        f"teacher {target!r} is no directory of a run, and no spec of the form timm/NAME, "
        "torchvision/NAME, hf/ORG/NAME or package.module:name; a weights file goes behind its "
        "architecture, as in timm/NAME?checkpoint=FILE"
    )


def _named(target: str, options: Options) -> Found:
    state = read_state_dict(options.checkpoint) if options.checkpoint else None
    args = _old_inception(target, options, state)
    architecture = find_architecture(target, image_size=options.image_size, model_args=args)
    class_names: tuple[str, ...] = ()
    if state is not None:
        assert options.checkpoint is not None
        classes = options.num_classes
        if classes is None:
            default = architecture.classes
            classes = head_classes(architecture.build(default), state, default)
        module = architecture.build(classes)
        load_strict(module, state, source=f"checkpoint {options.checkpoint}")
        weights = f"checkpoint {options.checkpoint.name}"
    elif options.random is not None:
        torch.manual_seed(options.random)
        module = architecture.build(options.num_classes or architecture.classes)
        weights = f"{UNTRAINED}, seed {options.random}"
    else:
        module = architecture.pretrained()
        class_names = architecture.class_names(module)
        weights = "pretrained"
    prefix, _, name = target.partition("/")
    spec = f"{prefix}/{Path(name).name}" if Path(name).is_dir() else target
    return Found(module, architecture.inputs, spec, weights, class_names)


def _old_inception(
    target: str, options: Options, state: dict[str, Tensor] | None
) -> dict[str, Any] | None:
    """The constructor's arguments that torchvision's GoogLeNet and Inception need for weights.

    Their pretrained weights expect other inputs (``transform_input``), which a state dict does not
    tell; fine-tuned ones go back to them, as good as always, so this is assumed and said.
    """
    if target not in _OLD_INCEPTIONS:
        if options.transform_input is not None:
            raise InputError(
                f"teacher {target} has no transform_input, which only "
                f"{' and '.join(_OLD_INCEPTIONS)} have; leave it out"
            )
        return None
    if state is None:
        stated = options.transform_input
        return None if stated is None else {"transform_input": stated}
    transform = True if options.transform_input is None else options.transform_input
    if options.transform_input is None:
        log.info(
            "teacher %s: its checkpoint is taken to go back to torchvision's pretrained weights, "
            "whose inputs are transformed; for weights trained from scratch give "
            "transform_input=false",
            target,
        )
    side = any(name.startswith(("AuxLogits.", "aux1.")) for name in state)
    return {"transform_input": transform, "aux_logits": side, "init_weights": False}


def _run(directory: Path, options: Options) -> Found:
    module, config = load_run(directory)
    weights = "weights of the run"
    if options.checkpoint:
        weights = _load_checkpoint(module, options.checkpoint)
    inputs = Inputs(
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        crop_fraction=config.crop_fraction,
    )
    spec = f"run {directory.resolve().name}"
    return Found(module, lambda _: inputs, spec, weights, config.class_names)


def _imported(target: str, options: Options) -> Found:
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())  # as for `python -m`: a file of the user's is importable
    try:
        namespace = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"teacher {target}: {module_name} cannot be imported ({error}); install it, or run "
            "where its file lies"
        ) from error
    except SystemExit as error:
        raise _exited(target, error) from error
    finally:
        sys.path.remove(os.getcwd())
    made = getattr(namespace, name, None)
    if made is None:
        raise InputError(
            f"teacher {target}: {module_name} has no {name}{nearest(name, dir(namespace))}"
        )
    if inspect.isfunction(made) and _arguments(made) == 1:
        made = _Function(made)
    elif inspect.isfunction(made) or inspect.isclass(made):
        try:
            made = made()
        except SystemExit as error:
            raise _exited(target, error) from error
    weights = "as given"
    if options.checkpoint and isinstance(made, nn.Module):
        weights = _load_checkpoint(made, options.checkpoint)
    return Found(made, timm_inputs, target, weights)


def _exited(target: str, error: SystemExit) -> InputError:
    return InputError(
        f"teacher {target} ended the program (exit status {error.code}) instead of giving a "
        "network; take the call of exit out of its module, or put it under if __name__ == "
        "'__main__'"
    )


def _load_checkpoint(module: nn.Module, file: Path) -> str:
    load_strict(module, read_state_dict(file), source=f"checkpoint {file}")
    return f"checkpoint {file.name}"


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments a call of ``function`` must at least give."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


class _Function(nn.Module):
    """A function from images to logits, whose source text takes part in the fingerprint."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        source = bytearray(inspect.getsource(function).encode())
        self.register_buffer("source", torch.frombuffer(source, dtype=torch.uint8).clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _complaint(error: ValidationError) -> str:
    """The first mistake in one line: where, what was given, and the rule."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}={first['input']}: {rule(first['msg'])}"
