"""The records of a run as a sequence: made one by one when asked for, columns for who needs many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from . import format as f
from . import index
from .record import Record

if TYPE_CHECKING:
    from .reader import Run

Column = np.ndarray[Any, np.dtype[np.int64]]


class Records(Sequence[Record]):
    """Records in append order; `orders` are their places in the index of the file."""

    def __init__(self, run: Run, orders: Column) -> None:
        self.run, self.orders = run, orders

    @cached_property
    def rows(self) -> np.ndarray[Any, Any]:
        """What the index says of each, see `format.ROW`."""
        rows: np.ndarray[Any, Any] = self.run._trace._rows[self.orders]
        return rows

    def __len__(self) -> int:
        return len(self.orders)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Records: ...
    def __getitem__(self, place: int | slice) -> Record | Records:
        if isinstance(place, slice):
            whole = place.indices(len(self)) == (0, len(self), 1)
            return self if whole else Records(self.run, self.orders[place])
        return self._first if place == 0 else self._made[place]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._made)

    @property
    def ranges(self) -> Column | None:
        """Positions `[N, 3]` as kind, first and number, where every record has a range of them."""
        kinds = self.rows["position_kind"]
        if not np.isin(kinds, (f.RANGE, f.RANGE_OF_ONE_SEQUENCE)).all():
            return None
        return np.stack((kinds, self.rows["position_start"], self.rows["position_count"]), axis=1)

    @cached_property
    def _first(self) -> Record:
        """What is asked of records that are alike is asked of this one, so it is made alone."""
        return Records(self.run, self.orders[:1])._made[0]

    @cached_property
    def kinds(self) -> list[bytes]:
        """Tap, dtype, shape and axes of each in one word, to be compared."""
        return index.kinds(self.rows)

    @cached_property
    def _made(self) -> list[Record]:
        known = {kind: self._known(kind) for kind in set(self.kinds)}
        columns = self.orders.tolist(), self.rows["step"].tolist(), self.rows["call"].tolist(), self.kinds
        return [
            Record(self.run, order, step, call, *known[kind])
            for order, step, call, kind in zip(*columns, strict=True)
        ]

    def _known(self, kind: bytes) -> tuple[str, str, tuple[int, ...], int, str]:
        """Tap, dtype, shape, size and axes of a kind."""
        row, trace = np.frombuffer(kind, index.KIND)[0], self.run._trace
        shape = tuple(row["shape"][: row["ndim"]].tolist())
        tap, axes = trace._text(int(row["tap"])), trace._text(int(row["axes"]))
        return tap, trace.layout.dtypes[row["dtype"]], shape, math.prod(shape), axes


def column(records: Sequence[Any], name: str) -> Column:
    """`step`, `call` or `order` of each, whatever holds the records."""
    if not isinstance(records, Records):
        return np.array([getattr(record, name) for record in records], np.int64)
    return records.orders if name == "order" else records.rows[name].astype(np.int64)


def changes(records: Sequence[Any]) -> list[int]:
    """Places where a record has another dtype, shape or axes than the one before."""
    if isinstance(records, Records):
        kinds: list[Any] = records.kinds
    else:
        kinds = [(record.dtype, tuple(record.shape), record.axes) for record in records]
    if kinds.count(kinds[0]) == len(kinds):
        return []
    return [place for place, (before, kind) in enumerate(pairwise(kinds), 1) if before != kind]
