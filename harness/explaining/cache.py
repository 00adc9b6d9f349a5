"""Rows of keys and values on their way from the step that made them to the step that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .maths import rotate, rounded, unrotate, whole
from .op import Op, Values, Variant, hypothesis

CACHE = frozenset({"cache"})


def _order(op: Op) -> Iterator[Values]:
    """For each sequence, its rows from the oldest to the newest."""
    for sequence in np.unique(op.sequence):
        rows = np.flatnonzero(op.sequence == sequence)
        yield rows[np.argsort(op.position[rows])]


def _moved(op: Op, take: Callable[[int], Values]) -> Values:
    """Rows of each sequence taken from other places: `take(n)` are the places for n rows."""
    out = op.expected.copy()
    for rows in _order(op):
        out[rows] = op.expected[rows[take(len(rows))]]
    return out


@hypothesis("cache", CACHE)
def rows_shifted(op: Op) -> Iterator[Variant]:
    """Each row stands where its neighbour should: rolled too far, or not far enough."""
    for by in (1, -1, 2, -2):
        found = op.around.rows(op.reads[0], -by)
        if found is not None and found[1].any():
            yield Variant(f"cache rows shifted by {by:+d}", found[0], found[1])


@hypothesis("cache", CACHE)
def rows_rotated(op: Op) -> Iterator[Variant]:
    """A roll that brings the end round to the beginning."""
    for by in (1, -1, 2, -2):
        yield Variant(f"cache rows rolled round by {by:+d}", _moved(op, partial(_rolled, by=by)))


def _rolled(count: int, by: int) -> Values:
    return np.roll(np.arange(count), by)


@hypothesis("cache", CACHE)
def rows_reversed(op: Op) -> Iterator[Variant]:
    yield Variant("cache rows in reverse order", _moved(op, lambda n: np.arange(n)[::-1]))


@hypothesis("cache", CACHE)
def newest_row_stale(op: Op) -> Iterator[Variant]:
    """The newest row was not stored: the one before stands in its place, or nothing."""
    yield Variant(
        "the newest cache row a copy of the one before",
        _moved(op, lambda n: np.minimum(np.arange(n), max(n - 2, 0))),
    )
    newest = np.zeros(len(op.expected), np.bool_)
    for rows in _order(op):
        newest[rows[-1]] = True
    yield Variant("the newest cache row not stored (zeros)", np.where(_wide(newest, op), 0.0, op.expected))


def _wide(rows: Values, op: Op) -> Values:
    return rows.reshape(-1, *[1] * (op.expected.ndim - 1))


@hypothesis("cache", CACHE)
def one_row_wrong(op: Op) -> Iterator[Variant]:
    """A row of zeros, a copy of its neighbour, or two neighbours in each other's place, wherever that is."""
    for rows in _order(op) if len(op.expected) <= 256 else ():
        for at, row in enumerate(rows):
            zero = op.expected.copy()
            zero[row] = 0.0
            yield Variant(f"cache row {int(op.position[row])} zero", zero)
            if at:
                copied, swapped = op.expected.copy(), op.expected.copy()
                copied[row] = op.expected[rows[at - 1]]
                swapped[[row, rows[at - 1]]] = op.expected[[rows[at - 1], row]]
                yield Variant(f"cache row {int(op.position[row])} a copy of the row before", copied)
                yield Variant(
                    f"cache rows {int(op.position[rows[at - 1]])} and {int(op.position[row])} swapped",
                    swapped,
                )


@hypothesis("cache", CACHE)
def row_missing(op: Op) -> Iterator[Variant]:
    """One row was skipped, and all older ones moved up by one."""
    for rows in _order(op) if len(op.expected) <= 256 else ():
        for at in range(1, len(rows) - 1):
            values = op.expected.copy()
            values[rows[1 : at + 1]] = op.expected[rows[:at]]
            yield Variant(f"cache row {int(op.position[rows[at]])} missing, older rows moved up", values)


@hypothesis("cache", CACHE)
def rows_of_another_cache(op: Op) -> Iterator[Variant]:
    """Another layer's rows, or keys where values belong."""
    for tap in op.around.alike():
        found = op.around.rows(tap)
        if found is not None and found[1].any() and found[0].shape == op.expected.shape:
            yield Variant(f"rows of {tap}", found[0], found[1])


@hypothesis("cache", CACHE)
def keys_stored_unrotated(op: Op) -> Iterator[Variant]:
    for turned, words in ((unrotate, "keys stored before RoPE"), (rotate, "keys rotated once more")):
        reads = op.around.inputs(op.reads[0])
        found = op.around.rows(reads[1]) if len(reads) > 1 else None
        if found is not None and found[0].shape[1:] == (2, op.expected.shape[-1]):
            table = found[0]
            there = found[1] & (table[:, 0] ** 2 + table[:, 1] ** 2 > 0.5).all(-1)
            safe = np.where(there[:, None, None], table, 1.0)
            yield Variant(words, turned(op.expected, safe[:, 0], safe[:, 1]), there)


@hypothesis("cache", CACHE)
def rows_zero(op: Op) -> Iterator[Variant]:
    """Never filled, all of them or all but the newest."""
    yield Variant("cache rows never filled", np.zeros_like(op.expected))
    newest = np.zeros(len(op.expected), np.bool_)
    for rows in _order(op):
        newest[rows[-1]] = True
    yield Variant("cache rows lost but for the newest", np.where(_wide(newest, op), op.expected, 0.0))
    yield Variant("the newest cache row in every place", _moved(op, lambda n: np.full(n, n - 1)))
    yield Variant("the oldest cache row in every place", _moved(op, lambda n: np.zeros(n, np.int64)))


@hypothesis("cache", CACHE)
def cache_heads_moved(op: Op) -> Iterator[Variant]:
    if op.expected.ndim == 3 and op.expected.shape[1] > 1:
        yield Variant("cache heads in reverse order", op.expected[:, ::-1])
        yield Variant(
            "the first cache head in every place", np.repeat(op.expected[:, :1], op.expected.shape[1], 1)
        )


@hypothesis("cache", CACHE)
def one_cache_head_lost(op: Op) -> Iterator[Variant]:
    """Only one head is wrong: zero, or without all but the newest row."""
    for head in range(op.expected.shape[1] if op.expected.ndim == 3 else 0):
        zero = op.expected.copy()
        zero[:, head] = 0.0
        yield Variant(f"head {head} of the cache never filled", zero)


@hypothesis("cache", CACHE)
def cache_in_low_precision(op: Op) -> Iterator[Variant]:
    for name in ("bfloat16", "float16"):
        yield Variant(f"a cache kept in {name}", rounded(op.expected, name))
    for words, axis in (("row and head", -1), ("row", (-1, -2))):
        most = np.abs(op.expected).max(axis, keepdims=True)
        yield Variant(f"a cache kept in int8, a scale for each {words}", whole(op.expected, most))


@hypothesis("cache", CACHE)
def cache_of_another_sequence(op: Op) -> Iterator[Variant]:
    mixed = op.around.mixed(op.reads[0])
    if mixed is not None:
        yield Variant("cache rows of another sequence", mixed)
