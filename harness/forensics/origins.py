"""Where the content of a wrong row may come from; each origin says which of the wrong rows it explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from .rows import Array, View, Wrong

#: Rows that every origin is tried on; the best one is then tried on all.
TRIED = 192
#: Rows of these whose nearest other row is looked for, and how many neighbours are held against each.
SAMPLES, NEIGHBOURS = 24, 4
#: Different origins that samples may propose.
MOST_PROPOSALS = 12
#: Numbers that a row is sketched with to find its like: enough to tell rows apart beside bf16 noise.
SKETCH = 4
#: Narrow formats a cache may have been kept in.
NARROW = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


Test = Callable[[Wrong], Array]
"""Which of some wrong rows an origin explains, bool `[N]`."""


@dataclass(frozen=True)
class Origin:
    """One explanation: its kind, the words after "rows 3..7", and the test of which rows it explains.

    `shift` is the distance in positions where the origin is one, `whole` marks one that goes before others
    that explain as much.
    """

    kind: str
    words: str
    explains: Test
    shift: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Pool:
    """All rows of one tap by position, `[B, P, H, D]`, and which are known `[B, P]`."""

    kind: str
    words: str
    rows: Array
    known: Array


def best(wrong: Wrong, origins: Iterator[Origin]) -> tuple[Origin, Array] | None:
    """The origin that explains most of some of the rows, and which of all of them it explains."""
    some = wrong.some(TRIED)
    scored = [
        (int(origin.explains(some).sum()), origin.whole, -at, origin) for at, origin in enumerate(origins)
    ]
    count, _, _, found = max(scored, default=(0, False, 0, None), key=lambda one: one[:3])
    return (found, found.explains(wrong)) if found is not None and count else None


def every(rows: Wrong) -> Array:
    """All of them."""
    return np.ones(len(rows), np.bool_)


def never_written() -> Iterator[Origin]:
    """Zeros, or something that is no number."""
    yield Origin("missing", "missing (zero, never written)", _zero)
    yield Origin("missing", "no numbers (NaN)", _no_number)


def _zero(rows: Wrong) -> Array:
    return np.asarray((rows.held == 0).all(axis=1))


def _no_number(rows: Wrong) -> Array:
    return np.asarray(np.isnan(rows.held).any(axis=1))


def stale(wrong: Wrong, earlier: Sequence[tuple[int, View]]) -> Iterator[Origin]:
    """What the same slot held at an earlier step, the newest first."""
    for step, view in earlier:

        def same(rows: Wrong, view: View = view) -> Array:
            before = view.rows[rows.sequence, rows.slot, rows.head]
            return np.asarray((before == rows.held).all(axis=1) & before.any(axis=1))

        yield Origin("stale", f"stale (as of step {step})", same, whole=bool(same(wrong).all()))


def rounded() -> Iterator[Origin]:
    """The right row in a narrower number format, rounded or cut off."""
    for name, dtype in NARROW.items():
        yield Origin(
            "downcast", f"rounded to {name}", partial(_narrowed, partial(np.ndarray.astype, dtype=dtype))
        )
    yield Origin("downcast", "truncated to bfloat16", partial(_narrowed, _cut_off))


def _narrowed(narrow: Callable[[Array], Array], rows: Wrong) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        made = narrow(rows.wanted.astype(np.float32)).astype(np.float64)
    return np.asarray((np.nan_to_num(made) == np.nan_to_num(rows.held)).all(axis=1))


def _cut_off(rows: Array) -> Array:
    return (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def scaled(wrong: Wrong) -> Iterator[Origin]:
    """The right row times one number, the middle one of those that fit each row best."""
    energy = np.einsum("nd,nd->n", wrong.wanted, wrong.wanted)
    fits = np.einsum("nd,nd->n", wrong.held, wrong.wanted)[energy > 0] / energy[energy > 0]
    factor = float(np.median(fits)) if fits.size else 0.0
    if np.isfinite(factor) and factor not in (0.0, 1.0):
        yield Origin("scaled", f"scaled by {factor:.4g}", partial(_times, factor))


def _times(factor: float, rows: Wrong) -> Array:
    return rows.are(rows.wanted * factor)


def same_place(wrong: Wrong, pool: Pool) -> Iterator[Origin]:
    """The row of another tap, or of another time, at the same sequence, head and position."""
    if pool.rows.shape[3] == wrong.held.shape[1]:
        yield Origin(pool.kind, pool.words, partial(_taken, pool, (True, 0, -1, -1)))


Rotate = Callable[[Array, Array], tuple[Array, Array]]
"""Rotary rows cos, sin `[N, D]` for sequences `[N]` and positions `[N]`."""

#: Words, and by how often a key that was rotated once is turned further.
TURNED = {
    "unrotated keys (as they were before rotation)": -1,
    "rotated twice": 1,
    "rotated backwards": -2,
}


def rotated_otherwise(tables: Rotate) -> Iterator[Origin]:
    """Keys before their rotation, rotated twice, backwards, or as for another position."""
    for words, times in TURNED.items():
        yield Origin("rotation", words, partial(_rotated, tables, times))
    for shift in (-2, -1, 1, 2):
        yield Origin("rotation", f"rotated as for position p{shift:+d}", partial(_replaced, tables, shift))


def _rotated(tables: Rotate, times: int, rows: Wrong) -> Array:
    cos, sin = tables(rows.sequence, rows.position)
    made = rows.wanted
    for _ in range(abs(times)):
        made = made * cos + np.sign(times) * _turned(made) * sin
    return rows.are(made)


def _replaced(tables: Rotate, shift: int, rows: Wrong) -> Array:
    cos, sin = tables(rows.sequence, rows.position)
    plain, other = rows.wanted * cos - _turned(rows.wanted) * sin, rows.position + shift
    cos, sin = tables(rows.sequence, np.maximum(other, 0))
    return rows.are(plain * cos + _turned(plain) * sin, other >= 0)


def _turned(rows: Array) -> Array:
    """(-second half, first half): what the sine is multiplied with when halves are rotated."""
    half = rows.shape[-1] // 2
    return np.concatenate([-rows[..., half:], rows[..., :half]], axis=-1)


Place = tuple[bool, int, int, int]
"""Whether a position is a distance, the position, and the sequence and head, -1 where they are kept."""


def elsewhere(wrong: Wrong, pool: Pool) -> Iterator[Origin]:
    """Rows of other positions, heads or sequences of a tap, as samples of the wrong rows suggest."""
    if pool.rows.shape[3] != wrong.held.shape[1]:
        return
    sample, votes = wrong.some(SAMPLES), Counter[Place]()
    for at, (b, p, h) in _likes(sample, pool):
        kept = -1 if b == sample.sequence[at] else b, -1 if h == sample.head[at] else h
        votes[True, p - int(sample.position[at]), *kept] += 1
        votes[False, p, *kept] += 1
    for place, _ in votes.most_common(MOST_PROPOSALS):
        origin = _moved(wrong, pool, place)
        if origin is not None:
            yield origin


def _likes(sample: Wrong, pool: Pool) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Samples that a row of the pool is like, and its sequence, position and head."""
    sequences, length, heads, width = pool.rows.shape
    rows = pool.rows.reshape(-1, width)
    vectors = np.random.default_rng(0).standard_normal((width, SKETCH)).astype(rows.dtype)
    theirs, own = rows @ vectors, np.nan_to_num(sample.held).astype(rows.dtype) @ vectors
    far = np.einsum("ms,ms->m", theirs, theirs) - 2 * own @ theirs.T
    known = np.broadcast_to(pool.known[:, :, None], (sequences, length, heads)).reshape(-1)
    far[:, ~known] = np.inf
    count = min(NEIGHBOURS, far.shape[1])
    for near in np.argpartition(far, count - 1, axis=1)[:, :count].T:
        for at in np.flatnonzero(sample.are(rows[near].astype(np.float64), known[near])).tolist():
            b, p, h = (int(i) for i in np.unravel_index(near[at], (sequences, length, heads)))
            yield at, (b, p, h)


