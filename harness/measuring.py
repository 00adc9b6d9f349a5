"""Measures one aligned pair: streamed from both files when large, at once when small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .metrics import LogitMetrics, Measurer, Metrics, measure, measure_logits

if TYPE_CHECKING:
    from .pairs import Pair
    from .tolerance import Bound

#: Elements per side that are read at once; larger records are streamed in blocks of this size.
BLOCK = 4 * 1024 * 1024


def measure_pair(pair: Pair, bound: Bound | None = None) -> tuple[Metrics, LogitMetrics | None]:
    """All metrics of one pair; for logits (last axis `v`) those of the distributions too."""
    atol, rtol = (bound.atol, bound.rtol) if bound is not None else (0.0, 0.0)
    if pair.direct and _size(pair) > BLOCK:
        return _streamed(pair, atol, rtol), None
    actual, expected = _arrays(pair)
    metrics = measure(actual, expected, axes=pair.axes, atol=atol, rtol=rtol)
    return metrics, _logits(actual, expected) if pair.axes.endswith("v") else None


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


def _logits(actual: np.ndarray, expected: np.ndarray) -> LogitMetrics | None:
    """None where a side is not finite: there is no distribution."""
    if not all(np.isfinite(side.astype(np.float64)).all() for side in (actual, expected)):
        return None
    return measure_logits(actual, expected)
