"""Why a tap is wrong: known shapes of bugs, computed on the reference and held against what was seen.

A cause is named only if it explains the error away, with how far: never as certainty.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .comparison import Cause, Comparison, Culprit
from .hypotheses import Hypothesis, Values, hypotheses, permutation

if TYPE_CHECKING:
    from .trace import Record, Run

#: A hypothesis must leave at most this share of the error, and a residue that is small in itself.
SHARE, RESIDUE = 0.05, 0.02
#: Larger records are not explained: each of some 60 hypotheses touches every value.
LARGEST = 1 << 20
#: Axes whose slices may stand in another order, and how many slices are tried.
PERMUTED, MOST_SLICES = ("h", "d", "f", "v", "b"), 512


def causes_of(
    comparison: Comparison, reference: Run, candidate: Run, isolated: Run | None
) -> tuple[Cause, ...]:
    """A cause per culprit that one hypothesis explains; of several the one with the smallest residue."""
    found = (_cause(culprit, reference, candidate, isolated) for culprit in comparison.culprits[:4])
    return tuple(cause for cause in found if cause is not None)


def _cause(culprit: Culprit, reference: Run, candidate: Run, isolated: Run | None) -> Cause | None:
    expected = _record(reference, culprit.tap, culprit.step)
    actual = isolated and _record(isolated, culprit.tap, culprit.step)
    actual = actual or _record(candidate, culprit.tap, culprit.step)
    if (
        expected is None
        or actual is None
        or expected.shape != actual.shape
        or not 1 < expected.size <= LARGEST
    ):
        return None
    right, seen = _values(expected), _values(actual)
    if not (np.isfinite(right).all() and np.isfinite(seen).all()):
        return None
    error = _distance(seen, right, None)
    tried = (
        *hypotheses(right, seen, tuple(expected.axes.split())),
        *_elsewhere(reference, expected, right, seen),
    )
    best = min(((_distance(seen, h.values, h.where), at) for at, h in enumerate(tried)), default=(np.inf, 0))
    residue, name = best[0], tried[best[1]].name
    if error and residue <= SHARE * error and residue <= RESIDUE:
        told = (
            f"computed on the reference's values it leaves {residue:.2g} of a relative error of {error:.2g}"
        )
        return Cause(culprit.tap, name, told)
    return None


def _elsewhere(reference: Run, expected: Record, right: Values, seen: Values) -> Iterator[Hypothesis]:
    """Right values of another place: slices in another order, an earlier step, another tap."""
    axes = expected.axes.split()
    for axis, letter in enumerate(axes):
        if letter in PERMUTED and 1 < right.shape[axis] <= MOST_SLICES:
            order = permutation(right, seen, axis)
            if order is not None:
                shown = str(order[:12]).rstrip("]") + (" ..." if len(order) > 12 else "")
                yield Hypothesis(f"{letter} slices stand in the order {shown}]", right.take(order, axis))
    for back in (1, 2):
        before = _record(reference, expected.tap, expected.step - back)
        if before is not None and before.shape == expected.shape:
            yield Hypothesis(f"what belongs to step {expected.step - back}", _values(before))
    for tap in reference.taps:
        other = None if tap == expected.tap else _record(reference, tap, expected.step)
        if other is not None and other.shape == expected.shape:
            yield Hypothesis(f"what belongs to {tap}", _values(other))


def _record(run: Run, tap: str, step: int) -> Record | None:
    """The record of a tap at a step; None where there is none or several."""
    if tap not in run.taps:
        return None
    found = [record for record in run.records(tap) if record.step == step]
    return found[0] if len(found) == 1 else None


def _values(record: Record) -> Values:
    return np.asarray(record.read()).astype(np.float64)


def _distance(seen: Values, values: Values, where: np.ndarray | None) -> float:
    """Relative L2 distance over the places spoken of."""
    if where is not None:
        seen, values = seen[where], values[where]
    scale = float(np.sqrt((values * values).sum()))
    gap = float(np.sqrt(((seen - values) ** 2).sum()))
    return gap / scale if scale else (0.0 if not gap else np.inf)
