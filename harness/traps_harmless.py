"""Noise that looks like a fault to one tolerance or another: none of it may be flagged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .traps import D, Healthy, Numbers, T, Trap, healthy, made, side

Maker = Callable[[Numbers], Trap | None]
HARMLESS: list[Maker] = []


def _fine(name: str, why: str, *, held: bool = True, **about: Any) -> Callable[[Callable[[Any], Any]], Maker]:
    """Register a layer whose result is changed on all sides alike; not `held`: int8 cannot hold such rows."""

    def register(change: Callable[[Any], Any]) -> Maker:
        def make(numbers: Numbers) -> Trap | None:
            if numbers.name == "w8a8" and not held:
                return None
            one = healthy(numbers, **about).each(change)
            return made(name, why, one, one.actual, harmless=True)

        HARMLESS.append(make)
        return make

    return register


@_fine("rounding", "the same sum, in the format and in another order")
def rounding(x: Any) -> Any:
    return x


@_fine("one outlier channel, rounded", "its rounding is large beside others", held=False, outlier=1000.0)
def outlier(x: Any) -> Any:
    return x


@_fine("large mean, rounded", "the rounding of 1000 is large beside what varies", held=False)
def large_mean(x: Any) -> Any:
    return x + 1000.0


@_fine("tiny values, rounded", "near the smallest normal number a relative error is coarse")
def tiny(x: Any) -> Any:
    return x * 1e-5


@_fine("zero tensor", "0/0 is not an error")
def zero(x: Any) -> Any:
    return np.zeros_like(x)


@_fine("a quiet row", "padding rows are a thousandth of the others; their noise comes from louder rows")
def quiet(x: Any) -> Any:
    return np.where(np.arange(T)[:, None] % 16 == 3, x * 1e-3, x)


@_fine("masked with -1e4", "hidden slots dwarf what counts", held=False)
def masked(x: Any) -> Any:
    return np.where(np.arange(D) >= D // 2, -1e4, x)


@_fine("masked with -inf", "-inf minus -inf is NaN", held=False)
def masked_inf(x: Any) -> Any:
    return np.where(np.arange(D) >= D // 2, -np.inf, x)


@_fine("probabilities", "tails of a softmax have large relative errors and no weight")
def probabilities(x: Any) -> Any:
    weights = np.exp((x - x.max(-1, keepdims=True)) * 4.0)
    return weights / weights.sum(-1, keepdims=True)


def _equal(numbers: Numbers) -> Trap:
    one = healthy(numbers)
    values = side(one.expected)
    return Trap("bit for bit equal", "there is no error", True, values, values, (), numbers.name)


def _one_step(numbers: Numbers) -> Trap | None:
    """int8 codes that fell to the other side of a tie."""
    if numbers.name != "w8a8":
        return None
    codes = np.random.default_rng(1).integers(-120, 120, (T, D)).astype(np.int8)
    moved = (codes + np.random.default_rng(2).integers(-1, 2, codes.shape)).astype(np.int8)
    real, other = codes.astype(np.float32) * np.float32(0.02), moved.astype(np.float32) * np.float32(0.02)
    why = "a code that rounds to the other side is one step of the scale away"
    return Trap("one step of int8", why, True, side(real), side(other), (side(other),), numbers.name)


def _tie(numbers: Numbers) -> Trap:
    """Two logits closer than the noise: either may win."""
    one = healthy(numbers)

    def level(x: Any) -> Any:
        y = np.array(x, copy=True)
        top = np.abs(y).max(-1)
        y[:, 3], y[:, 4] = top * (1.0 + one.numbers.spread / 8), top
        return y

    one = one.each(level)
    x = np.array(one.actual, copy=True)
    x[:, [3, 4]] = x[:, [4, 3]]
    return made(
        "a tie for top-1", "another token wins, by less than noise", one, x, harmless=True, axes="b v"
    )


def _padding(numbers: Numbers) -> Trap:
    """Garbage of another size where nothing is: positions of -1."""
    one: Healthy = healthy(numbers)
    at = np.where(np.arange(T) < 8, -1, np.arange(T) - 8)

    def shown(x: Any, garbage: float) -> Any:
        y = np.array(x, copy=True)
        y[:8] = garbage
        return side(y, "t d", positions=at)

    why = "padding rows hold whatever was there"
    twins = tuple(shown(twin, 1.0) for twin in one.twins)
    return Trap(
        "other padding", why, True, shown(one.expected, 1.0), shown(one.actual, 77.0), twins, numbers.name
    )


def _slots(numbers: Numbers) -> Trap:
    """Cache rows in other slots, with their positions."""
    one = healthy(numbers)
    at, order = np.arange(T), np.random.default_rng(3).permutation(T)
    expected = side(one.expected, "p d", positions=at)
    actual = side(one.actual[order], "p d", positions=at[order])
    twins = tuple(side(twin, "p d", positions=at) for twin in one.twins)
    why = "where a row lies does not matter, what position it belongs to does"
    return Trap("cache rows in other slots", why, True, expected, actual, twins, numbers.name)


HARMLESS += [_equal, _one_step, _tie, _padding, _slots]
