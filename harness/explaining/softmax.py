"""The softmax of attention: over which axis, of what base, in which number format."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .maths import attend, rounded, softmax
from .op import Op, Values, Variant, hypothesis

ATTENTION = frozenset({"attention"})


def diluted(scores: Values, spare: int) -> Values:
    """Softmax with `spare` more scores of 0 that weigh nothing."""
    most = np.maximum(scores.max(-1, keepdims=True), 0.0)
    weights = np.exp(scores - most)
    return np.asarray(weights / (weights.sum(-1, keepdims=True) + spare * np.exp(-most)))


@hypothesis("attention", ATTENTION)
def softmax_over_another_axis(op: Op) -> Iterator[Variant]:
    for words, axis in (("the queries", 1), ("the heads", 0)):
        if op.expected.shape[1 - axis] > 1:
            yield Variant(f"softmax over {words}", attend(op, weigh=partial(softmax, axis=axis)))


@hypothesis("attention", ATTENTION)
def softmax_in_low_precision(op: Op) -> Iterator[Variant]:
    """Scores and weights rounded, the sums in float32."""
    for name in ("bfloat16", "float16"):
        yield Variant(f"softmax of scores in {name}", attend(op, weigh=partial(_low_softmax, name=name)))
        yield Variant(
            f"softmax weights rounded to {name}",
            attend(op, weigh=partial(_rounded_weights, name=name)),
        )


def _low_softmax(scores: Values, name: str) -> Values:
    low = np.where(np.isfinite(scores), rounded(np.where(np.isfinite(scores), scores, 0.0), name), -np.inf)
    return rounded(softmax(low), name)


@hypothesis("attention", ATTENTION)
def scores_capped(op: Op) -> Iterator[Variant]:
    for cap in (50.0, 30.0, 20.0, 15.0, 10.0, 5.0, 2.0, 1.0):
        yield Variant(f"scores softly capped at {cap:g}", attend(op, shape=partial(_capped, cap=cap)))


@hypothesis("attention", ATTENTION)
def not_normalised(op: Op) -> Iterator[Variant]:
    yield Variant("softmax weights that are not divided by their sum", attend(op, weigh=_exponentials))
    yield Variant(
        "softmax weights that are not divided by their sum, the maximum taken off",
        attend(op, weigh=lambda s: np.exp(s - s.max(-1, keepdims=True))),
    )


def _exponentials(scores: Values) -> Values:
    with np.errstate(over="ignore"):
        return np.exp(scores)


@hypothesis("attention", ATTENTION)
def softmax_of_base_2(op: Op) -> Iterator[Variant]:
    yield Variant(
        "powers of 2 in place of e in the softmax", attend(op, weigh=lambda s: softmax(s * np.log(2.0)))
    )
    yield Variant(
        "log2(e) applied once too often in the softmax", attend(op, weigh=lambda s: softmax(s / np.log(2.0)))
    )


@hypothesis("attention", ATTENTION)
def softmax_missing(op: Op) -> Iterator[Variant]:
    yield Variant(
        "raw scores in place of softmax weights", attend(op, weigh=lambda s: np.where(np.isfinite(s), s, 0.0))
    )


@hypothesis("attention", ATTENTION)
def one_weight_too_many(op: Op) -> Iterator[Variant]:
    """The softmax has a silent extra score of 0: 1 is added to the sum of exponentials."""
    yield Variant("1 added to the softmax's sum", attend(op, weigh=partial(diluted, spare=1)))


@hypothesis("attention", ATTENTION)
def uniform_weights(op: Op) -> Iterator[Variant]:
    yield Variant("every visible row weighed alike", attend(op, scale=0.0))


def _rounded_weights(scores: Values, name: str) -> Values:
    return rounded(softmax(scores), name)


def _capped(scores: Values, cap: float) -> Values:
    return cap * np.tanh(scores / cap)
