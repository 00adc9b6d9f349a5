"""What one weight is of another: equal, rounded, turned, permuted, scaled, sign flipped, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .order import in_words, order_of
from .weight import ROUNDING, Floats, Weight

OK, NOTE, FAULT = "ok", "note", "fault"
#: Clipped codes beyond this share are a fault; fewer may be a calibration's choice.
CLIPPED = 0.01
#: Below this share of the codes' range the scale is far too wide.
UNUSED = 0.25
#: Relative error up to which codes that are not the nearest ones still are the same weight, by bits.
COMPENSATED = {8: 0.05, 4: 0.25}


@dataclass(frozen=True)
class Relation:
    """`kind` in one word, `detail` in a few, and what it is worth."""

    kind: str
    detail: str = ""
    level: str = OK


def relate(weight: Weight, expected: Floats) -> Relation | None:
    """How the weight follows from the expected tensor; None where no way that is known explains it."""
    return plain(weight, expected) or _altered(weight, expected)


def plain(weight: Weight, expected: Floats) -> Relation | None:
    """The same values, in the same or another shape."""
    for kind, view in _views(expected, weight.values.shape):
        fit = _fits(weight, view)
        if fit is not None and not kind:
            return fit
        if fit is not None:
            return Relation(kind, fit.detail or ("" if fit.kind == "equal" else fit.kind), fit.level)
    return None


def _altered(weight: Weight, expected: Floats) -> Relation | None:
    """The same values with an error that has a name."""
    for kind, view in _views(expected, weight.values.shape):
        found = _negated(weight, view) or _permuted(weight, view) or _scaled(weight, view)
        if found is not None:
            return Relation(found.kind, f"{kind}, {found.detail}".strip(", "), FAULT)
    return None


def _views(expected: Floats, shape: tuple[int, ...]) -> Iterator[tuple[str, Floats]]:
    """The tensor itself, with axes exchanged, in another shape; each of `shape`."""
    if expected.shape == shape:
        yield "", expected
    if expected.ndim in (2, 3, 4):
        for axes in permutations(range(expected.ndim)):
            turned = expected.transpose(axes)
            if turned.shape == shape and axes != tuple(range(expected.ndim)):
                yield ("transposed" if expected.ndim == 2 else f"axes {axes}"), turned
    if expected.shape != shape and expected.size == int(np.prod(shape)):
        yield "reshaped", expected.reshape(shape)
        if expected.ndim == 2 and expected.T.shape != shape:
            yield "transposed and reshaped", expected.T.reshape(shape)


def _fits(weight: Weight, expected: Floats) -> Relation | None:
    """Equal but for what its number format explains."""
    values = weight.values
    with np.errstate(invalid="ignore", over="ignore"):
        outside = ~(np.abs(values - expected) <= weight.allowed(expected))
    outside &= ~(values == expected)
    if weight.quantized:
        return _quantized(weight, expected, outside)
    if outside.any():
        return None
    if weight.dtype not in ("float16", "bfloat16") or np.array_equal(values, expected):
        return Relation("equal")
    if np.array_equal(values, _rounded(expected, weight.dtype)):
        return Relation("rounded", f"to {weight.dtype}")
    if _truncated(weight, expected):
        return Relation("truncated", f"cut off to {weight.dtype} instead of rounded", FAULT)
    return Relation("rounded", f"to {weight.dtype}, not to the nearest", NOTE)


def _quantized(weight: Weight, expected: Floats, outside: np.ndarray) -> Relation | None:
    bits = 4 if "4" in weight.dtype else 8
    if not outside.any():
        if weight.used < UNUSED:
            return Relation(
                "unused range", f"{weight.dtype} codes fill {weight.used:.0%} of their range", NOTE
            )
        return Relation("quantized", weight.dtype)
    share, inside = float(outside.mean()), np.abs(weight.values) < np.abs(expected)
    if share <= 2 * weight.ends and inside[outside].all():
        told = f"{share:.2%} of the values beyond the range of {weight.dtype}"
        return Relation("saturated", told, FAULT if share > CLIPPED else NOTE)
    error = _error(weight.values, expected)
    if error < COMPENSATED[bits]:
        return Relation("quantized", f"{weight.dtype}, {share:.1%} not to the nearest level", NOTE)
    return None


def _rounded(expected: Floats, dtype: str) -> Floats:
    from ..dtypes import logical_dtype

    with np.errstate(over="ignore"):
        return expected.astype(logical_dtype(dtype)).astype(np.float32)


def _truncated(weight: Weight, expected: Floats) -> bool:
    """Whether no value is larger than the expected one and many are what rounding up would not give."""
    smaller = np.abs(weight.values) <= np.abs(expected)
    return bool(smaller.all()) and not np.array_equal(weight.values, _rounded(expected, weight.dtype))


def _negated(weight: Weight, expected: Floats) -> Relation | None:
    if expected.any() and _fits(weight, -expected) is not None:
        return Relation("sign flipped", "every value has the other sign")
    return None


def _permuted(weight: Weight, expected: Floats) -> Relation | None:
    """Rows in another order, or columns."""
    if expected.ndim not in (1, 2):
        return None
    own, theirs = (x.reshape(len(x), -1) for x in (weight.values, expected))
    for axis, what in enumerate(("rows", "columns")[: expected.ndim]):
        if theirs.shape[axis] < 2:
            continue
        order = order_of(*(x if axis == 0 else x.T for x in (own, theirs)))
        if order is None:
            continue
        moved = np.take(expected, order, axis=axis)
        if _fits(weight, moved) is not None:
            return Relation("permuted", in_words(order, what if expected.ndim == 2 else "values"))
    return None


def _scaled(weight: Weight, expected: Floats) -> Relation | None:
    """By one factor, or by one for each row or column."""
    if not expected.any() or not np.isfinite(expected).all() or not np.isfinite(weight.values).all():
        return None
    axes = [None, *range(expected.ndim)] if expected.ndim == 2 and min(expected.shape) > 3 else [None]
    for axis in axes:
        along = None if axis is None else 1 - axis
        dot = np.sum(weight.values * expected, axis=along, keepdims=True, dtype=np.float64)
        own = np.sum(np.square(expected, dtype=np.float64), axis=along, keepdims=True)
        factor = np.asarray(np.divide(dot, own, out=np.ones_like(dot), where=own > 0), np.float32)
        fuzz = 4 * ROUNDING.get(weight.dtype, 2.0**-6) + 1e-5
        if weight.quantized:
            fuzz = COMPENSATED[4 if "4" in weight.dtype else 8]
        if factor.any() and _error(weight.values, factor * expected) < fuzz:
            return Relation("scaled", _factors(factor, axis))
    return None


def _factors(factor: Floats, axis: int | None) -> str:
    if axis is None:
        return f"by {float(factor.reshape(())):.6g}"
    low, high, what = float(factor.min()), float(factor.max()), ("row", "column")[axis]
    odd = np.flatnonzero(np.abs(factor.reshape(-1) - 1) > 1e-5)
    if len(odd) <= 3:
        return ", ".join(f"{what} {at} by {float(factor.reshape(-1)[at]):.6g}" for at in odd)
    return f"each {what} by a factor of its own, {low:.3g} to {high:.3g}"


def _error(actual: Floats, expected: Floats) -> float:
    """Relative error in the L2 norm."""
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    gap = float(np.linalg.norm(actual.astype(np.float64) - expected))
    return gap / norm if norm else float("inf")


def differing(weight: Weight, expected: Floats) -> Relation:
    """What is left to say of a weight that has the name and nothing else."""
    if weight.values.shape != expected.shape:
        told = f"shape {list(weight.values.shape)}, should be {list(expected.shape)}"
        return Relation("shape", told, FAULT)
    bad = int((~np.isfinite(weight.values)).sum())
    if bad:
        return Relation("nonfinite", f"{bad} values are NaN or infinite", FAULT)
    gap = np.abs(weight.values - expected)
    wrong = int((gap > weight.allowed(expected)).sum())
    told = f"{wrong} of {gap.size} values, relative error {_error(weight.values, expected):.2g}"
    return Relation("differs", f"only name and shape agree: {told}", FAULT)
