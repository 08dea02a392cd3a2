"""`wds:PATTERN`: images in the tar files of WebDataset, by an index that is made once."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferkd.images.kinds import extension, extensions
from ferkd.images.sources.files import Files
from ferkd.images.sources.folder import UNLABELLED
from ferkd.images.sources.options import numbered, split_options
from ferkd.images.sources.source import check_ids, check_look_alike
from ferkd.system.errors import InputError
from ferkd.system.files import write_whole
from ferkd.system.storage import cache_folder, clear_errors, masked

_OPTIONS = ("image", "classes")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000
_LABEL_BYTES = 4096
_BLOCK = 512  # of a tar file
_VERSION = 1  # of the index; another one is made anew


class Member(NamedTuple):
    """A file in a shard: its name, and where its bytes are; ``text`` is that of a label."""

    name: str
    offset: int
    size: int
    text: str | None = None


@dataclass(frozen=True)
class Sample:
    """One image: its member's name is its id."""

    id: str
    shard: int
    offset: int
    size: int
    label: str | None


class ShardImages:
    """The images of ``wds:PATTERN[?image=EXT&classes=FILE]``, in plain tar files.

    PATTERN: a path or URL in which {000..127} stands for numbers. A sample's members stand
    together and share their names up to the first dot, as WebDataset has it; names whose other
    parts differ, each with its image, are samples of their own. Where a sample has several images,
    the one without a second dot counts, or ``image`` names its ending. The label is the member
    KEY.cls: a class name, or a number that counts the lines of the file ``classes``; without such
    members it is the first folder of the names, where there is one. Ids are the members' names.
    The index of each shard is kept in the user's cache folder, until the shard changes. Raises
    InputError: a shard that is truncated, compressed or damaged, and an id that stands there twice.
    """

    def __init__(self, spec: str, targets: bool = True) -> None:
        pattern, options = split_options(spec.removeprefix("wds:"), _OPTIONS)
        self.name = f"wds:{masked(pattern)}"
        names = _expanded(pattern, self.name)
        folder = names[0].rpartition("/")[0] or ("/" if names[0].startswith("/") else ".")
        self._files = Files(folder)
        self._shards = tuple(name.rpartition("/")[2] for name in names)
        if any(name.rpartition("/")[0] != names[0].rpartition("/")[0] for name in names):
            raise InputError(f"{self.name}: a range may stand in the shards' names alone")
        samples: list[Sample] = []
        for number, shard in enumerate(self._shards):
            members = _index(self._files, shard)
            samples += _samples(members, number, options.get("image"), f"{self.name}: {shard}")
        samples.sort(key=lambda sample: sample.id)
        self._refuse_duplicates(samples)
        if not samples:
            raise InputError(f"{self.name} holds no images")
        self.ids: tuple[str, ...] = tuple(sample.id for sample in samples)
        check_ids(self.ids, self.name)
        self._where = np.array([(s.shard, s.offset, s.size) for s in samples], np.int64)
        self.class_names: tuple[str, ...] = ()
        self.targets = np.full(len(samples), -1, np.int32)
        if targets:
            self.targets, self.class_names = _labels(samples, options.get("classes"), self.name)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if they are out of reach."""
        shard, offset, size = (int(value) for value in self._where[index])
        try:
            data = self._files.read(self._shards[shard], offset, offset + size)
        except InputError as error:
            raise InputError(f"{self.ids[index]}: {error}") from None
        if len(data) != size:
            raise InputError(
                f"{self.ids[index]}: the shard {self._shards[shard]} of {self.name} has changed "
                "since it was opened. Start again"
            )
        return data

    def _refuse_duplicates(self, samples: list[Sample]) -> None:
        for first, second in pairwise(samples):
            if first.id == second.id:
                shards = sorted({self._shards[first.shard], self._shards[second.shard]})
                raise InputError(
                    f"{self.name}: {first.id} stands there twice, in {' and '.join(shards)}. Write "
                    "the shards with a key of its own for each sample"
                )


def _expanded(pattern: str, name: str) -> list[str]:
    """The shards' names: every {000..127} counts, with as many digits as its first number."""
    found = _RANGE.search(pattern)
    if found is None:
        if "{" in pattern or "*" in pattern:
            raise InputError(f"{name}: write the numbers of the shards as {{000..127}}")
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= _MOST_SHARDS:
        raise InputError(
            f"{name}: {{{first}..{last}}} are {len(numbers)} numbers; give 1 to {_MOST_SHARDS:,}"
        )
    before, after = pattern[: found.start()], pattern[found.end() :]
    rest = _expanded(after, name) if _RANGE.search(after) else [after]
    return [f"{before}{n:0{len(first)}d}{end}" for n in numbers for end in rest]


def _index(files: Files, shard: str) -> list[Member]:
    """The members of a shard, from the cache or by reading its headers."""
    where = f"{files.name.rstrip('/')}/{shard}"
    size, state = _state(files, shard, where)
    told = f"{_VERSION} {files.root} {files.remote} {shard} {state}"
    cache = cache_folder()
    kept = cache / "shards" / f"{hashlib.sha256(told.encode()).hexdigest()}.json"
    try:
        return [Member(*row) for row in json.loads(kept.read_bytes())]
    except (OSError, ValueError, TypeError):
        pass  # not made yet, or damaged
    with (
        clear_errors(f"the shard {where} cannot be read", "check the network and the file"),
        _opened(files, shard) as file,
    ):
        members = list(_members(file, size, where))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(members, ensure_ascii=True).encode())
    except OSError:
        pass  # a cache that cannot be written costs time alone
    return members


