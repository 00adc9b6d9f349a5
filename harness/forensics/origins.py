"""Where the content of a wrong row may come from; each origin says which of the wrong rows it explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .rows import Array, View, Wrong

#: Rows whose nearest other row is looked for; what they vote for is then tried on all.
SAMPLES = 24
#: Different origins that samples may propose.
MOST_PROPOSALS = 12
#: Values of the rows that samples are held against; larger pools are only tried place by place.
SEARCHED = 1 << 23
#: Narrow formats a cache may have been kept in.
NARROW = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


@dataclass(frozen=True)
class Origin:
    """One explanation: its kind, the words after "rows 3..7", and which wrong rows `[N]` it explains.

    `shift` is the distance in positions where the origin is one.
    """

    kind: str
    words: str
    explains: Array
    shift: int = 0
    whole: bool = False

    @property
    def rank(self) -> tuple[int, bool]:
        """More rows first; of equals a view that was not written at all, and of one row a duplicate."""
        count = int(self.explains.sum())
        return count, self.whole or (self.kind == "duplicated" and count == 1)


@dataclass(frozen=True)
class Pool:
    """All rows of one tap by position, `[B, P, H, D]`, and which are known `[B, P]`."""

    kind: str
    words: str
    rows: Array
    known: Array


def never_written(wrong: Wrong) -> Iterator[Origin]:
    """Zeros, or something that is no number."""
    empty = (wrong.held == 0).all(axis=1)
    if empty.any():
        yield Origin("missing", "missing (zero, never written)", empty)
    broken = np.asarray(np.isnan(wrong.held).any(axis=1))
    if broken.any():
        yield Origin("missing", "no numbers (NaN)", broken)


def stale(wrong: Wrong, earlier: Sequence[tuple[int, View]]) -> Iterator[Origin]:
    """What the same slot held at an earlier step, the newest first."""
    for step, view in earlier:
        rows = view.rows[wrong.sequence, wrong.slot, wrong.head]
        same = (rows == wrong.held).all(axis=1) & rows.any(axis=1)
        if same.any():
            yield Origin("stale", f"stale (as of step {step})", same, whole=bool(same.all()))


def rounded(wrong: Wrong) -> Iterator[Origin]:
    """The right row in a narrower number format, rounded or cut off."""
    wanted = wrong.wanted.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        tried = {f"rounded to {name}": wanted.astype(dtype) for name, dtype in NARROW.items()}
    tried["truncated to bfloat16"] = (wanted.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for words, narrow in tried.items():
        same = (np.nan_to_num(narrow.astype(np.float64)) == np.nan_to_num(wrong.held)).all(axis=1)
        if same.any():
            yield Origin("downcast", words, same)


def same_place(wrong: Wrong, pool: Pool) -> Iterator[Origin]:
    """The row of another tap, or of another time, at the same sequence, head and position."""
    _, length, heads, width = pool.rows.shape
    if width != wrong.held.shape[1] or wrong.head.max() >= heads or wrong.position.max() >= length:
        return
    rows = pool.rows[wrong.sequence, wrong.position, wrong.head]
    explains = wrong.are(rows, pool.known[wrong.sequence, wrong.position])
    if explains.any():
        yield Origin(pool.kind, pool.words, explains)


Rotate = Callable[[Array, Array], tuple[Array, Array]]
"""Rotary rows cos, sin `[N, D]` for sequences `[N]` and positions `[N]`."""


def rotated_otherwise(wrong: Wrong, tables: Rotate) -> Iterator[Origin]:
    """Keys before their rotation, rotated twice, backwards, or as for another position."""
    cos, sin = tables(wrong.sequence, wrong.position)
    plain = wrong.wanted * cos - _turned(wrong.wanted) * sin
    tried: list[tuple[str, Array, Array | None]] = [
        ("unrotated keys (as they were before rotation)", plain, None),
        ("rotated twice", wrong.wanted * cos + _turned(wrong.wanted) * sin, None),
        ("rotated backwards", plain * cos - _turned(plain) * sin, None),
    ]
    for shift in (-2, -1, 1, 2):
        other = wrong.position + shift
        cos, sin = tables(wrong.sequence, np.maximum(other, 0))
        rows = plain * cos + _turned(plain) * sin
        tried.append((f"rotated as for position p{shift:+d}", rows, other >= 0))
    for words, rows, known in tried:
        explains = wrong.are(rows, known)
        if explains.any():
            yield Origin("rotation", words, explains)


def _turned(rows: Array) -> Array:
    """(-second half, first half): what the sine is multiplied with when halves are rotated."""
    half = rows.shape[-1] // 2
    return np.concatenate([-rows[..., half:], rows[..., :half]], axis=-1)


def elsewhere(wrong: Wrong, pool: Pool) -> Iterator[Origin]:
    """Rows of other positions, heads or sequences of a tap, as samples of the wrong rows suggest."""
    sequences, length, heads, width = pool.rows.shape
    if pool.rows.size > SEARCHED or width != wrong.held.shape[1]:
        return
    rows = pool.rows.reshape(-1, width)
    known = np.broadcast_to(pool.known[:, :, None], (sequences, length, heads)).reshape(-1)
    sample = wrong.only(np.unique(np.linspace(0, len(wrong) - 1, SAMPLES).astype(np.int64)))
    held = np.nan_to_num(sample.held)
    gaps = np.einsum("nd,nd->n", rows, rows) - 2 * held @ rows.T
    gaps[:, ~known] = np.inf
    nearest = gaps.argmin(axis=1)
    found = np.flatnonzero(sample.are(rows[nearest], known[nearest]))
    votes: Counter[tuple[str, int, int, int]] = Counter()
    for at in found:
        b, p, h = (int(i) for i in np.unravel_index(nearest[at], (sequences, length, heads)))
        from_b = -1 if b == sample.sequence[at] else b
        from_h = -1 if h == sample.head[at] else h
        votes["shifted", p - int(sample.position[at]), from_b, from_h] += 1
        votes["duplicated", p, from_b, from_h] += 1
    for (kind, p, b, h), _ in votes.most_common(MOST_PROPOSALS):
        yield from _moved(wrong, pool, kind, p, b, h)


def _moved(wrong: Wrong, pool: Pool, kind: str, p: int, b: int, h: int) -> Iterator[Origin]:
    """One proposal tried on all wrong rows: p is a distance or a position; b or h is -1 where it is kept."""
    length = pool.rows.shape[1]
    position = wrong.position + p if kind == "shifted" else np.full(len(wrong), p)
    inside = (position >= 0) & (position < length)
    sequence = wrong.sequence if b < 0 else np.full(len(wrong), b)
    head = wrong.head if h < 0 else np.full(len(wrong), h)
    inside &= head < pool.rows.shape[2]
    at = sequence, np.where(inside, position, 0), np.where(inside, head, 0)
    explains = wrong.are(pool.rows[at], inside & pool.known[at[:2]])
    if not explains.any():
        return
    place = f" of head {h}" * (h >= 0) + f" of sequence {b}" * (b >= 0) + pool.words
    if kind == "duplicated":
        alone = int(explains.sum()) == 1
        shift = p - int(wrong.position[explains][0]) if alone and not place else 0
        words = f"a duplicate of position {p}" if alone else f"duplicates of position {p}"
        yield Origin("duplicated", words + place, explains, shift=shift)
    elif p:
        yield Origin("shifted", f"shifted: they hold position p{p:+d}{place}", explains, shift=p)
    elif place:
        yield Origin("other place", f"the rows{place}", explains)


def best(wrong: Wrong, origins: Iterator[Origin]) -> Origin | None:
    """The origin that explains most rows; None without any."""
    found = sorted(origins, key=lambda origin: origin.rank, reverse=True)
    return found[0] if found else None
