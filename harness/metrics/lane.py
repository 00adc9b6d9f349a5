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
_FREE: list[Lane] = []

FILLS = tuple(-(10.0**power) for power in (4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 38))
"""Mask fills that are known by value, also as bfloat16 and float16 round them; others are known by repeating."""


class Lane:
    """One accumulator with its workspace; used by one thread at a time, and kept for the next tensor."""

    __slots__ = ("_counts", "_geo", "_par", "_peaks", "_touched", "_way", "columns", "rows", "sums")

    def __init__(self) -> None:
        cells = k.BINS * k.BINS
        self._counts = np.zeros(cells, np.int64)
        self._peaks = np.zeros(cells, np.float64)
        self._touched = np.zeros(cells, np.int32)
        self._geo = np.zeros(9, np.int64)

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
        self._par = np.array((*bound, way.ulp_scale, way.ulp_normal, *_NAMED))
        self.sums = np.zeros(k.SLOTS)
        self.sums.view(np.int64)[k.MAX_ABS_AT : k.MAX_REL_AT + 1] = -1
        if not full:
            self.rows, self.columns = _NO_ROWS, _NO_COLUMNS
            self._geo[:] = 0, max(plan.size, 1), 1, 0, 0, 0, 0, 0, way.fills
            return
        self.rows = np.zeros((plan.num_rows, k.STATS)) if rows is None else rows
        self.columns = np.zeros((k.STATS, plan.columns)) if plan.columns else _NO_COLUMNS
        self._geo[:] = (
            0, plan.line, plan.row_size, plan.columns, 1, way.ulp, way.ulp_shift, way.ulp_offset, way.fills,
        )  # fmt: skip

    def feed(self, actual: Array, expected: Array, start: int) -> None:
        """Measure one chunk: flat arrays whose first element has the flat place `start`."""
        if not actual.size:
            return
        way = self._way
        self._geo[k.START] = start
        exact = exact_difference(actual, expected) if way.exact else _NO_DIFFERENCE
        (k.pass64 if way.wide else k.pass32)(
            way.actual(actual), way.expected(expected), exact, self._geo, self._par,
            self.sums, self.rows, self.columns, self._counts, self._peaks, self._touched,
        )  # fmt: skip

    def finish(self) -> Sums:
        """What was summed; the lane is free for the next tensor afterwards."""
        cells = np.empty((int(self.sums.view(np.int64)[k.CELLS]), 3))
        if len(cells):
            k.harvest(self.sums, self._counts, self._peaks, self._touched, cells)
        found = self.sums, self.rows, self.columns, cells
        _FREE.append(self)
        return found


def _named_fills() -> tuple[float, ...]:
    import ml_dtypes

    rounded = (np.array(FILLS).astype(t).astype(float) for t in (np.float32, ml_dtypes.bfloat16, np.float16))
    with np.errstate(over="ignore"):
        values = {float(v) for array in (np.array(FILLS), *rounded) for v in array}
    return tuple(sorted(v for v in values if np.isfinite(v)))


_NAMED = _named_fills()


def join(parts: Sequence[Sums], *, shared_rows: bool) -> Sums:
    """One result from the lanes', in their order: sums add up, of equal maxima the first place stays."""
    sums, rows, columns, cells = parts[0]
    if len(parts) == 1:
        return parts[0]
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
