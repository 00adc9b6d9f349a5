"""Reading many small records at once: neighbours in the file share a system call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dtypes import logical_dtype
from .checksum import checksums
from .records import Column, Records, column

Array = np.ndarray[Any, Any]


def shelf(records: Sequence[Any]) -> tuple[Any, str]:
    """Run and number format of records: those of the same can be read together."""
    first = records[0]
    return getattr(first, "_run", None), first.dtype


def read_together(parts: Sequence[Sequence[Any]], by: Column) -> Array:
    """Values of all records of parts of one shelf, flat: of record `by[0]` first, counted through the parts.

    The records of a part have one size. Fastest in the order of the file. Checksums are verified: UserError
    when one does not hold.
    """
    run, dtype = shelf(parts[0])
    if run is None:
        single = [record for part in parts for record in part]
        return np.concatenate([single[place].read().reshape(-1) for place in by.tolist()])
    trace = run._trace
    places = np.concatenate([column(part, "order") for part in parts])[by]
    sizes = np.repeat([part[0].size for part in parts], [len(part) for part in parts])[by]
    starts, ends = trace._offsets[places], sizes.cumsum()
    values: Array = trace._blocks.together(trace._stream(dtype), starts, starts + sizes)
    found = np.array(checksums(values.view(np.uint8), (ends * values.itemsize).tolist()), np.uint32)
    for at in np.flatnonzero(found != trace._crcs[places]).tolist():
        alone = Records(run, places[at : at + 1])[0].read()  # says what is wrong, or the file was changing
        values[ends[at] - sizes[at] : ends[at]] = alone.reshape(-1).view(values.dtype)
    return values.view(logical_dtype(dtype))
