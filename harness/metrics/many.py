"""Sums of many small tensors in one call of the compiled pass; detail is measured for those that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import kernel as k
from .lane import NO_COLUMNS, NO_ROWS, START, Lane
from .layout import LANES
from .metrics import Metrics
from .setup import Setup
from .threads import processors, share

Array = np.ndarray[Any, Any]

SHARE = 1 << 15
"""Elements that are worth a thread of their own."""


def survey(
    actual: Array,
    expected: Array,
    setups: Sequence[Setup],
    bounds: Sequence[tuple[float, float]],
    kinds: Sequence[int],
    *,
    threads: int | None = None,
) -> list[Metrics]:
    """Metrics as `measure` gives them, without columns and histogram, and rows only where a setup wants them.

    `actual` and `expected` are flat and hold the tensors one behind the other. Number i is of kind
    `kinds[i]`: it is measured as `setups[kind]` within `bounds[kind]`. All have the same number formats.
    `threads` (default: one per processor, at most 4, for many elements) never changes a result.
    """
    which = np.array(kinds, np.int64)
    ends = np.cumsum(np.array([s.plan.size for s in setups])[which])
    row_ends = np.cumsum(np.array([s.plan.num_rows * s.by_row for s in setups])[which])
    sums = np.tile(START, (which.size, 1))
    rows = np.zeros((int(row_ends[-1]), k.STATS))
    a, e, exact, limits = setups[0].values(actual, expected)
    tables = np.array(bounds, np.float64), np.array([s.geometry for s in setups]), setups[0].parameters
    call = k.many(setups[0].way.wide)
    workers = min(threads or max(1, min(processors(), a.size // SHARE)), LANES)
    cuts = [0, *np.searchsorted(ends, np.arange(1, workers) * (a.size // workers)), which.size]

    def work(worker: int) -> None:
        first, last = cuts[worker], cuts[worker + 1]
        begin, row = (int(x[first - 1]) if first else 0 for x in (ends, row_ends))
        own, lane = slice(begin, None), Lane.take()
        call(
            a[own], e[own], exact[own], limits, ends[first:last] - begin, which[first:last], *tables,
            sums[first:last], rows[row:], *lane.space,
        )  # fmt: skip
        lane.give_back()

    share(work, workers)
    return _each(setups, bounds, kinds, sums, rows, row_ends)


def _each(
    setups: Sequence[Setup],
    bounds: Sequence[tuple[float, float]],
    kinds: Sequence[int],
    sums: Array,
    rows: Array,
    row_ends: Array,
) -> list[Metrics]:
    found, begin = [], 0
    for kind, own, end in zip(kinds, sums, row_ends.tolist(), strict=True):
        pair, mine = setups[kind], rows[begin:end] if end > begin else NO_ROWS
        found.append(Metrics(pair.plan, bounds[kind], pair.names, own, mine, NO_COLUMNS, None, True))
        begin = end
    return found