def _taken(pool: Pool, place: Place, rows: Wrong) -> Array:
    """Which wrong rows hold the pool's row of a place."""
    distance, p, b, h = place
    _, length, heads, _ = pool.rows.shape
    position = rows.position + p if distance else np.full(len(rows), p)
    sequence = rows.sequence if b < 0 else np.full(len(rows), b)
    head = rows.head if h < 0 else np.full(len(rows), h)
    inside = (position >= 0) & (position < length) & (head < heads)
    at = sequence, np.where(inside, position, 0), np.where(inside, head, 0)
    return rows.are(pool.rows[at].astype(np.float64), inside & pool.known[at[:2]])


def _moved(wrong: Wrong, pool: Pool, place: Place) -> Origin | None:
    """One proposal in words; None for the place where the row belongs. One row alone is a duplicate."""
    distance, p, b, h = place
    words = f" of head {h}" * (h >= 0) + f" of sequence {b}" * (b >= 0) + pool.words
    test = partial(_taken, pool, place)
    if distance:
        told = f"shifted: holding position p{p:+d}{words}" if p else f"holding the rows{words}"
        kind = "shifted" if p else "other place"
        return Origin(kind, told, test, shift=0 if words else p) if p or words else None
    explained = test(wrong)
    alone = int(explained.sum()) == 1
    shift = p - int(wrong.position[explained][0]) if alone and not words else 0
    told = f"a duplicate of position {p}" if alone else f"duplicates of position {p}"
    return Origin("duplicated", told + words, test, shift=shift, whole=alone)
