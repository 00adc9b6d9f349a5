"""Invariants between two runs of one target: the past ignores the future, sequences ignore each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InconclusiveError
from ..values import TapRows, positional, records_of
from .kinds import Invariant

if TYPE_CHECKING:
    from ..trace import Record, Run

Array = np.ndarray[Any, Any]

CAUSAL = "outputs at t ignore tokens after t"
APART = "batch rows do not mix"
ALONE = "a sequence in a batch is the same as alone"

LATEST = 1 << 30


def same_rows(
    name: str, one: Run, other: Run, *, upto: int | None, noise: float, reason: str, sequence: int = 0
) -> Invariant:
    """Rows of one sequence in both runs before position `upto` (None: all), tap by tap, within `noise`."""
    checked = 0
    for tap in one.taps:
        found = _of_tap(tap, one, other, upto, sequence)
        if found is None:
            continue
        share, positions = found
        if share.max(initial=0.0) > noise:
            at = int(positions[int(np.argmax(share > noise))])
            where = f"position {at}"
            return Invariant(name, "violated", checked, reason, tap, 0, where, _finite(float(share.max())))
        checked += share.size
    if not checked:
        return Invariant(name, "skipped", reason="no record has rows by position")
    return Invariant(name, "holds", checked)


def _finite(error: float) -> float | None:
    return error if np.isfinite(error) else None


def _of_tap(tap: str, one: Run, other: Run, upto: int | None, sequence: int) -> tuple[Array, Array] | None:
    """Relative error of each row and its position; None for taps without rows by position."""
    sides = [_records(run, tap) for run in (one, other)]
    if not all(sides):
        return None
    longest = max(int(np.asarray(record.positions).max()) for record in sides[0]) + 1
    positions = np.arange(longest if upto is None else min(longest, upto))
    rows = []
    for records in sides:
        batch = records[0].shape[records[0].axes.split().index("b")] if "b" in records[0].axes.split() else 1
        asked = np.full((batch, positions.size), -1, np.int64)
        asked[sequence] = positions
        try:
            found, known = TapRows(records).at(LATEST, asked)
        except InconclusiveError:
            return None
        rows.append((found[sequence].astype(np.float64), known[sequence]))
    (a, here), (b, there) = rows
    both = here & there
    if a.shape != b.shape or not both.any():
        return None
    return _relative(a[both], b[both]), positions[both]


def _relative(a: Array, b: Array) -> Array:
    """Error of each row over the larger of its size and a tenth of the tap's."""
    flat = [rows.reshape(len(rows), -1).astype(np.float64) for rows in (a, b)]
    gap = np.linalg.norm(flat[0] - flat[1], axis=1)
    size = np.linalg.norm(flat[0], axis=1)
    scale = np.maximum(size, 0.1 * float(np.sqrt(np.mean(size**2))))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(gap == 0.0, 0.0, gap / scale)
    return np.nan_to_num(share, nan=np.inf)


def _records(run: Run, tap: str) -> list[Record]:
    return [record for record in records_of(run, tap) if positional(record) and record.size]


def same_items(name: str, one: Run, other: Run, *, axis: int, keep: int, size: int, reason: str) -> Invariant:
    """Of records without positions, the first `keep` items along an axis of `size` are equal in both runs."""
    checked = 0
    for before, after in _pairs(one, other):
        if before.shape != after.shape or len(before.shape) <= axis or before.shape[axis] != size:
            continue
        share = _relative(*(np.moveaxis(record.read(), axis, 0)[:keep] for record in (before, after)))
        if share.max(initial=0.0) > 1e-5:
            where = f"index {int(np.argmax(share > 1e-5))} of axis {axis}"
            error = _finite(float(share.max()))
            return Invariant(name, "violated", checked, reason, before.tap, before.step, where, error)
        checked += keep
    if not checked:
        return Invariant(name, "skipped", reason=f"no record has {size} items along axis {axis}")
    return Invariant(name, "holds", checked)


def _pairs(one: Run, other: Run) -> Iterator[tuple[Record, Record]]:
    for tap in one.taps:
        theirs = {(record.step, record.call): record for record in records_of(other, tap)}
        for record in one.records(tap):
            if (record.step, record.call) in theirs and "int" not in record.dtype:
                yield record, theirs[record.step, record.call]
