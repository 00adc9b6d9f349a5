"""Measures one aligned pair: streamed from both files when large, at once when small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .metrics import LogitMetrics, Measurer, Metrics, measure, measure_logits

if TYPE_CHECKING:
    from .align import Pair
    from .tolerance import Tolerance

#: Elements per side that are read at once; larger records are streamed in blocks of this size.
BLOCK = 4 * 1024 * 1024


def measure_pair(pair: Pair, tolerance: Tolerance | None) -> tuple[Metrics, LogitMetrics | None]:
    """All metrics of one pair; for logits (last axis `v`) those of the distributions too."""
    atol = rtol = 0.0
    if tolerance is not None:
        bound = tolerance.bound(pair.tap, _dtype(pair, expected=True), _dtype(pair, expected=False))
        atol, rtol = bound.atol, bound.rtol
    if pair.direct and _size(pair) > BLOCK:
        return _streamed(pair, atol, rtol), None
    actual, expected = _arrays(pair)
    metrics = measure(actual, expected, axes=pair.axes, atol=atol, rtol=rtol)
    return metrics, _logits(pair, actual, expected)


def _arrays(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    if pair.actual is not None and pair.expected is not None:
        return pair.actual, pair.expected
    assert pair.candidate is not None
    assert pair.reference is not None
    return pair.candidate.read(), pair.reference.read()


def _size(pair: Pair) -> int:
    assert pair.reference is not None
    return pair.reference.size


def _streamed(pair: Pair, atol: float, rtol: float) -> Metrics:
    assert pair.candidate is not None
    assert pair.reference is not None
    measurer = Measurer(pair.reference.shape, axes=pair.axes, atol=atol, rtol=rtol)
    for start in range(0, pair.reference.size, BLOCK):
        stop = min(start + BLOCK, pair.reference.size)
        measurer.feed(pair.candidate.read_flat(start, stop), pair.reference.read_flat(start, stop))
    return measurer.finish()


def _logits(pair: Pair, actual: np.ndarray, expected: np.ndarray) -> LogitMetrics | None:
    if pair.axes.split()[-1:] != ["v"] or not np.isfinite(expected.astype(np.float64)).all():
        return None
    return measure_logits(actual, expected) if np.isfinite(actual.astype(np.float64)).all() else None


def _dtype(pair: Pair, *, expected: bool) -> str:
    if expected:
        return str(pair.expected.dtype.name) if pair.expected is not None else pair.reference.dtype  # type: ignore[union-attr]
    return pair.candidate.dtype  # type: ignore[union-attr]
