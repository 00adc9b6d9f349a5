"""Orders of rows: found by projecting rows on a line, and said in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from .weight import Floats

Order = np.ndarray[Any, np.dtype[np.int64]]
MANY = 6


def order_of(actual: Floats, expected: Floats) -> Order | None:
    """The `p` for which `expected[p]` is likely to be `actual`, both `[n, m]`; None where there is none.

    Rows are told apart by one number each, their product with a random vector.
    """
    direction = np.random.default_rng(0).standard_normal(actual.shape[1])
    theirs, own = (np.asarray(x, np.float64) @ direction for x in (expected, actual))
    order = np.empty(len(own), np.int64)
    order[np.argsort(own, kind="stable")] = np.argsort(theirs, kind="stable")
    spread = float(np.std(theirs)) or 1.0
    return order if np.allclose(own, theirs[order], atol=0.05 * spread) else None


def in_words(order: Order, what: str) -> str:
    """`half to interleaved per head of 32`, `rolled by 1`, `blocks of 64 rows in the order 1, 0` ..."""
    n = len(order)
    if np.array_equal(order, np.arange(n)[::-1]):
        return f"{what} reversed"
    for width in (d for d in range(4, n + 1, 2) if n % d == 0):
        heads = np.arange(n).reshape(-1, 2, width // 2).transpose(0, 2, 1).reshape(-1)
        of = f"per head of {width}" if width < n else "over all of them"
        if np.array_equal(order, heads):
            return f"{what} half to interleaved {of}"
        if np.array_equal(order, np.argsort(heads)):
            return f"{what} interleaved to half {of}"
    return _blocks(order, what) or _few(order, what)


def _blocks(order: Order, what: str) -> str:
    """Whole blocks moved, the largest that explain it; a shift of all of them is rolled."""
    n = len(order)
    if np.array_equal(order, (np.arange(n) + order[0]) % n) and n != 2 * order[0]:
        by = int(order[0]) if order[0] <= n // 2 else int(order[0]) - n
        return f"{what} rolled by {by}"
    for size in (n // count for count in range(2, n // 2 + 1) if n % count == 0):
        blocks = order.reshape(-1, size)
        if (blocks[:, 0] % size == 0).all() and (np.diff(blocks, axis=1) == 1).all():
            firsts = [int(first) // size for first in blocks[:, 0]]
            shown = ", ".join(map(str, firsts[:12])) + (" ..." if len(firsts) > 12 else "")
            return f"blocks of {size} {what} in the order {shown}"
    return ""


def _few(order: Order, what: str) -> str:
    moved = np.flatnonzero(order != np.arange(len(order)))
    if len(moved) == 2:
        return f"{what} {moved[0]} and {moved[1]} exchanged"
    shown = ", ".join(map(str, moved[:MANY])) + (" ..." if len(moved) > MANY else "")
    return f"{len(moved)} of {len(order)} {what} moved ({shown})"
