"""Where an error sits, in words: which head, channel, token, position, page or sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .pages import PAGE, places_in_words

if TYPE_CHECKING:
    from .metrics import Metrics, SliceProfile

WORDS = {
    "b": ("sequence", "sequences"),
    "t": ("token", "tokens"),
    "p": ("position", "positions"),
    "h": ("head", "heads"),
    "d": ("channel", "channels"),
    "f": ("feature", "features"),
    "v": ("vocabulary entry", "vocabulary entries"),
    "c": ("plane", "planes"),
    "z": ("complex part", "complex parts"),
}
GAP = 4.0
"""Indices are named when their errors stand above all others by this factor; noise spreads less."""
DEPTH = 1e-3
"""Errors below this share of the worst index's count as equally small."""
WRONG_TOO = 0.01
"""Indices off by more than this share of the worst are wrong as well."""
QUIET = 0.1
"""Errors are weighed against the RMS of their slice, at least against this share of the tensor's."""

EVERYWHERE = "everywhere"
"""What is said where no index stands out."""

Array = np.ndarray[Any, Any]


def worst_slice(
    metrics: Metrics, axes: str = "", shape: tuple[int, ...] | None = None, *, positions: Array | None = None
) -> str:
    """Where the error sits: "head 1, positions 16..510", "token at position 12 of sequence 0", "everywhere".

    An axis is named when some of its indices stand out. `axes` and `shape` default to what was measured.
    `positions` `[T]` or `[B, T]` are the absolute positions of the axis t or p; where they fill blocks of
    PAGE rows, the pages are named. Empty without an error.
    """
    if metrics.exact_zero:
        return ""
    names = tuple(axes.split()) or metrics.plan.axes
    hits = _hits(metrics, names) if metrics.profiles else _worst_place(metrics, names)
    sequences = hits.get("b")
    sequence = int(sequences[0]) if sequences is not None and sequences.size == 1 else None
    parts = [
        _mostly(metrics, names, name, hit) + _words(name, names.index(name), hit, positions, sequence)
        for name, hit in hits.items()
        if name != "b"
    ]
    if sequences is None:
        return ", ".join(parts) or EVERYWHERE
    where = _mostly(metrics, names, "b", sequences) + _words("b", names.index("b"), sequences, None, None)
    return f"{', '.join(parts)} of {where}" if parts else where


def _hits(metrics: Metrics, names: tuple[str, ...]) -> dict[str, Array]:
    """Indices that stand out, per axis that has such."""
    one_sided = bool(metrics.nan_mismatch or metrics.inf_mismatch)
    found = {}
    for key, profile in metrics.profiles.items():
        values = profile.nonfinite if one_sided else _weighed(profile, metrics.rms_expected)
        hit = outstanding(values)
        if hit.size:
            found[names[metrics.plan.axes.index(key)]] = hit
    return found


def _mostly(metrics: Metrics, names: tuple[str, ...], name: str, hit: Array) -> str:
    """ "mostly " where other indices of the axis are off as well, by more than noise beside a fault."""
    if not metrics.profiles or metrics.nan_mismatch or metrics.inf_mismatch:
        return ""
    values = _weighed(metrics.profiles[metrics.plan.axes[names.index(name)]], metrics.rms_expected)
    others = np.ones(values.size, bool)
    others[hit] = False
    return "mostly " if values[others].max(initial=0.0) > WRONG_TOO * values.max() else ""


def _weighed(profile: SliceProfile, whole: float) -> Array:
    """RMS errors of slices over their scale: a fault of 8 % everywhere is not put on the loudest channel."""
    scale = np.maximum(profile.ref_rms, QUIET * whole)
    return np.asarray(profile.err_rms / np.where(scale > 0.0, scale, 1.0))


def outstanding(values: Array) -> Array:
    """Indices above the widest gap in the ranking of values; none when no gap is as wide as GAP."""
    top = values.max(initial=0.0)
    if values.size < 2 or not 0.0 < top < np.inf:
        return np.flatnonzero(values == top) if top == np.inf else np.empty(0, np.int64)
    shares = np.maximum(values / top, DEPTH)
    ranked = np.sort(shares)[::-1]
    gaps = ranked[:-1] / ranked[1:]
    widest = int(gaps.argmax())
    if gaps[widest] < GAP:
        return np.empty(0, np.int64)
    return np.flatnonzero(shares >= ranked[widest])


def _worst_place(metrics: Metrics, names: tuple[str, ...]) -> dict[str, Array]:
    """Without profiles only the place of the largest error is known."""
    return {name: np.array([i]) for name, i in zip(names, metrics.unravel(), strict=False)}


def _words(name: str, dim: int, hit: Array, positions: Array | None, sequence: int | None) -> str:
    absolute = _absolute(name, hit, positions, sequence)
    one, many = WORDS.get(name, (f"{name} index", f"{name} indices"))
    if name.isdigit():
        one, many = f"axis {dim} index", f"axis {dim} indices"
    if absolute is not None and name == "t":
        one, many = "token at position", "tokens at positions"
    if absolute is None:
        return places_in_words(hit, None, one=one, many=many)
    return places_in_words(absolute, PAGE, one=one, many=many)


def _absolute(name: str, hit: Array, positions: Array | None, sequence: int | None) -> Array | None:
    """Absolute positions of indices of a token axis; None where they are unknown or differ by sequence."""
    if positions is None or name not in ("t", "p"):
        return None
    table = np.atleast_2d(positions)
    if sequence is None and (table != table[0]).any():
        return None
    row = table[min(sequence or 0, len(table) - 1)]
    if hit[-1] >= row.size:
        return None
    known = row[hit]
    return np.unique(known[known >= 0]) if (known >= 0).any() else None
