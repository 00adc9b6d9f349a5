"""Faults that look like noise to one tolerance or another: each must be caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .traps import D, Healthy, Numbers, Shown, T, Trap, healthy, made, side

Maker = Callable[[Numbers], Trap | None]
BUGS: list[Maker] = []


def _bug(
    name: str, why: str, *, held: bool = True, **about: Any
) -> Callable[[Callable[[Healthy], Any]], Maker]:
    """Register a fault: the function gets a healthy layer and returns what the port shows instead.

    Not `held`: int8 cannot hold such rows at all.
    """

    def register(change: Callable[[Healthy], Any]) -> Maker:
        def make(numbers: Numbers) -> Trap | None:
            if numbers.name == "w8a8" and not held:
                return None
            one = healthy(numbers, **about)
            return made(name, why, one, change(one), harmless=False)

        BUGS.append(make)
        return make

    return register


def _wide(one: Healthy) -> Any:
    return one.actual.astype(np.float64)


@_bug("one NaN", "a comparison with > is never true for NaN")
def one_nan(one: Healthy) -> Any:
    x = _wide(one)
    x[11, 5] = np.nan
    return x


@_bug("one Inf", "an infinity that is clipped or zeroed before subtracting is gone")
def one_inf(one: Healthy) -> Any:
    x = _wide(one)
    x[11, 5] = np.inf
    return x.astype(np.float32)


@_bug("last token", "one wrong row of many vanishes in a mean and in a cosine")
def last_token(one: Healthy) -> Any:
    x = _wide(one)
    x[-1] = x[-2]
    return x


@_bug(
    "one outlier channel",
    "a channel of 1000 times the size hides all others of its row",
    held=False,
    outlier=1000.0,
)
def outlier_channel(one: Healthy) -> Any:
    x = _wide(one)
    keep = x[:, 7].copy()
    x = np.roll(x, 1, axis=0)
    x[:, 7] = keep
    return x.astype(np.float32)


@_bug("scale 1.08", "a cosine does not see a scale")
def scale(one: Healthy) -> Any:
    return _wide(one) * (1.5 if one.numbers.name == "w8a8" else 1.08)


@_bug("sign flip", "the absolute value of a cosine is 1")
def sign(one: Healthy) -> Any:
    return -_wide(one)


@_bug("two tokens swapped", "norms, extremes and histograms stay as they are")
def swapped(one: Healthy) -> Any:
    x = _wide(one)
    x[[20, 21]] = x[[21, 20]]
    return x


@_bug("rotated channels", "a rotation keeps the norm")
def rotated(one: Healthy) -> Any:
    return np.concatenate([_wide(one)[:, D // 2 :], _wide(one)[:, : D // 2]], axis=1)


@_bug("one wrong channel", "one of many channels vanishes in a mean")
def channel(one: Healthy) -> Any:
    x = _wide(one)
    x[:, 13] = -x[:, 13]
    return x


@_bug("all zero", "an error relative to the candidate is not defined, and passes for none")
def zeros(one: Healthy) -> Any:
    return np.zeros_like(_wide(one))


@_bug("stuck at the mean", "the mean agrees")
def stuck(one: Healthy) -> Any:
    return np.full_like(_wide(one), _wide(one).mean())


@_bug("half of the tensor missing", "cut to the shorter, the rest agrees")
def half(one: Healthy) -> Any:
    return one.actual[: T // 2]


@_bug("transposed, of equal size", "reshaped until the shapes match, the values are somebody else's")
def transposed(one: Healthy) -> Any:
    return np.ascontiguousarray(one.actual.T)


@_bug("one quantized value wrapped", "a saturated value that wrapped round is one of thousands")
def wrapped(one: Healthy) -> Any:
    x = _wide(one)
    at = np.unravel_index(np.abs(x).argmax(), x.shape)
    x[at] = -x[at]
    return x


def _large_mean(numbers: Numbers) -> Trap | None:
    """Only where the format still holds the part that varies."""
    if numbers.name != "float32":
        return None
    one = healthy(numbers).each(lambda x: x + 1000.0)
    x = _wide(one) - 1000.0
    why = "beside a large mean the part that varies is a small relative error"
    return made("large mean", why, one, 1000.0 + x[::-1], harmless=False)


def _masked(numbers: Numbers) -> Trap | None:
    """Scores with hidden slots at -1e4; half of those that count are wrong."""
    if numbers.name == "w8a8":
        return None
    one = healthy(numbers)
    hidden = np.arange(D) >= D // 2
    one = one.each(lambda x: np.where(hidden, -1e4, x))
    x = _wide(one)
    x[:, : D // 2] = x[::-1, : D // 2]
    actual = np.where(hidden, -1e4, x)
    why = "fills of -1e4 are nearly all of every norm"
    return made("masked scores", why, one, actual.astype(np.float32), harmless=False)


def _stolen(numbers: Numbers) -> Trap:
    """Logits of one token: the best and the second best have changed places."""
    one = healthy(numbers)
    gap = 1.0

    def plain(x: Any) -> Any:
        y = np.array(x)
        y[:, 3], y[:, 4] = np.abs(y).max(-1) + gap, np.abs(y).max(-1) + 2 * gap
        return y

    one = one.each(plain)
    x = _wide(one)
    x[5, [3, 4]] = x[5, [4, 3]]
    why = "another token wins, by a change that is small beside all logits"
    return made("stolen top-1", why, one, x.astype(np.float32), harmless=False, axes="b v")


def _tiny(numbers: Numbers) -> Trap:
    """Values of 1e-6 that are all wrong: an absolute tolerance takes them for zero."""
    one = healthy(numbers).each(lambda x: x * 1e-6)
    why = "an absolute tolerance takes small values for zero"
    return made("tiny and wrong", why, one, (_wide(one)[::-1]).astype(np.float32), harmless=False)


def _zero_reference(numbers: Numbers) -> Trap:
    one = healthy(numbers).each(np.zeros_like)
    why = "a relative error to zero is not defined"
    return made("not zero where it should be", why, one, one.expected + np.float32(1e-3), harmless=False)


def _opposite(numbers: Numbers) -> Trap:
    one = healthy(numbers)
    expected, actual = np.array(one.expected), np.array(one.expected)
    expected[3, 3], actual[3, 3] = -np.inf, np.inf
    why = "both are infinite, with opposite signs"
    return Trap("opposite infinities", why, False, side(expected), side(actual), (), numbers.name)


def _no_common_name(numbers: Numbers) -> Trap:
    one = healthy(numbers)
    why = "nothing was compared, so nothing failed"
    return Trap(
        "no common name", why, False, side(one.expected), side(one.expected, tap="y"), (), numbers.name
    )


def _lost_step(numbers: Numbers) -> Trap:
    one = healthy(numbers)
    steps = tuple(("x", Shown(one.expected + np.float32(step), "t d", step=step)) for step in range(3))
    return Trap("a step missing", "the common steps agree", False, steps, steps[:2], (), numbers.name)


def _lost_tap(numbers: Numbers) -> Trap:
    one = healthy(numbers)
    both = (*side(one.expected), *side(one.expected, tap="y"))
    return Trap("a tap missing", "the common taps agree", False, both, both[:1], (), numbers.name)


def _empty(numbers: Numbers) -> Trap:
    nothing = side(np.zeros((0, D), np.float32))
    return Trap("empty on both sides", "no value differs", False, nothing, nothing, (), numbers.name)


def _token_id(numbers: Numbers) -> Trap:
    ids = np.arange(500, 500 + T)
    other = np.where(ids == 532, 533, ids)
    why = "a token id that is one off is a small relative error"
    return Trap("one token id", why, False, side(ids, "t"), side(other, "t"), (), numbers.name)


def _cache_row(numbers: Numbers) -> Trap:
    """One row of a cache still holds what another position should."""
    one = healthy(numbers)
    at = np.arange(T)
    x = np.array(one.actual)
    x[40] = x[39]
    expected, actual = (side(v, "p d", positions=at) for v in (one.expected, x))
    twins = tuple(side(twin, "p d", positions=at) for twin in one.twins)
    why = "one of many rows, with the right norm"
    return Trap("a stale cache row", why, False, expected, actual, twins, numbers.name)


BUGS += [
    _large_mean, _masked, _stolen, _tiny, _zero_reference, _opposite, _no_common_name, _lost_step, _lost_tap,
    _empty, _token_id, _cache_row,
]  # fmt: skip
