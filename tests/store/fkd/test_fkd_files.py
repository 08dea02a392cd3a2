"""Label files of FKD's authors are read without running them, and refused by name."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fkd_files import CROPS, FORMATS, as_fkd, saved, some_probs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferkd.store.fkd.files import DamagedLabels, read_label_file
from ferkd.system.errors import InputError


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tensors", [True, False])
@given(st.integers(1, 5), st.sampled_from([(), (2,), (7,), (2, 3)]), st.integers(0, 99))
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)
def test_arrays_and_tensors_are_read_as_they_were_saved(
    tmp_path, container, dtype, tensors, crops, shape, seed
):
    rng = np.random.default_rng(seed)
    state = [
        rng.random((crops, 4)).astype(dtype),
        rng.random(crops) < 0.5,
        rng.random((crops, *shape)).astype(dtype),
    ]
    path = tmp_path / "x.tar"
    saved(path, [torch.from_numpy(a) for a in state] if tensors else state, container)
    read = read_label_file(path)
    for ours, theirs in zip(read, state, strict=True):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()


@pytest.mark.parametrize("container", FORMATS)
def test_views_column_order_and_whole_numbers_are_read(tmp_path, container):
    """A slice of a stack shares its storage; NumPy keeps the column order of a transpose."""
    stack = torch.rand(4, 3, 5)
    labels = torch.arange(30).reshape(3, 10)[:, ::3]
    path = tmp_path / "x.tar"
    flips = torch.tensor([1, 0, 1], dtype=torch.uint8)
    saved(path, [np.asfortranarray(stack[0, :, :4].numpy()), flips, labels], container)
    read = read_label_file(path)
    assert (read.coords == stack[0, :, :4].numpy()).all() and read.flips.tolist() == [1, 0, 1]
    assert read.labels.tolist() == [[0, 3, 6, 9], [10, 13, 16, 19], [20, 23, 26, 29]]
    saved(path, (stack[:, 1, 1:].permute(1, 0)[:3], flips, labels[:, 0]), container)
    read = read_label_file(path)
    assert (read.coords == stack[:, 1, 1:].permute(1, 0)[:3].numpy()).all()
    assert read.labels.tolist() == [0, 10, 20]


def test_files_written_with_numpy_1_are_read(tmp_path):
    """NumPy 2 renamed the module that pickled arrays name; the authors' files are older."""
    state, _ = as_fkd("x", 40, 30, some_probs(CROPS, 3), 2)
    path = saved(tmp_path / "x.tar", state, "legacy")
    old = path.read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert len(old) == len(path.read_bytes()) - 1
    path.write_bytes(old)
    assert all((a == b).all() for a, b in zip(read_label_file(path), state, strict=True))


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("hidden", ["in place of the labels", "behind the labels", "as the file"])
def test_a_malicious_file_is_refused_and_nothing_runs(fkd, tmp_path, container, hidden):
    marker = tmp_path / "ran"
    path = fkd.file("b/2.png")
    state = [torch.zeros(CROPS, 4), torch.zeros(CROPS).bool(), torch.zeros(CROPS, 2, 2)]
    evil = {
        "in place of the labels": [*state[:2], Payload(marker)],
        "behind the labels": [*state, Payload(marker)],
        "as the file": Payload(marker),
    }[hidden]
    saved(path, evil, container)
    torch.load(path, weights_only=False)  # the payload does run where pickles are executed
    assert marker.exists()
    marker.unlink()
    with pytest.raises(InputError, match=r"2.tar is refused: its pickle asks for .*Nothing of it"):
        fkd.run(max_skipped=1.0)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InputError, match="is refused"):
        read_label_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "instruction",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02cnumpy\ndtype\n)\x81.",
        b"\x82\x01.",
        b"cnumpy._core.multiarray\n_reconstruct.evil\n.",
    ],
)
def test_no_other_name_or_instruction_is_followed(tmp_path, instruction):
    path = tmp_path / "x.tar"
    path.write_bytes(instruction)
    with pytest.raises(InputError, match="is refused: its pickle asks for"):
        read_label_file(path)


@pytest.mark.parametrize("container", FORMATS)
def test_damaged_files_are_named_damaged_whatever_is_broken(tmp_path, container):
    """Truncated anywhere or with any byte changed: the same arrays or a refusal, never a crash."""
    path = tmp_path / "x.tar"
    state, _ = as_fkd("x", 40, 30, some_probs(CROPS, 3), 2)
    whole = saved(path, [state[0], *map(torch.from_numpy, state[1:])], container).read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            read_label_file(path)
        except InputError:
            refused += 1
    assert refused > 200  # every truncation at least


def test_memory_that_a_file_does_not_hold_is_not_handed_out(tmp_path):
    """One number with a stride of 0 as 2^30 of them; and compressed members, which may explode."""
    flips, labels = torch.zeros(3).bool(), torch.zeros(3)
    path = saved(tmp_path / "x.tar", [torch.zeros(1, 1).expand(1 << 28, 4), flips, labels])
    with pytest.raises(DamagedLabels, match="reaches outside of its numbers"):
        read_label_file(path)
    whole = saved(tmp_path / "x.tar", [torch.zeros(3, 4), flips, labels]).read_bytes()
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(packed.getvalue())
    with pytest.raises(DamagedLabels, match="compressed"):
        read_label_file(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.zeros(2, 4), torch.zeros(2).bool()], "does not hold three arrays"),
        ([torch.zeros(2, 4), torch.zeros(2).bool(), "text"], "something else than arrays"),
        ([torch.zeros(2, 3), torch.zeros(2).bool(), torch.zeros(2)], r"not float \[N, 4\]"),
        ([torch.zeros(2, 4), torch.zeros(3).bool(), torch.zeros(2)], r"not bool \[2\]"),
        ([torch.zeros(2, 4), torch.zeros(2).bool(), torch.zeros(3)], "its labels are"),
    ],
)
def test_other_contents_are_named(tmp_path, state, message):
    with pytest.raises(DamagedLabels, match=message):
        read_label_file(saved(tmp_path / "x.tar", state))
