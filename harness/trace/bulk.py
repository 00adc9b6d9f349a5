"""Reading many small records at once: neighbours in the file share a system call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ..dtypes import logical_dtype
from .checksum import checksums

Array = np.ndarray[Any, Any]


def shelf(record: Any) -> Hashable:
    """Records with equal ones can be read together: they are of one run and one number format."""
    return getattr(record, "_run", None), record.dtype


def read_together(records: Sequence[Any]) -> Array:
    """The values of records of one shelf, flat, one record behind the other; checksums are verified.

    Fastest in the order of the file. UserError when a checksum does not hold.
    """
    run, dtype = getattr(records[0], "_run", None), records[0].dtype
    if run is None:
        return np.concatenate([record.read().reshape(-1) for record in records])
    trace, orders, sizes = run._trace, _column(records, "order"), _column(records, "size")
    starts, ends = trace._offsets[orders], sizes.cumsum()
    values: Array = trace._blocks.together(trace._stream(dtype), starts, starts + sizes)
    found = np.array(checksums(values.view(np.uint8), (ends * values.itemsize).tolist()), np.uint32)
    for place in np.flatnonzero(found != trace._crcs[orders]).tolist():
        alone = records[place].read().reshape(-1)  # says what is wrong, unless the file was changing
        values[ends[place] - sizes[place] : ends[place]] = alone.view(values.dtype)
    return values.view(logical_dtype(dtype))


def _column(records: Sequence[Any], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.fromiter(map(attrgetter(name), records), np.int64, len(records))