def _state(files: Files, shard: str, where: str) -> tuple[int, str]:
    """The size of a shard, and what changes when it does."""
    if not files.remote:
        path = Path(files.root, shard)
        if not path.is_file():
            raise InputError(f"{where}: there is no such shard. Check the pattern")
        found = path.stat()
        return found.st_size, f"{found.st_size} {found.st_mtime_ns}"
    file_system, root = files.file_system()
    try:
        with clear_errors(f"{where} cannot be looked up", "check the URL and the network"):
            info = file_system.info(f"{root}/{shard}")
    except FileNotFoundError:
        raise InputError(f"{where}: there is no such shard. Check the pattern") from None
    if info.get("size") is None:
        raise InputError(f"{where}: its server does not tell its size. Copy the shards first")
    told = {key: str(info.get(key)) for key in ("ETag", "LastModified", "mtime", "created")}
    return int(info["size"]), f"{info['size']} {sorted(told.items())}"


def _opened(files: Files, shard: str) -> Any:
    if not files.remote:
        return open(Path(files.root, shard), "rb")
    file_system, root = files.file_system()
    return file_system.open(f"{root}/{shard}", "rb")


def _members(file: Any, size: int, where: str) -> Iterator[Member]:
    """The regular files of a tar file; raises InputError where it ends early."""
    again = f"the shard {where} is truncated; fetch or write it again"
    magic = file.read(6)
    file.seek(0)
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise InputError(f"the shard {where} is compressed; unpack it to a plain tar file")
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                end = archive.offset  # where the next header stands
                archive.members.clear()  # type: ignore[attr-defined]  # else all stay in memory
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise InputError(again)
                text = None
                if extension(member.name) == ".cls" and member.size <= _LABEL_BYTES:
                    here = file.tell()
                    file.seek(member.offset_data)
                    text = file.read(member.size).decode("utf-8", "replace").strip()
                    file.seek(here)
                name = member.name.removeprefix("./")
                yield Member(name, member.offset_data, member.size, text)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if "truncated" in str(error) or "unexpected end" in str(error):
            raise InputError(again) from None
        raise InputError(f"the shard {where} is damaged or no tar file ({error})") from None
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):  # a tar file ends in blocks of zeros
        raise InputError(again)


def _samples(members: list[Member], shard: int, wanted: str | None, where: str) -> Iterator[Sample]:
    """The images of a shard with their labels."""
    kinds = extensions()
    labels = {m.name[: -len(".cls")]: m.text for m in members if m.text is not None}
    groups: defaultdict[str, list[Member]] = defaultdict(list)
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        hidden = base.startswith(".") or "__MACOSX" in folder
        if extension(base) in kinds and not hidden:
            groups[f"{folder}{slash}{base.partition('.')[0]}"].append(member)
    for key, images in groups.items():
        for image in _chosen(key, images, wanted, where):
            stem = image.name[: -len(extension(image.name))]
            label = labels.get(stem, labels.get(key))
            yield Sample(image.name, shard, image.offset, image.size, label)


def _chosen(key: str, images: list[Member], wanted: str | None, where: str) -> list[Member]:
    """The image of a sample; several of them where the first dot belongs to their keys."""
    if wanted is not None:
        ending = "." + wanted.lstrip(".").lower()
        return [image for image in images if image.name.lower().endswith(ending)]
    if len({image.name for image in images}) == 1:
        return images  # the same name twice is found out later
    simple = [image for image in images if "." not in image.name[len(key) + 1 :]]
    if len({image.name for image in simple}) > 1:
        raise InputError(
            f"{where}: the sample {key} has several images "
            f"({', '.join(image.name for image in simple[:3])}); choose one by ?image=EXT"
        )
    return simple or images


def _labels(
    samples: list[Sample], classes: str | None, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    labels = [sample.label for sample in samples]
    if all(label is None for label in labels) and classes is None:
        folders = [sample.id.rpartition("/")[0].partition("/")[0] for sample in samples]
        known = [None if folder in ("", UNLABELLED) else folder for folder in folders]
        return numbered(known, name)
    if classes is None and not all(label is None or _is_number(label) for label in labels):
        return numbered(labels, name)
    names = _class_names(classes, name) if classes is not None else None
    numbers = [-1 if label is None else _number(label, names, name) for label in labels]
    if names is None:
        names = tuple(str(number) for number in range(max(numbers) + 1))
    return np.array(numbers, np.int32), names


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and str(int(label)) == label


def _number(label: str, names: tuple[str, ...] | None, name: str) -> int:
    if _is_number(label) and int(label) < (1 << 24 if names is None else len(names)):
        return int(label)
    if names is not None and label in names:
        return names.index(label)
    raise InputError(f"{name}: the label {label!r} is none of the classes. Check ?classes=FILE")


def _class_names(file: str, name: str) -> tuple[str, ...]:
    try:
        lines = io.StringIO(Path(file).expanduser().read_text(encoding="utf-8-sig")).readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: the class names in {file} cannot be read ({error})") from None
    names = tuple(line.rstrip("\r\n") for line in lines if line.strip())
    if len(set(names)) < len(names):
        raise InputError(f"{name}: {file} names a class twice")
    check_look_alike(names, name)
    return names
