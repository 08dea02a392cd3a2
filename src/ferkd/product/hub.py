"""Pushing to a repository of the Hugging Face Hub: one commit, so that whoever looks sees all of
it or nothing. Reading goes by fsspec, for which huggingface_hub brings ``hf://``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd.product.parcel import LISTING, MOST_LISTING, Parcel, unpack
from ferkd.store import manifest as manifests
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.storage import join

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_URL = re.compile(
    rf"hf://(?:(?P<kind>models|datasets)/)?(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^/@]+))?"
    r"(?P<folder>(?:/[^/]+)*)/?"
)
_ADVICE = "check the name and the network, and log in with: hf auth login"


@dataclass(frozen=True)
class Repository:
    """A place on the Hub: ``folder`` ends in a slash, or is empty for the repository itself."""

    name: str
    kind: str  # model or dataset
    revision: str | None
    folder: str


def is_hub(url: str) -> bool:
    """Whether a URL is of the Hub."""
    return url.startswith("hf://")


def parse(url: str) -> Repository:
    """The parts of ``hf://[datasets/]OWNER/NAME[@REVISION][/FOLDER]``. Raises InputError."""
    found = _URL.fullmatch(url)
    parts = (found["folder"] if found else "").strip("/").split("/")
    if found is None or any(part in (".", "..") for part in parts):
        raise InputError(
            f"{url} is no place on the Hub; write hf://OWNER/NAME or hf://datasets/OWNER/NAME, "
            "and a folder in it where you like"
        )
    folder = found["folder"].strip("/")
    return Repository(
        name=found["repo"],
        kind="dataset" if found["kind"] == "datasets" else "model",
        revision=found["revision"],
        folder=f"{folder}/" if folder else "",
    )


def commit(parcel: Parcel, folder: Path, url: str, *, overwrite: bool, public: bool) -> None:
    """Send a parcel in one commit; nothing where the very same is there already.

    Raises InputError where the place holds other files, without ``overwrite``, and for whatever
    the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    place, api = parse(url), HfApi()
    with storage.clear_errors(f"{url} cannot be written", _ADVICE):
        try:
            api.create_repo(place.name, repo_type=place.kind, private=not public, exist_ok=True)
            head: Any = api.repo_info(place.name, repo_type=place.kind, revision=place.revision)
        except FileNotFoundError as error:
            raise InputError(f"{url} cannot be written: {error}; {_ADVICE}") from None
    most = MOST_LISTING if parcel.listing == LISTING else storage.SMALL_FILE
    old = storage.read(join(url, parcel.listing), most)
    if old == parcel.data:
        return
    held = {file.rfilename for file in head.siblings or ()}
    ours = {f"{place.folder}{name}" for name in _names(parcel)}
    if held & ours and not overwrite:
        what = "another one" if old is not None else f"a file {min(held & ours)}"
        raise InputError(f"{url} holds {what} already; replace it with --overwrite")
    stale = {f"{place.folder}{name}" for name in _former(parcel, old)} - ours
    operations: list[Any] = [
        *(
            CommitOperationAdd(f"{place.folder}{file.name}", str(folder / file.name))
            for file in parcel.files
        ),
        CommitOperationAdd(f"{place.folder}{parcel.listing}", parcel.data),
        *(CommitOperationDelete(name) for name in sorted(stale & held)),
    ]
    with storage.clear_errors(f"{url} cannot be written", f"repeat it; {_ADVICE}"):
        api.create_commit(
            place.name,
            operations,
            commit_message=f"ferkd push: {parcel.kind}",
            repo_type=place.kind,
            revision=place.revision,
            parent_commit=head.sha,  # refused where another commit came between
        )


def _names(parcel: Parcel) -> set[str]:
    return {parcel.listing, *(file.name for file in parcel.files)}


def _former(parcel: Parcel, old: bytes | None) -> set[str]:
    """The files of what is replaced; none of a listing that cannot be read, whose files stay."""
    if old is None:
        return set()
    try:
        if parcel.listing == LISTING:
            return {file.name for file in unpack(old, "the older push").files}
        return {file.name for file in manifests.from_bytes(old, "the older push").files}
    except InputError:
        return set()
