"""One accumulator of the compiled pass, and how several are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from . import kernel as k
from .layout import Layout, layout
from .metrics import SLOT
from .widen import Route, exact_difference, route

Array = np.ndarray[Any, Any]
Sums = tuple[Array, Array, Array, Array]
"""Accumulator slots, rows `[R, 7]`, columns `[7, C]`, cells of the joint histogram `[n, 3]`."""

_NO_DIFFERENCE = np.empty(0, np.float64)
_NO_ROWS = np.empty((0, k.STATS))
_NO_COLUMNS = np.empty((k.STATS, 0))
_NOTHING = np.empty(0, np.float32), np.empty(0, np.float64)
_FREE: list[Lane] = []

_START = np.zeros(k.SLOTS)
_START.view(np.int64)[k.MAX_ABS_AT : k.MAX_REL_AT + 1] = -1

FILLS = tuple(-(10.0**power) for power in (4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 38))
"""Mask fills known by value, also as bfloat16 and float16 round them; others are known by repeating."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled once per shape and pair of number formats: layout, route, and the kernel's tables."""

    plan: Layout
    way: Route
    full: bool
    geometry: Array
    parameters: Array


@lru_cache(maxsize=4096)
def setup(shape: tuple[int, ...], axes: str, actual: str, expected: str, full: bool) -> Setup:
    """The setup of a pair; UserError when `axes` does not fit `shape`."""
    plan, way = layout(shape, axes), route(actual, expected)
    geometry = (max(plan.size, 1), 1, 0, 0, 0, 0, 0, way.fills)
    if full:
        geometry = (plan.line, plan.row_size, plan.columns, 1, *way.ulp, way.fills)
    parameters = (way.ulp_scale, way.ulp_normal, *_NAMED)
    return Setup(plan, way, full, np.array(geometry, np.int64), np.array(parameters))


class Lane:
    """One accumulator with its workspace; used by one thread at a time, and kept for the next tensor."""

    __slots__ = ("_bound", "_out", "_pair", "_table", "_touched", "_work", "columns", "rows", "sums")

    def __init__(self) -> None:
        cells = k.BINS * k.BINS
        self._table = np.zeros(2 * cells, np.int64)
        self._touched = np.zeros(cells + k.BLOCK, np.int32)
        self._work = np.zeros((k.WORK, k.BLOCK))
        self._out = np.empty((1024, 3))

    @classmethod
    def take(cls) -> Lane:
        """A lane that nobody uses."""
        try:
            return _FREE.pop()
        except IndexError:
            return cls()

    def start(self, pair: Setup, bound: tuple[float, float], rows: Array | None = None) -> None:
        """Make ready for a tensor; `rows` is given when lanes share them."""
        self._pair, self._bound = pair, bound
        self.sums, self.rows, self.columns = _START.copy(), _NO_ROWS, _NO_COLUMNS
        if pair.full:
            self.rows = np.zeros((pair.plan.num_rows, k.STATS)) if rows is None else rows
            if pair.plan.columns:
                self.columns = np.zeros((k.STATS, pair.plan.columns))

    def feed(self, actual: Array, expected: Array, start: int, last: bool = False) -> int:
        """Measure one chunk: flat arrays whose first element has the flat place `start`."""
        way = self._pair.way
        exact = exact_difference(actual, expected) if way.exact else _NO_DIFFERENCE
        return self._run(way.actual(actual), way.expected(expected), exact, start, last, self._out)

    def finish(self, only: tuple[Array, Array] | None = None) -> Sums:
        """What was summed, with a tensor of `only` one chunk; the lane is free afterwards."""
        out, count = self._out, -1
        if only is not None:
            count = self.feed(*only, 0, True)
        if count < 0:
            out = np.empty((int(self.sums.view(np.int64)[k.CELLS]), 3))
            nothing = _NOTHING[self._pair.way.wide]
            count = self._run(nothing, nothing, _NO_DIFFERENCE, k.BLOCK, True, out)
        found = self.sums, self.rows, self.columns, out[:count].copy()
        _FREE.append(self)
        return found

    def _run(self, actual: Array, expected: Array, exact: Array, start: int, last: bool, out: Array) -> int:
        pair = self._pair
        count: int = k.compiled(pair.way.wide)(
            actual, expected, exact, start, last, *self._bound, pair.geometry, pair.parameters,
            self.sums, self.rows, self.columns, self._work, self._table, self._touched, out,
        )  # fmt: skip
        return count


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
