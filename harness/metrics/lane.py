"""One accumulator of the compiled pass, and how several are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import kernel as k
from .layout import Layout
from .metrics import SLOT
from .widen import Route, exact_difference

Array = np.ndarray[Any, Any]
Sums = tuple[Array, Array, Array, Array]
"""Accumulator slots, rows `[R, 7]`, columns `[7, C]`, cells of the joint histogram `[n, 3]`."""

_NO_DIFFERENCE = np.empty(0, np.float64)
_NO_ROWS = np.empty((0, k.STATS))
_NO_COLUMNS = np.empty((k.STATS, 0))
_NO_CELLS = np.empty((0, 3))
_NOTHING = np.empty(0, np.float32), np.empty(0, np.float64)
_FREE: list[Lane] = []

_START = np.zeros(k.SLOTS)
_START.view(np.int64)[k.MAX_ABS_AT : k.MAX_REL_AT + 1] = -1

FILLS = tuple(-(10.0**power) for power in (4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 38))
"""Mask fills known by value, also as bfloat16 and float16 round them; others are known by repeating."""


class Lane:
    """One accumulator with its workspace; used by one thread at a time, and kept for the next tensor."""

    __slots__ = ("_fold", "_geo", "_out", "_par", "_table", "_touched", "_way", "columns", "rows", "sums")

    def __init__(self) -> None:
        cells = k.BINS * k.BINS
        self._table = np.zeros(2 * cells, np.int64)
        self._touched = np.zeros(cells, np.int32)
        self._fold = np.zeros((k.STATS, k.BLOCK))
        self._geo = np.zeros(10, np.int64)
        self._par = np.array((0.0, 0.0, 0.0, 0.0, *_NAMED))
        self._out = np.empty((1024, 3))

    @classmethod
    def take(cls) -> Lane:
        """A lane that nobody uses."""
        try:
            return _FREE.pop()
        except IndexError:
            return cls()

    def start(
        self, plan: Layout, way: Route, bound: tuple[float, float], full: bool, rows: Array | None = None
    ) -> None:
        """Make ready for a tensor; `rows` is given when lanes share them."""
        self._way = way
        self._par[:4] = (*bound, way.ulp_scale, way.ulp_normal)
        self.sums = _START.copy()
        if not full:
            self.rows, self.columns = _NO_ROWS, _NO_COLUMNS
            self._geo[:] = 0, max(plan.size, 1), 1, 0, 0, 0, 0, 0, way.fills, 0
            return
        self.rows = np.zeros((plan.num_rows, k.STATS)) if rows is None else rows
        self.columns = np.zeros((k.STATS, plan.columns)) if plan.columns else _NO_COLUMNS
        self._geo[:] = 0, plan.line, plan.row_size, plan.columns, 1, *way.ulp, way.fills, 0

    def feed(self, actual: Array, expected: Array, start: int, out: Array = _NO_CELLS) -> None:
        """Measure one chunk: flat arrays whose first element has the flat place `start`."""
        way = self._way
        self._geo[k.START] = start
        exact = exact_difference(actual, expected) if way.exact else _NO_DIFFERENCE
        self._run(way.actual(actual), way.expected(expected), exact, out)

    def finish(self, last: tuple[Array, Array] | None = None) -> Sums:
        """What was summed, with a tensor of one chunk if that is all; the lane is free afterwards."""
        self._geo[k.LAST] = 1
        if last is not None:
            self.feed(*last, 0, self._out)
        out, count = self._out, int(self.sums.view(np.int64)[k.CELLS])
        if self._geo[k.LAST]:
            out, self._geo[k.START] = np.empty((count, 3)), k.BLOCK
            nothing = _NOTHING[self._way.wide]
            self._run(nothing, nothing, _NO_DIFFERENCE, out)
            count = int(self.sums.view(np.int64)[k.CELLS])
        found = self.sums, self.rows, self.columns, out[:count].copy()
        _FREE.append(self)
        return found

    def _run(self, actual: Array, expected: Array, exact: Array, out: Array) -> None:
        k.compiled(self._way.wide)(
            actual, expected, exact, self._geo, self._par, self.sums,
            self.rows, self.columns, self._fold, self._table, self._touched, out,
        )  # fmt: skip


def _named_fills() -> tuple[float, ...]:
    import ml_dtypes

    known = np.array(FILLS)
    with np.errstate(over="ignore"):
        spelled = [known.astype(t).astype(np.float64) for t in (np.float32, ml_dtypes.bfloat16, np.float16)]
    values = {float(value) for array in (known, *spelled) for value in array}
    return tuple(sorted(value for value in values if np.isfinite(value)))


_NAMED = _named_fills()


def join(parts: Sequence[Sums], *, shared_rows: bool) -> Sums:
    """One result from the lanes', in their order: sums add up, of equal maxima the first place stays."""
    if len(parts) == 1:
        return parts[0]
    sums, rows, columns, _ = parts[0]
    for other, more_rows, more_columns, _ in parts[1:]:
        _join_sums(sums, other)
        if not shared_rows:
            _join_stats(rows.T, more_rows.T)
        _join_stats(columns, more_columns)
    return sums, rows, columns, np.concatenate([part[3] for part in parts])


def _join_sums(sums: Array, other: Array) -> None:
    ints, more = sums.view(np.int64), other.view(np.int64)
    for value, place, along in (
        ("max_abs", "max_abs_index", ("actual_at_max", "expected_at_max")),
        ("max_rel", "max_rel_index", ("rel_guard",)),
    ):
        mine, theirs = (sums[SLOT[value]], -ints[SLOT[place]]), (other[SLOT[value]], -more[SLOT[place]])
        if more[SLOT[place]] >= 0 and (ints[SLOT[place]] < 0 or theirs > mine):
            ints[SLOT[place]] = more[SLOT[place]]
            for name in (value, *along):
                sums[SLOT[name]] = other[SLOT[name]]
    for name in ("max_expected", "max_actual", "worst_ratio"):
        sums[SLOT[name]] = max(sums[SLOT[name]], other[SLOT[name]])
    sums[k.ERR_SQ : k.ERR_ABS + 1] += other[k.ERR_SQ : k.ERR_ABS + 1]
    unsigned = sums.view(np.uint64)
    unsigned[k.ULP] = max(unsigned[k.ULP], other.view(np.uint64)[k.ULP])
    ints[k.MISMATCHED : k.CELLS] += more[k.MISMATCHED : k.CELLS]


def _join_stats(stats: Array, other: Array) -> None:
    """Statistics `[7, ...]` of the same slices."""
    peaks = slice(k.S_ERR_MAX, k.S_REF_MAX + 1)
    highest = np.maximum(stats[peaks], other[peaks])
    stats += other
    stats[peaks] = highest
