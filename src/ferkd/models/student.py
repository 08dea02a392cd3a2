"""Students: models to train, by name, and trained ones read back from a run's folder."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ferkd.models.heads import head_of_student, last_linear
from ferkd.models.weights import head_classes, load_strict, read_state_dict
from ferkd.system.errors import InputError
from ferkd.system.plain import read_json
from ferkd.system.settings import Part
from ferkd.system.storage import local_path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

if TYPE_CHECKING:
    from ferkd.models.architectures import Architecture

log = logging.getLogger("ferkd")

Triple = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]

# Heads beside the last, which torchvision trains along: a student is trained by its last alone.
_AUXILIARY = {
    "torchvision/googlenet": ("aux1", "aux2"),
    "torchvision/inception_v3": ("AuxLogits",),
}


class Student(Part):
    """Which model to train: ``timm/NAME`` or ``torchvision/NAME``, and what it starts from.

    ``pretrained`` takes the library's published weights, ``weights`` a file (safetensors, or a
    ``torch.save`` of a state dict) or a run's folder; neither starts from scratch. With
    ``fresh_head`` the last layer starts at zero, though weights have one of as many classes: labels
    that it was trained on are then not among what the student starts from. ``model_args`` go to the
    model's constructor (``drop_path_rate: 0.1``). ``mean`` and ``std`` of each channel, for pixels
    in 0 .. 1, are what the images are normalised by; unset, see :func:`normalisation`.
    """

    name: str = "timm/resnet18"
    pretrained: bool = False
    weights: Path | None = None
    fresh_head: bool = False
    model_args: dict[str, Any] = Field(default_factory=dict)
    mean: Triple | None = None
    std: tuple[Positive, Positive, Positive] | None = None


class ModelConfig(Part):
    """How to build and feed a trained model: the ``config.json`` of a run's folder.

    ``image_size`` in pixels; ``crop_fraction`` is the side of the central evaluation crop as a
    share of the image's shorter side; ``mean`` and ``std`` are for pixels in 0 .. 1.
    """

    model_config = ConfigDict(extra="ignore")  # later releases may add to it

    architecture: str
    num_classes: int = Field(ge=0)  # 0: without a head, it answers with its features
    class_names: tuple[str, ...] = ()
    image_size: int = Field(gt=0)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    exif: bool = True  # whether images are turned by their EXIF orientation, as the labels' were
    model_args: dict[str, Any] = Field(default_factory=dict)


def build_student(config: Student, num_classes: int, *, image_size: int | None = None) -> nn.Module:
    """The model of ``config`` with a head for ``num_classes``, float32, on the CPU; with 0 it has
    none and answers with its features [B, d].

    ``image_size`` (pixels) goes to models whose size is fixed when they are built. Parameters that
    are not read from weights are drawn from torch's global generator. A head whose weights are for
    another number of classes starts at zero (logged): no class is preferred, so the first loss is
    that of chance and the first steps do not undo what the other layers have learnt. GoogLeNet and
    Inception are built without their auxiliary heads. Raises InputError for an unknown name,
    arguments that the model does not take, and weights that do not fit.
    """
    if config.pretrained and config.weights is not None:
        raise InputError(
            "student.pretrained and student.weights are both set; the student starts from one of "
            "them, so leave one out"
        )
    architecture = _architecture(config, image_size)
    headless = num_classes == 0 and not config.name.startswith("timm/")
    try:
        model = architecture.build(1 if headless else num_classes)
    except InputError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        raise InputError(
            f"student {config.name} does not take student.model_args {config.model_args}: "
            f"{_first_line(error.__cause__)}"
        ) from error
    for name in _AUXILIARY.get(config.name, ()):
        setattr(model, name, None)  # as torchvision does where they are not wanted
        cast(Any, model).aux_logits = False
    if headless:
        _behead(model, config.name, image_size or 224)
    if config.pretrained:
        _load(config, model, architecture.pretrained().state_dict(), num_classes)
    if config.weights is not None:
        _load(config, model, read_state_dict(weights_file(config.weights)), num_classes)
    if config.fresh_head and num_classes:
        head, _ = head_of_student(model, image_size or 224, num_classes)
        for parameter in () if head is None else head.parameters():
            nn.init.zeros_(parameter)
    return model


def weights_file(path: Path) -> Path:
    """The weights of a run's folder, which must be finished; any other path as it is."""
    return finished_run(path)[0] if path.is_dir() else path


