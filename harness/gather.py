"""Puts rows in order by absolute position, wherever a candidate's cache layout or calls left them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .cache import spans
from .errors import InconclusiveError
from .pairs import Pair, Rows
from .values import batch_positions, rows_back, rows_first

if TYPE_CHECKING:
    from .trace import Record


def gathered(
    tap: str, step: int, own: Sequence[Record], theirs: Sequence[Record], rows: Rows, *, whole: bool = False
) -> Pair:
    """The reference's rows in the order of the candidate's positions; the calls of a step are joined.

    With `whole` the candidate must have every row that the reference recorded at this step, and no other.
    """
    axes = own[0].axes
    rule = f"tap, position ({len(own)} calls)" if len(own) > 1 else "tap, position"
    pair = Pair(tap, step, 0, rule, theirs[0] if theirs else None, own[0], axes=axes)
    if len({_signature(record) for record in own}) > 1 or _kind(axes) != _kind(rows.axes):
        pair.problem = f"axes={axes!r}, but should be {rows.axes!r}, with rows of one shape in every call"
        return pair
    actual = np.concatenate([rows_first(record.read(), axes) for record in own], axis=1)
    positions = np.concatenate([batch_positions(record) for record in own], axis=1)
    if positions.shape != actual.shape[:2]:
        pair.problem = f"positions={list(positions.shape)}, but should be {list(actual.shape[:2])}"
        return pair
    try:
        expected, found = rows.at(step, positions)
    except InconclusiveError as error:
        pair.problem = str(error) if theirs else ""
        return pair
    if expected.shape != actual.shape:
        pair.problem = f"rows of shape={actual.shape[2:]}, but should be {expected.shape[2:]}"
        return pair
    if whole and theirs:
        pair.lost = _unanswered(theirs, positions) or _unasked(positions, found)
    return _without_hidden(pair, expected, actual, positions, found)


def repeated(records: Iterable[Record]) -> bool:
    """Whether calls of one step went over the same positions again, so that each is a value of its own."""
    seen = np.concatenate([batch_positions(record) for record in records], axis=1)
    return any(len(row[row >= 0]) > len(np.unique(row[row >= 0])) for row in seen)


def congruent(own: Record, other: Record) -> bool:
    """Same shape, axes and positions, and no padding: nothing has to be put in order."""
    if own.shape != other.shape or own.axes != other.axes:
        return False
    mine, theirs = batch_positions(own), batch_positions(other)
    return bool(mine.min(initial=0) >= 0) and np.array_equal(mine, theirs)


def _unanswered(theirs: Sequence[Record], positions: np.ndarray) -> str:
    """Rows that the reference recorded at this step and that the candidate does not have."""
    for record in theirs:
        for sequence, wanted in enumerate(batch_positions(record)):
            lacking = np.setdiff1d(wanted[wanted >= 0], positions[sequence])
            if lacking.size:
                return f"sequence {sequence}: no row for position {spans(lacking.tolist())}"
    return ""


def _unasked(positions: np.ndarray, found: np.ndarray) -> str:
    """Rows that the candidate has at positions which the reference never computed."""
    for sequence, (row, known) in enumerate(zip(positions, found, strict=True)):
        extra = np.unique(row[(row >= 0) & ~known])
        if extra.size:
            return f"sequence {sequence}: rows at position {spans(extra.tolist())} are not the reference's"
    return ""


def _kind(axes: str) -> str:
    """Axes with cache rows and tokens alike: both run over absolute positions."""
    return axes.replace("p", "t")


def _signature(record: Record) -> tuple[str, str, tuple[int, ...]]:
    return record.axes, record.dtype, rows_first(np.empty(record.shape, np.bool_), record.axes).shape[2:]


def _without_hidden(
    pair: Pair, expected: np.ndarray, actual: np.ndarray, positions: np.ndarray, found: np.ndarray
) -> Pair:
    """Leave out what no token stands behind: columns that are padding everywhere, else equal zeros."""
    keep = found.any(axis=0)
    if not keep.any():
        pair.problem = "the reference holds none of these positions" if pair.reference is not None else ""
        return pair
    expected, actual = expected[:, keep], np.array(actual[:, keep])
    lost = ~found[:, keep]
    row = int(np.prod(actual.shape[2:], dtype=np.int64))
    pair.hidden, pair.padded = int((~found).sum()) * row, int(lost.sum()) * row
    expected[lost], actual[lost] = 0, 0
    pair.expected = np.ascontiguousarray(rows_back(expected, pair.axes))
    pair.actual = np.ascontiguousarray(rows_back(actual, pair.axes))
    pair.positions = np.where(found, positions, -1)[:, keep]
    return pair
