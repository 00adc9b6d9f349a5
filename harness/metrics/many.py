"""Sums of many small tensors in one call of the compiled pass; detail is measured for those that need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from . import kernel as k
from .lane import NO_COLUMNS, NO_ROWS, START, Lane
from .layout import LANES
from .metrics import SLOT, Metrics
from .setup import Setup
from .threads import processors, share

Array = np.ndarray[Any, Any]

SHARE = 1 << 15
"""Elements that are worth a thread of their own."""


class Kind(NamedTuple):
    """`number` tensors that are measured alike; `bound` is atol and rtol."""

    pair: Setup
    bound: tuple[float, float]
    number: int


class Survey:
    """What was measured of the tensors of one kind: one number of all of them, or all numbers of one.

    Metrics are those of `measure`, without columns and histogram, and with rows where the setup wants them.
    """

    def __init__(self, kind: Kind, sums: Array, rows: Array) -> None:
        self._kind, self._sums, self._rows = kind, sums, rows

    def __len__(self) -> int:
        return self._kind.number

    def __iter__(self) -> Iterator[Metrics]:
        pair, bound, number = self._kind
        each = self._rows if pair.num_rows else repeat(NO_ROWS, number)
        for sums, rows in zip(self._sums, each, strict=True):
            yield Metrics(pair.plan, bound, pair.names, sums, rows, NO_COLUMNS, None, True)

    def floats(self, name: str) -> Array:
        """A sum, maximum or value of each, by its name in `Metrics`."""
        return np.asarray(self._sums[:, SLOT[name]])

    def counts(self, name: str) -> Array:
        """A count of each, by its name in `Metrics`."""
        return np.asarray(self._sums.view(np.int64)[:, SLOT[name]])

    @property
    def rel_l2(self) -> Array:
        """`Metrics.rel_l2` of each."""
        part, whole = np.sqrt(self.floats("err_sq")), np.sqrt(self.floats("ref_sq"))
        ordinary = (whole != 0.0) & (whole < np.inf)
        ratio = np.divide(part, whole, out=np.full_like(part, np.inf), where=ordinary)
        return np.where(part == 0.0, 0.0, ratio)


def survey(
    actual: Array, expected: Array, begins: Array, kinds: Sequence[Kind], *, threads: int | None = None
) -> list[Survey]:
    """Measure many tensors of the same two number formats, those of one kind one after the other.

    `actual` and `expected` are flat; `begins` says where in both each tensor begins. `threads` (default: one
    per processor, at most 4, for many elements) never changes a result.
    """
    first, which = kinds[0].pair, _each(kinds, range(len(kinds)))
    ends = _each(kinds, [kind.pair.plan.size for kind in kinds]).cumsum()
    row_ends = _each(kinds, [kind.pair.num_rows for kind in kinds]).cumsum()
    sums, rows = np.tile(START, (which.size, 1)), np.zeros((int(row_ends[-1]), k.STATS))
    values, call = first.values(actual, expected), k.MANY[first.way.wide]()
    tables = np.array([kind.bound for kind in kinds]), np.array([kind.pair.geometry for kind in kinds])
    workers = min(threads or max(1, min(processors(), int(ends[-1]) // SHARE)), LANES)
    cuts = [0, *np.searchsorted(ends, np.arange(1, workers) * (ends[-1] // workers)), which.size]

    def work(worker: int) -> None:
        mine, lane = slice(cuts[worker], cuts[worker + 1]), Lane.take()
        own_rows = rows[row_ends[mine.start - 1] if mine.start else 0 :]
        call(*values, begins[mine], which[mine], *tables, first.parameters, sums[mine], own_rows, *lane.space)
        lane.give_back()

    share(work, workers)
    return list(_apart(kinds, sums, rows))


def _each(kinds: Sequence[Kind], values: Sequence[int]) -> Array:
    """A value per kind, repeated for each of its tensors."""
    return np.repeat(np.array(values, np.int64), [kind.number for kind in kinds])


def _apart(kinds: Sequence[Kind], sums: Array, rows: Array) -> Iterator[Survey]:
    """The part of each kind."""
    begin = row = 0
    for kind in kinds:
        end, last = begin + kind.number, row + kind.number * kind.pair.num_rows
        yield Survey(kind, sums[begin:end], rows[row:last].reshape(kind.number, kind.pair.num_rows, k.STATS))
        begin, row = end, last