def _behead(model: nn.Module, name: str, image_size: int) -> None:
    """Take away the linear layer that ends ``model``, so that it answers with its features."""
    image = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        model.eval()
        head, path = last_linear(model, lambda: model(image))
        model.train()
    if head is None:
        raise InputError(
            f"student {name} does not end in a linear layer, so it cannot do without classes; use "
            "another one, or timm/NAME"
        )
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())


def normalisation(config: Student, model: nn.Module) -> tuple[Triple, Triple]:
    """Mean and standard deviation (of pixels in 0 .. 1) that the student is to be fed with.

    Those that ``config`` states; else of the run that its weights come from; else, where it has
    weights, those of its architecture's published ones; else ImageNet's.
    """
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if config.weights is not None and (run := _run_of(config.weights)) is not None:
        mean, std = run.mean, run.std
    elif config.pretrained or config.weights is not None:
        inputs = _architecture(config, None).inputs(model)
        mean, std = inputs.mean, inputs.std
        if config.weights is not None and not (config.mean and config.std):
            log.info(
                "%s: images are normalised by mean %s and std %s, as for the published weights of "
                "%s; student.mean and student.std are for others",
                *(config.weights, mean, std, config.name),
            )
    return config.mean or mean, config.std or std


def _run_of(weights: Path) -> ModelConfig | None:
    """The configuration of the run that weights come from; None where they come from elsewhere."""
    folder = weights if weights.is_dir() else weights.parent
    return read_model_config(folder) if (folder / "config.json").is_file() else None


def check_input(
    model: nn.Module,
    name: str,
    image_size: int,
    num_classes: int,
    *,
    remedy: str = "set data.image_size to the model's size, or student.model_args.img_size where "
    "the model has that argument",
) -> None:
    """Raise InputError unless the model maps an image of ``image_size`` to ``num_classes`` logits.

    Runs one empty image in eval mode, so that a model of fixed size is refused before training.
    """
    training = model.training
    first = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(image).shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"student {name} does not take images of {image_size} pixels "
            f"({_first_line(error)}); {remedy}"
        ) from error
    finally:
        model.train(training)
    if not _fits(shape, 1, num_classes):
        wanted = f"(1, {num_classes}) logits" if num_classes else "one vector of features"
        raise InputError(
            f"student {name} gives an output of shape {shape} for one image instead of {wanted}; "
            "use a classification model"
        )


def _fits(shape: tuple[int, ...], rows: int, num_classes: int) -> bool:
    """Whether a student may answer ``rows`` images so; without classes with vectors."""
    if num_classes:
        return shape == (rows, num_classes)
    return len(shape) == 2 and shape[0] == rows and shape[1] > 0


def check_training(
    model: nn.Module, name: str, image_size: int, num_classes: int, batch_size: int
) -> None:
    """Raise InputError unless the model answers in training mode as in eval mode, with logits.

    Runs a copy on two empty images, or on one where a step has one crop: BatchNorm takes none.
    Neither the model nor torch's generator is changed.
    """
    rows = min(2, batch_size)
    tried = copy.deepcopy(model).train()
    image = torch.zeros(rows, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            answer = tried(image)
        except ValueError as error:
            if rows > 1:
                raise
            raise InputError(
                f"student {name} cannot be trained on one crop a step ({_first_line(error)}); "
                "set data.batch_size to 2 or more, or use a student without BatchNorm"
            ) from error
    if not isinstance(answer, Tensor) or not _fits(tuple(answer.shape), rows, num_classes):
        given = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"student {name} answers with {given} in training mode instead of logits "
            f"[{rows}, {num_classes}]; turn its further outputs off by student.model_args"
        )


