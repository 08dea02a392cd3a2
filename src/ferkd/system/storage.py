"""Files elsewhere, through fsspec: URLs, their secrets, and errors in words."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from platformdirs import user_cache_path

from ferkd.system.errors import InputError

SMALL_FILE = 256 << 20  # a manifest that names a million images left out has a quarter of that


class TooLarge(Exception):
    """A file elsewhere has more bytes than it may have."""


# A password may hold a slash or an at sign, so everything up to the last "@" of a word goes.
_USER = re.compile(r"://([^\s/@:]*:\S*|[^\s/@]*)@")
_QUERY = re.compile(r"([?&;][^\s=&;?]+=)([^\s&;'\"]+)")


def is_url(path: object) -> bool:
    """Whether a path is an fsspec URL (`s3://bucket/folder`) and not a local path."""
    return "://" in str(path)


def masked(text: object, url: object = "") -> str:
    """A URL, or a text with URLs in it, without user names, passwords and query values.

    ``url``: what is secret in it goes from the text too, wherever it stands, as in the message of
    a library that took the URL apart.
    """
    hidden = _QUERY.sub(r"\1***", _USER.sub("://***@", str(text)))
    for secret in _secrets(str(url)):
        hidden = hidden.replace(secret, "***")
    return hidden


def _secrets(url: str) -> list[str]:
    """User names, passwords and query values of a URL, as written and as meant; longest first."""
    found = {user for user in _USER.findall(url)} | {value for _, value in _QUERY.findall(url)}
    found |= {part for user in found for part in user.split(":", 1)}
    found |= {unquote(secret) for secret in found}
    return sorted((s for s in found if len(s) > 2), key=lambda s: (-len(s), s))


def join(url: str, name: str) -> str:
    """The URL of the file ``name`` in the folder ``url``; an http query stays at the end."""
    query = ""
    if url.startswith(("http://", "https://")):
        url, mark, rest = url.partition("?")
        query = mark + rest
    return f"{url.rstrip('/')}/{name}{query}"


def open_url(url: str) -> tuple[Any, str]:
    """(fsspec file system, path on it) of a URL; raises InputError.

    fsspec keeps its file systems by process and thread, so this is cheap to repeat and right
    after a fork.
    """
    from fsspec.core import url_to_fs  # here, so that local work does not pay for the import

    with clear_errors(f"{url} cannot be opened"):
        try:
            file_system, path = url_to_fs(url)
        except ImportError as error:
            extra = "; pip install 'ferkd[s3]'" if "s3fs" in str(error) else ""
            raise InputError(
                f"{masked(url)} cannot be opened: {masked(error, url)}{extra}"
            ) from None
    return file_system, path


@contextmanager
def clear_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turn any error of a remote file system into an InputError, "what: reason; remedy".

    The libraries behind fsspec raise errors of dozens of unrelated classes; FileNotFoundError
    alone passes through, for callers to whom absence says something.
    """
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:
        advice = f"; {remedy}" if remedy else ""
        raise InputError(f"{masked(what)}: {reason(error, what)}{advice}") from None


def reason(error: BaseException, url: str) -> str:
    """What an error of a remote file system says about a URL, without the URL's secrets."""
    if isinstance(error, PermissionError):
        return f"permission denied ({masked(error, url)}); check the credentials"
    return f"{type(error).__name__}: {masked(error, url)}"


def as_local(path: str | Path) -> Path | None:
    """The local path that a user means, absolute; None for a URL of somewhere else.

    Raises InputError for a URL that went through `pathlib`, which eats one of its slashes.
    """
    if isinstance(path, str) and is_url(path):
        file_system, root = open_url(path)
        names = file_system.protocol
        return Path(root) if "file" in ((names,) if isinstance(names, str) else names) else None
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]", str(path)):  # a drive has one letter
        raise InputError(f"{masked(path)} is a URL that was made a path; give it as text (str)")
    return _resolved(path)


def local_path(path: str | Path, what: str = "folder") -> Path:
    """The local path that a user means, absolute and with ~ expanded, so that a later change of
    the working directory does not move it.

    Raises InputError for a URL of somewhere else, and for a name that is no UTF-8: the files that
    name it could not be written after all work is done.
    """
    local = as_local(path)
    if local is None:
        raise InputError(f"{masked(path)} is a URL; give a local {what}")
    return local


def _resolved(path: str | Path) -> Path:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{text!a} is no valid UTF-8, in which files are named here; rename it, or give "
            "another path"
        ) from None
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError:  # ~NAME
        raise InputError(
            f"{text}: there is no user of that name; write ./{text} for a path that starts with ~"
        ) from None


def read(url: str, limit: int = SMALL_FILE) -> bytes | None:
    """The bytes of a file of at most ``limit``; None where there is none. Raises InputError."""
    with (
        clear_errors(f"{url} cannot be read", "check the URL, the network and the credentials"),
        tempfile.TemporaryDirectory(prefix="ferkd-read-") as folder,
    ):
        target = Path(folder) / "file"
        try:
            get(url, target, limit)
        except FileNotFoundError:
            return None
        return target.read_bytes() if target.is_file() else None  # a folder of that name is none


def get(url: str, target: Path, limit: int) -> None:
    """Copy a file to the local path ``target``, which must be free, and stop past ``limit`` bytes:
    a server may send for ever, whatever it told of the size.

    Raises what the file system raises, TooLarge past the limit.
    """
    file_system, path = open_url(url)
    file_system.get_file(path, str(target), callback=_limited(limit))


def _limited(limit: int) -> Any:
    """An fsspec callback that ends a transfer of more than ``limit`` bytes."""
    from fsspec.callbacks import Callback

    class Limited(Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > limit:
                raise TooLarge(f"it has more than {limit} bytes")

    return Limited()


def info(url: str) -> dict[str, Any] | None:
    """What the file system tells of a file, afresh; None where there is none. InputError."""
    file_system, path = open_url(url)
    with clear_errors(f"{url} cannot be looked up"):
        try:
            file_system.invalidate_cache()
            told: dict[str, Any] = file_system.info(path)
        except FileNotFoundError:
            return None
    return told


def write(url: str, data: bytes) -> None:
    """Write a small file whole. Raises InputError."""
    file_system, path = open_url(url)
    with clear_errors(f"{url} cannot be written", "try again"):
        make_parent(file_system, path)
        try:
            file_system.pipe_file(path, data)
        except FileNotFoundError as error:  # no such bucket
            raise InputError(f"{masked(url)} cannot be written: {masked(error, url)}") from None


def remove(url: str) -> None:
    """Remove a file that may be there. Raises InputError."""
    file_system, path = open_url(url)
    with clear_errors(f"{url} cannot be removed", "try again"):
        try:
            file_system.rm_file(path)
        except FileNotFoundError:
            return


def make_parent(file_system: Any, path: str) -> None:
    """Make the folders above a file. Not a bucket, which a typing error would then create:
    where there are buckets, paths begin with their name and not with a slash."""
    if path.startswith("/"):
        file_system.makedirs(path.rpartition("/")[0], exist_ok=True)


def cache_folder() -> Path:
    """Where ferkd keeps what may be deleted and made again: FERKD_CACHE, else the user's."""
    return Path(os.environ.get("FERKD_CACHE") or user_cache())


def user_cache() -> Path:
    """ferkd's folder where this system's users expect what may be deleted and made again."""
    return user_cache_path("ferkd", appauthor=False, opinion=False)
