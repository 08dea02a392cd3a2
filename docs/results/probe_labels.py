"""Soft labels from stored features: a linear probe answers in the teacher's place.

``python docs/results/probe_labels.py STORE`` fits multinomial logistic regression to the features
of the first crop of every image of STORE (see `ferkd.training.probe.fit`) and adds its answers to
those of all crops as the signal ``labels``, all classes kept. But for the rounding of i8 they are
what the teacher with this head would answer; the teacher is not run.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from ferkd.store import LabelStore, SoftLabels
from ferkd.store import manifest as manifests
from ferkd.store.adding import SignalWriter
from ferkd.store.records import RecordFormat
from ferkd.training.probe import fit


def main(path: str) -> None:
    """Fit the probe, say how often it is right, add its labels."""
    store = LabelStore(path).of_kinds("features")
    count, rows = store.crops_per_image, np.arange(len(store))
    targets = torch.from_numpy(store.truth(rows))
    first = torch.from_numpy(store.features(rows, 0))
    weight, bias, penalty = fit(first, targets, store.num_classes)
    form = RecordFormat.choose(None, store.num_classes)
    features = store.of_kind("features").settings
    settings = manifests.Settings.of(store.geometry, features).model_copy(
        update={
            "vectors": None,
            "record": manifests.Record(**vars(form)),
            "teacher": {**features.teacher, "spec": f"linear probe of {features.teacher['spec']}"},
        }
    )
    right = 0
    with SignalWriter(path, settings, len(store)) as writer:
        for part in writer.missing():
            some = np.array(writer.part_range(part))
            places, crops = some[:, None], np.arange(count)[None]
            vectors = torch.from_numpy(store.features(places, crops)).flatten(0, 1)
            known = targets[some].repeat_interleave(count)
            labels = SoftLabels.from_logits(vectors @ weight.T + bias, known, None)
            right += int((labels.top1() == known).sum())
            of_crops = store.boxes(places, crops), store.flips(places, crops)
            records = form.encode(labels).reshape(-1, count)
            ids = [store.ids[int(row)] for row in some]
            writer.write(part, ids, store.images[some], *of_crops, records, [])
        writer.finish()
    share = right / (len(store) * count)
    print(f"penalty {penalty:g}, right on {share:.1%} of {len(store) * count} crops")


if __name__ == "__main__":
    main(sys.argv[1])