def read_model_config(folder: Path) -> ModelConfig:
    """Read ``folder/config.json``. Raises InputError if it is missing or not ours."""
    path = folder / "config.json"
    try:
        return ModelConfig.model_validate(read_json(path, "configuration of a run"))
    except OSError:
        raise InputError(
            f"{folder} holds no config.json; give the folder of a finished ferkd run, or a weights "
            "file that lies beside its config.json"
        ) from None
    except ValueError as error:  # no JSON, or not what it should hold
        raise InputError(
            f"{path} is not the config.json of a ferkd run: {_first_line(error)}"
        ) from error


def finished_run(path: Path) -> tuple[Path, ModelConfig]:
    """The weights file of a run and its config, the weights not yet read; see :func:`load_run`."""
    weights = path / "weights.safetensors" if path.is_dir() else path
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run's folder or a weights file")
    if not weights.is_file():
        raise InputError(
            f"{path} holds no weights.safetensors: the run is not finished; continue it with "
            "ferkd train --resume"
        )
    return weights, read_model_config(weights.parent)


def load_run(run: str | Path, *, headless: bool = False) -> tuple[nn.Module, ModelConfig]:
    """The trained model of a run's folder, or of a weights file beside its config.json; eval mode.

    Raises InputError when the folder is not a finished run or the weights do not fit, and for one
    without classes, unless ``headless`` says that its features will do.
    """
    weights, config = finished_run(local_path(run, "run"))
    if not config.num_classes and not headless:
        raise InputError(
            f"{run} was trained without classes: it answers with features. Judge these by ferkd "
            "evaluate --knn --probe, or fine-tune it on classes by student.weights"
        )
    student = Student(name=config.architecture, model_args=config.model_args)
    model = build_student(student, config.num_classes, image_size=config.image_size)
    load_strict(model, read_state_dict(weights), source=str(weights))
    return model.eval(), config


def _architecture(config: Student, image_size: int | None) -> Architecture:
    # Not at the top: timm takes seconds to import, which reading a recipe should not cost.
    from ferkd.models.architectures import find_architecture

    if not config.name.startswith(("timm/", "torchvision/")):
        raise InputError(
            f"student {config.name!r} is not known; write timm/NAME or torchvision/NAME, for "
            "example timm/resnet18"
        )
    args = dict(config.model_args)
    if config.name in _AUXILIARY:
        args.setdefault("transform_input", True)  # as the published weights, fed as all others
    return find_architecture(config.name, image_size=image_size, model_args=args)


def _load(config: Student, model: nn.Module, state: dict[str, Tensor], classes: int) -> None:
    """Load ``state``; a head that it has for other classes starts at zero."""
    source = str(config.weights or f"weights of {config.name}")
    besides = tuple(f"{head}." for head in _AUXILIARY.get(config.name, ()))
    state = {key: value for key, value in state.items() if not key.startswith(besides)}
    run = None if config.weights is None else _run_of(config.weights)
    if classes and run is not None and not run.num_classes:
        zero = {
            name: torch.zeros_like(value)
            for name, value in model.state_dict().items()
            if name not in state and value.shape[:1] == (classes,)
        }
        log.info("%s was trained without classes; %s start at zero", source, [*zero])
        state = {**zero, **state}
    if not classes:
        foreign = [name for name in state if name not in model.state_dict()]
        if len({name.rpartition(".")[0] for name in foreign}) == 1:
            log.info("%s: the student has no classes, so %s are left out", source, foreign)
            state = {name: value for name, value in state.items() if name not in foreign}
    theirs = head_classes(model, state, classes)
    if theirs != classes:
        own = model.state_dict()
        head = [
            name
            for name, value in own.items()
            if name in state
            and state[name].shape == (theirs, *value.shape[1:])
            and value.shape[:1] == (classes,)
        ]
        # SqueezeNet's head ends in a ReLU, through which nothing is learnt from zero.
        anew = config.name.startswith("torchvision/squeezenet")
        log.info(
            "%s: a head of %d classes, %d wanted; %s start %s",
            *(source, theirs, classes, head, "anew" if anew else "at zero"),
        )
        fresh = {name: own[name] if anew else torch.zeros_like(own[name]) for name in head}
        state = {**state, **fresh}
    load_strict(model, state, source=source)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
