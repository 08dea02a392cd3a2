"""Reading the label files of FKD's authors as data: nothing that is pickled in them is executed.

Such a file is ``torch.save([coords, flips, labels])``: a pickle and raw storages, in a zip archive
or one after the other (the format before PyTorch 1.6). The authors' own files hold NumPy arrays,
which ``torch.load(weights_only=True)`` refuses, and allowing NumPy's reconstruction there would
let a file set up arrays as it likes. So the pickle's instructions are followed here on plain data:
a name stays a name, a call becomes a :class:`_Call` that is never made, and what the tree says of
three arrays is then checked and built.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferkd.system.errors import InputError
from ferkd.system.files import read_plain

MAX_BYTES = 1 << 30  # 500 full softmaxes over 65,536 classes are 131 MB

_MAGIC = 0x1950A86A20F9469CFC6C  # begins what torch.save wrote before its zip format
_REBUILD = "torch._utils._rebuild_tensor_v2"
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_STORAGES = {
    "torch.HalfStorage": "f2",
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.BoolStorage": "b1",
    "torch.ByteStorage": "u1",
    "torch.ShortStorage": "i2",
    "torch.IntStorage": "i4",
    "torch.LongStorage": "i8",
}
_NAMES = frozenset(
    (
        _REBUILD,
        *_RECONSTRUCT,
        *_STORAGES,
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
        "collections.OrderedDict",
    )
)


class DamagedLabels(InputError):
    """A label file that cannot be used. The message is the reason alone: the caller knows which
    file it is."""


class LabelFile(NamedTuple):
    """One image's crops: coords [N, 4] as (top / H, left / W, height / H, width / W), flips bool
    [N], and labels [N], [N, 2], [N, C] or [N, 2, k] as the file holds them."""

    coords: NDArray[np.floating]
    flips: NDArray[np.bool_]
    labels: NDArray[Any]


def read_label_file(path: Path) -> LabelFile:
    """Read one label file without running anything in it.

    Raises DamagedLabels when it is damaged or no such file, and InputError when its pickle names
    anything else than arrays: that is no accident, so an import stops there.
    """
    try:
        data = read_plain(path, MAX_BYTES)
    except OSError as error:
        raise DamagedLabels(f"it cannot be read: {error.strerror}") from None
    try:
        arrays = _zipped(data) if data.startswith(b"PK") else _legacy(data)
        return _checked(*arrays)
    except _Refused as refused:
        raise InputError(
            f"{path} is refused: its pickle asks for {refused}, which no label file needs. Nothing "
            "of it was run; do not open it with pickle or torch.load, and remove it"
        ) from None
    except (DamagedLabels, MemoryError):
        raise
    except Exception as error:  # a walk over damaged data meets nearly every type
        detail = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        raise DamagedLabels(f"it is damaged or not a file of torch.save{detail}") from None


def _checked(coords: NDArray[Any], flips: NDArray[Any], labels: NDArray[Any]) -> LabelFile:
    crops = len(coords) if coords.ndim else 0
    if crops < 1 or coords.shape != (crops, 4) or coords.dtype.kind != "f":
        raise DamagedLabels(f"its coordinates are {coords.dtype} {coords.shape}, not float [N, 4]")
    if flips.shape != (crops,) or flips.dtype.kind not in "bu" or flips.max() > 1:
        raise DamagedLabels(f"its flips are {flips.dtype} {flips.shape}, not bool [{crops}]")
    if not 1 <= labels.ndim <= 3 or len(labels) != crops or labels.dtype.kind not in "fi":
        raise DamagedLabels(f"its labels are {labels.dtype} {labels.shape}, not [{crops}, ...]")
    return LabelFile(coords, flips.astype(bool), labels)


class _Refused(Exception):
    """What a pickle asked for that is not on the list."""


@dataclass
class _Call:
    """A call that a pickle asks for, kept as data; ``state`` is what it would be given after."""

    function: Any
    args: Any
    state: Any = None


class _Storage(NamedTuple):
    """A reference to raw numbers outside of the pickle."""

    key: str
    dtype: np.dtype[Any]
    numbers: int


Fetch = Callable[[_Storage], bytes]


def _zipped(data: bytes) -> list[NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise DamagedLabels("its members are compressed, which torch.save never does")
        (pickled,) = (name for name in members if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"  # not written before PyTorch 2.1
        if order in members and archive.read(order) != b"little":
            raise DamagedLabels("it was written on a big-endian machine")
        tree, _ = _parse(io.BytesIO(archive.read(pickled)))
        return _arrays(tree, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _legacy(data: bytes) -> list[NDArray[Any]]:
    file = io.BytesIO(data)
    magic, _ = _parse(file)
    if magic != _MAGIC:
        raise DamagedLabels("it is not a file of torch.save")
    _parse(file)  # the protocol's version
    _parse(file)  # the writing system's integer sizes; storages are little-endian on all
    tree, storages = _parse(file)
    keys, _ = _parse(file)
    raw: dict[str, bytes] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little", signed=True)
        if not 0 <= count <= len(data):
            raise DamagedLabels("it is truncated")
        raw[key] = file.read(count * storages[key].dtype.itemsize)
    return _arrays(tree, lambda storage: raw[storage.key])


def _parse(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The tree that one pickle describes, and the storages that it refers to, by key.

    Follows the instructions that torch.save's pickles consist of; raises _Refused at any other,
    and at a name that is not on the list.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def to_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    value: Any
    for opcode, value, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                below.append(stack)
                stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BINUNICODE8":
                stack.append(value)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = tuple(to_mark())
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                listed = to_mark()
                stack[-1].extend(listed)
            case "SETITEMS":
                to_mark()  # only the writing system's description is a dictionary: not needed
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_name(value.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [_name(".".join(stack[-2:]))]
            case "BINPERSID":
                storage = _storage(stack.pop())
                storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE":
                args = stack.pop()
                stack.append(_Call(stack.pop(), args))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case other:
                raise _Refused(f"the instruction {other}")
    return stack.pop(), storages


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, never looked up."""

    text: str


