"""A label store as one Parquet table, for pandas, Polars, DuckDB and Hugging Face datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.store.reader import LabelStore
from ferkd.store.walk import walk
from ferkd.system.errors import InputError
from ferkd.system.files import whole_file
from ferkd.system.storage import local_path

if TYPE_CHECKING:
    import pyarrow


def export_parquet(
    store: str | Path | LabelStore,
    file: str | Path,
    *,
    classes: Literal["names", "ids"] = "names",
    overwrite: bool = False,
) -> int:
    """Write one row a crop, in the store's order; returns the number of rows.

    Columns: ``image`` (id), ``crop``, ``top``, ``left``, ``height``, ``width`` (pixels), ``flip``,
    ``target`` (null without ground truth), ``classes`` and ``probabilities`` (lists of k, most
    probable first unless all classes are stored), ``tail`` (the mass of all other classes) and
    ``true_probability`` (null without ground truth). Classes and target are names or numbers. The
    store's settings, class names among them, lie as JSON under the key "ferkd" of the file's
    metadata. Written a chunk of crops at a time; the file appears when it is complete. Raises
    InputError: the file exists, the store has no class names, pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "writing Parquet needs pyarrow, which is not installed; pip install 'ferkd[exchange]'"
        ) from None
    store, path = LabelStore.open(store), local_path(file, "file")
    if classes not in ("names", "ids"):
        raise InputError(f"classes is {classes!r}; it must be names or ids")
    if classes == "names" and len(store.class_names) != store.num_classes:
        raise InputError(
            f"the labels of {store.path} do not name their {store.num_classes} classes; export "
            "their numbers with --classes ids"
        )
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another file or --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it, or give another file")
    names = pa.array(store.class_names, pa.string()) if classes == "names" else None
    kind = pa.int32() if names is None else pa.string()
    schema = pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            *(
                pa.field(name, pa.int32(), nullable=False)
                for name in ("crop", "top", "left", "height", "width")
            ),
            pa.field("flip", pa.bool_(), nullable=False),
            pa.field("target", kind),
            pa.field("classes", pa.list_(kind), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
            pa.field("tail", pa.float32(), nullable=False),
            pa.field("true_probability", pa.float32()),
        ],
        metadata={"ferkd": store.settings.model_dump_json()},
    )
    written = 0
    with whole_file(path) as output, pq.ParquetWriter(output, schema, compression="zstd") as writer:
        for rows, crops, records in walk(store):
            writer.write_table(_table(store, rows, crops, records, names, schema))
            written += len(rows)
    return written


def _table(
    store: LabelStore,
    rows: NDArray[np.integer],
    crops: NDArray[np.integer],
    records: NDArray[Any],
    names: pyarrow.StringArray | None,
    schema: pyarrow.Schema,
) -> pyarrow.Table:
    """The rows of some records as a table of ``schema``."""
    import pyarrow as pa

    def called(numbers: NDArray[np.integer], missing: NDArray[np.bool_] | None = None) -> Any:
        chosen = pa.array(numbers.astype(np.int32), mask=missing)
        return chosen if names is None else names.take(chosen)

    def lists(values: Any) -> Any:
        ends = np.arange(0, len(values) + 1, store.record.k, dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), values)

    boxes = store.boxes(rows, crops)
    labels = store.record.decode(records, store.truth(rows) >= 0)
    targets = store.truth(rows)
    unknown = targets < 0
    true = labels.prob_of(torch.from_numpy(targets)).numpy()
    several, of_several = np.unique(rows, return_inverse=True)
    ids = pa.array([store.ids[int(row)] for row in several], pa.string())
    columns = [
        ids.take(pa.array(of_several)),
        pa.array(crops.astype(np.int32)),
        *(pa.array(side.astype(np.int32)) for side in boxes.T),
        pa.array(store.flips(rows, crops)),
        called(targets, unknown),
        lists(called(labels.classes.numpy().reshape(-1))),
        lists(pa.array(labels.log_probs.exp().numpy().reshape(-1))),
        pa.array(labels.tail[:, 0].exp().numpy()),
        pa.array(true, mask=unknown),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
