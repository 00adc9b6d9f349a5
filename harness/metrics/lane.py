"""One accumulator of the compiled pass, and how several are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import kernel as k
from .metrics import SLOT
from .setup import Setup, Values

Array = np.ndarray[Any, Any]
Sums = tuple[Array, Array, Array, Array]
"""Accumulator slots, rows `[R, 7]`, columns `[7, C]`, cells of the joint histogram `[n, 3]`."""

NO_ROWS = np.empty((0, k.STATS))
NO_COLUMNS = np.empty((k.STATS, 0))
START = np.zeros(k.SLOTS)
"""The accumulator of a tensor of which nothing was seen yet."""
START.view(np.int64)[k.MAX_ABS_AT : k.MAX_REL_AT + 1] = -1

_FREE: list[Lane] = []


class Lane:
    """One accumulator with its workspace; used by one thread at a time, and kept for the next tensor."""

    __slots__ = ("_bound", "_out", "_pair", "columns", "rows", "space", "sums")

    def __init__(self) -> None:
        cells = k.BINS * k.BINS
        table, touched = np.zeros(2 * cells, np.int64), np.zeros(cells + k.BLOCK, np.int32)
        self.space = np.zeros((k.WORK, k.BLOCK)), table, touched
        self._out = np.empty((1024, 3))

    @classmethod
    def take(cls) -> Lane:
        """A lane that nobody uses."""
        try:
            return _FREE.pop()
        except IndexError:
            return cls()

    def give_back(self) -> None:
        """Let the next one have it."""
        _FREE.append(self)

    def start(self, pair: Setup, bound: tuple[float, float], rows: Array | None = None) -> None:
        """Make ready for a tensor; `rows` is given when lanes share them."""
        self._pair, self._bound = pair, bound
        self.sums, self.rows, self.columns = START.copy(), NO_ROWS, NO_COLUMNS
        if pair.num_rows:
            self.rows = np.zeros((pair.num_rows, k.STATS)) if rows is None else rows
        if pair.geometry[k.COLUMNS]:
            self.columns = np.zeros((k.STATS, pair.plan.columns))

    def feed(self, actual: Array, expected: Array, start: int, last: bool = False) -> int:
        """Measure one chunk: flat arrays whose first element has the flat place `start`."""
        return self._run(self._pair.values(actual, expected), start, last, self._out)

    def finish(self, only: tuple[Array, Array] | None = None) -> Sums:
        """What was summed, with a tensor of `only` one chunk; the lane is free afterwards."""
        out, count = self._out, -1
        if only is not None:
            count = self.feed(*only, 0, True)
        if count < 0:
            out = np.empty((int(self.sums.view(np.int64)[k.CELLS]), 3))
            count = self._run(self._pair.no_values(), k.BLOCK, True, out)
        self.give_back()
        return self.sums, self.rows, self.columns, out[:count].copy()

    def _run(self, values: Values, start: int, last: bool, out: Array) -> int:
        pair = self._pair
        count: int = k.CHUNK[pair.way.wide]()(
            *values, start, last, *self._bound, pair.geometry, pair.parameters,
            self.sums, self.rows, self.columns, *self.space, out,
        )  # fmt: skip
        return count


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