def _name(text: str) -> _Name:
    if text not in _NAMES:
        raise _Refused(repr(text))
    return _Name(text)


def _storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Name(text), str(key), str(), int(count), *rest) if rest in ([], [None]):
            return _Storage(key, np.dtype("<" + _STORAGES[text]), count)
        case _:
            raise DamagedLabels("it refers to numbers in a way that torch.save does not")


def _arrays(tree: Any, fetch: Fetch) -> list[NDArray[Any]]:
    match tree:
        case [coords, flips, labels]:
            return [_array(node, fetch) for node in (coords, flips, labels)]
        case _:
            raise DamagedLabels("it does not hold three arrays: coordinates, flips, labels")


def _array(node: Any, fetch: Fetch) -> NDArray[Any]:
    match node:
        case _Call(
            _Name(name), (_Storage() as storage, int(start), tuple(size), tuple(stride), *_)
        ):
            if name == _REBUILD and len(size) == len(stride) <= 3:
                return _tensor(fetch(storage), storage, start, size, stride)
        case _Call(_Name(name), _, (int(), tuple(size), dtype, bool(fortran), content)):
            if name in _RECONSTRUCT and len(size) <= 3:
                flat = np.frombuffer(_content(content), _dtype(dtype))
                return flat.reshape(size, order="F" if fortran else "C")
    raise DamagedLabels("it holds something else than arrays of numbers")


def _tensor(
    raw: bytes, storage: _Storage, start: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> NDArray[Any]:
    flat = np.frombuffer(raw, storage.dtype)
    if len(flat) != storage.numbers or min((start, *size, *stride)) < 0:
        raise DamagedLabels("it is truncated")
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # More elements than numbers would let a small file ask for any amount of memory.
    if math.prod(size) == 0 or last >= len(flat) or math.prod(size) > len(flat):
        raise DamagedLabels("it holds an array that reaches outside of its numbers")
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[start:], size, steps, writeable=False).copy()


def _dtype(node: Any) -> np.dtype[Any]:
    match node:
        case _Call(_Name("numpy.dtype"), (str(code), *_), (int(), str(order), *_)):
            if code in _STORAGES.values() and order in ("<", ">", "|"):
                return np.dtype(order + code)
    raise DamagedLabels("it holds an array of an unexpected type")


def _content(node: Any) -> bytes:
    match node:
        case bytes():
            return node
        case _Call(_Name("_codecs.encode"), (str(text), "latin1")):
            return text.encode("latin1")  # how pickles before protocol 3 hold bytes
    raise DamagedLabels("it holds an array without content")
