"""The trial of 10-bit class numbers: bytes saved, and what their decoding takes.

    OMP_NUM_THREADS=1 python benchmarks/class_numbers.py --json FILE

Top-5 labels of 1000 classes, as the store keeps them and with the five numbers packed into 7 bytes.
A turn takes 20 batches of 1024 records at random, the crops of 256 images out of 51,200, holds them
to their rules and decodes them, in processor time; sides take turns. docs/lab-log.md has the
criterion and the verdict: the store keeps whole bytes.
"""

from __future__ import annotations

import statistics
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reporting import parser_of, tell

from ferkd.store import SoftLabels
from ferkd.store.records import RecordFormat
from ferkd.study.bench.made_up import random_labels
from ferkd.study.bench.measuring import in_turns, machine, summary

RECORDS, BATCH, ROUNDS, TOP_K, CLASSES = 51_200, 1024, 20, 5, 1000


class Packed(RecordFormat):
    """A record whose number j has the bits 10 j to 10 j + 9, the lowest first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        whole = super().dtype
        named = [(name, whole[name]) for name in whole.names or () if name != "classes"]
        return np.dtype([("classes", "u1", (-(-10 * self.k // 8),)), *named])

    def encode(self, labels: SoftLabels) -> NDArray[Any]:
        whole = RecordFormat(self.k, self.num_classes, self.values).encode(labels)
        records = np.zeros(len(whole), self.dtype)
        bits = (whole["classes"][:, :, None] >> np.arange(10) & 1).astype(np.uint8)
        records["classes"] = np.packbits(bits.reshape(len(whole), -1), axis=1, bitorder="little")
        for name in self.dtype.names[1:]:
            records[name] = whole[name]
        return records

    def classes(self, records: NDArray[Any]) -> NDArray[np.integer]:
        byte, shift = places(self.k)  # as 10 j is even, two bytes hold any number
        columns = np.ascontiguousarray(records["classes"].T)
        numbers = np.empty((self.k, len(records)), np.uint16)
        np.bitwise_or(columns[byte], columns[byte + 1].astype(np.uint16) << 8, out=numbers)
        numbers >>= shift
        numbers &= 1023
        return numbers.T


@cache
def places(k: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    first = 10 * np.arange(k)
    return first >> 3, (first & 7).astype(np.uint16)[:, None]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    shown = torch.from_numpy(rng.integers(0, CLASSES, RECORDS))
    labels = random_labels(shown, CLASSES, rng, known=True)
    forms = {"whole": RecordFormat(TOP_K, CLASSES, "u8"), "packed": Packed(TOP_K, CLASSES, "u8")}
    records = {name: form.encode(labels) for name, form in forms.items()}
    decoded = [form.decode(records[name]).classes for name, form in forms.items()]
    assert torch.equal(*decoded)

    def read(name: str, turn: int) -> float:
        form, some = forms[name], np.random.default_rng(turn)
        rows = [some.integers(0, RECORDS, BATCH) for _ in range(ROUNDS)]
        begun = time.process_time()
        for chosen in rows:
            taken = records[name].take(chosen)
            assert not any(wrong.any() for wrong, _ in form.impossible(taken))
            form.decode(taken, np.ones(BATCH, bool)).with_truth(shown[chosen])
        return (time.process_time() - begun) / ROUNDS * 1e6

    times = in_turns(
        {name: lambda turn, name=name: read(name, turn) for name in forms},
        options.repeats,
        uncounted=5,
    )
    ratios = [b / a for a, b in zip(times["whole"], times["packed"], strict=True)]
    sizes = {name: form.dtype.itemsize for name, form in forms.items()}
    result = {
        "command": f"python benchmarks/class_numbers.py --repeats {options.repeats}",
        "label_bytes": sizes,
        "microseconds_a_batch": {name: summary(values) for name, values in times.items()},
        "ratio": summary(ratios),
        "ratio_of_least": min(times["packed"]) / min(times["whole"]),
        "turns_with_more_than_5_percent": statistics.fmean(ratio > 1.05 for ratio in ratios),
        "machine": machine(),
    }
    tell(result, options.json)


if __name__ == "__main__":
    main()
