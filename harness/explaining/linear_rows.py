"""Linear layers of which a few rows of the weight are wrong; which, and how, is read from what was seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .op import Op, Values, Variant, hypothesis

PLAIN_LINEAR = frozenset({"linear", "projection"})
#: Rows of outputs that tell one weight of a row from all others of it.
TELLING = 8


def _rows(op: Op, most: int) -> tuple[Values, Values, Values]:
    """`x W^T` and the error `[N, out]`, and which outputs are wrong; none where more than `most` are."""
    own = op.x @ op.weight.T
    gap = op.seen.reshape(own.shape) - op.expected.reshape(own.shape)
    error = (gap * gap).sum(0)
    worst = np.flatnonzero(error > 1e-3 * error.max())
    return own, gap, worst[: len(worst) if len(worst) <= most else 0]


def _fit(op: Op, *numbers: Values) -> tuple[float, ...]:
    """Numbers of one sample each, where the op has one row."""
    return tuple(float(number) for part in numbers for number in part) if len(op.x) == 1 else ()


@hypothesis("linear", PLAIN_LINEAR, weights=True)
def weight_rows_scaled(op: Op) -> Iterator[Variant]:
    """A few rows of the weight are a multiple of what they should be; each multiple is fitted."""
    own, gap, worst = _rows(op, min(8, len(op.weight) // 8))
    if len(worst):
        power = (own[:, worst] ** 2).sum(0)
        times = 1.0 + (gap[:, worst] * own[:, worst]).sum(0) / np.where(power == 0.0, 1.0, power)
        values = op.expected.reshape(own.shape).copy()
        values[:, worst] += own[:, worst] * (times - 1.0)
        told = ", ".join(f"{row} times {by:.4g}" for row, by in zip(worst, times, strict=True))
        yield Variant(f"rows of its weight scaled: {told}", op.shaped(values), fit=_fit(op, worst, times))


@hypothesis("linear", PLAIN_LINEAR, weights=True)
def weight_rows_swapped(op: Op) -> Iterator[Variant]:
    """A few rows of the weight stand in each other's place, with their biases or without."""
    own, gap, worst = _rows(op, 8)
    bias = np.broadcast_to(op.bias, own.shape[1:])[worst]
    seen = (op.expected.reshape(own.shape) + gap)[:, worst, None]
    ways = (("", bias), (", their biases not", bias[:, None]))
    for words, added in ways if len(op.weights) > 1 else ways[:1]:
        made = own[:, None, worst] + added
        order = ((seen - made) ** 2).sum(0).argmin(1) if len(worst) > 1 else np.zeros(0, np.int64)
        if len(order) == 0 or len(set(order.tolist())) < len(order):
            continue
        values = op.expected.reshape(own.shape).copy()
        values[:, worst] = np.broadcast_to(made, (len(own), len(worst), len(worst)))[
            :, range(len(order)), order
        ]
        told = (
            f"rows {worst[0]} and {worst[1]} of its weight swapped"
            if len(order) == 2
            else f"rows {worst.tolist()} of its weight in the order {worst[order].tolist()}"
        )
        yield Variant(told + words, op.shaped(values), fit=_fit(op, worst, order))


@hypothesis("linear", PLAIN_LINEAR, weights=True)
def weight_element_wrong(op: Op) -> Iterator[Variant]:
    """One number of the weight; many rows of outputs must agree, for any input channel fits one."""
    own, gap, worst = _rows(op, 1)
    if len(own) < TELLING or len(worst) == 0:
        return
    row = int(worst[0])
    power = (op.x * op.x).sum(0)
    along = op.x.T @ gap[:, row]
    column = int(np.argmax(along**2 / np.where(power == 0.0, np.inf, power)))
    off = along[column] / max(float(power[column]), 1e-300)
    values = op.expected.reshape(own.shape).copy()
    values[:, row] += off * op.x[:, column]
    yield Variant(f"its weight off by {off:.4g} at [{row}, {column}]", op.shaped(values))
