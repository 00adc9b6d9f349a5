"""Where an error sits, in words: which head, channel, token or position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .metrics import Metrics, SliceProfile

WORDS = {
    "b": ("sequence", "sequences"),
    "t": ("token", "tokens"),
    "p": ("position", "positions"),
    "h": ("head", "heads"),
    "d": ("channel", "channels"),
    "v": ("vocabulary entry", "vocabulary entries"),
    "c": ("plane", "planes"),
    "z": ("complex part", "complex parts"),
}
CONCENTRATED = 0.5
"""Indices whose RMS error exceeds this share of the worst index's belong to the fault."""
NAMED_SHARE = 0.5
"""An axis is named when at most this share of its indices belongs to the fault."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def worst_slice(
    metrics: Metrics,
    axes: str = "",
    shape: tuple[int, ...] | None = None,
    *,
    positions: Floats | None = None,
) -> str:
    """Where the error sits: "head 1, positions 16..510", "channel 17", or "everywhere".

    `axes` and `shape` default to those that were measured. `positions` `[T]` or `[B, T]` are the absolute
    positions of the axis t or p. Empty when there is no error.
    """
    if metrics.exact_zero:
        return ""
    names = axes.split() or metrics.axes.split()
    profiles = metrics.profiles
    if not profiles:
        return _single(metrics)
    parts = []
    for dim, (key, profile) in enumerate(profiles.items()):
        hit = _hit(profile)
        if hit.size and hit.size < profile.err_rms.size and hit.size <= max(1, NAMED_SHARE * profile.err_rms.size):
            parts.append(_words(key, dim, hit, bool(names), positions))
    return ", ".join(parts) if parts else "everywhere"


def _single(metrics: Metrics) -> str:
    index = metrics.unravel()
    return f"worst at {list(index)}" if index else "everywhere"


def _hit(profile: SliceProfile) -> np.ndarray[Any, Any]:
    """Indices that belong to the fault: one-sided NaN or Inf first, else errors near the worst."""
    if profile.err_rms.max(initial=0.0) == 0.0:
        return np.flatnonzero(profile.nonfinite)
    return np.flatnonzero(profile.err_rms > CONCENTRATED * profile.err_rms.max())


def _words(key: str, dim: int, hit: Any, named: bool, positions: Floats | None) -> str:
    if not named or key.isdigit():
        one, many = f"axis {dim} index", f"axis {dim} indices"
    else:
        one, many = WORDS.get(key, (f"{key} index", f"{key} indices"))
    if hit.size == 1:
        return f"{one} {hit[0]}"
    if hit[-1] - hit[0] + 1 == hit.size:
        return f"{many} {hit[0]}..{hit[-1]}"
    return f"{many} {', '.join(str(i) for i in hit[:4])}{' ...' if hit.size > 4 else ''}"
