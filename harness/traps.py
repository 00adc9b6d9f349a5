"""Pairs of runs that fool tolerances: faults that pass for noise, and noise that passes for a fault.

A trap is what two runs recorded, with the verdict that a policy should give. The values are computed here in
the number format of the trap, never made up: what is healthy is another way of computing the same, and its
further `twins` are what a noise floor is measured from, as in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shown:
    """One record of a trap: values of any dtype, axes ("b t d" or nothing), positions `[T]`, step."""

    values: Array
    axes: str = ""
    positions: Array | None = None
    step: int = 0


#: What a run recorded: (tap, record) in execution order.
Side = tuple[tuple[str, Shown], ...]


@dataclass(frozen=True)
class Trap:
    """`harmless`: the policy should say parity; else anything but parity. `format` is the candidate's."""

    name: str
    why: str
    harmless: bool
    expected: Side
    actual: Side
    twins: tuple[Side, ...] = ()
    format: str = "float32"


@dataclass(frozen=True)
class Numbers:
    """How a format computes: `store` rounds to it, `spread` is a step of it relative to 1."""

    name: str
    store: Callable[[Array], Array]
    spread: float


def _quantized(x: Array) -> Array:
    """Symmetric int8 with a scale per row: what a w8a8 layer hands on, as real numbers."""
    scale = np.abs(x).max(-1, keepdims=True) / 127.0
    scale = np.where(scale > 0.0, scale, 1.0)
    return np.asarray(np.clip(np.rint(x / scale), -127, 127) * scale).astype(np.float32)


FORMATS: dict[str, Numbers] = {
    "float32": Numbers("float32", lambda x: np.asarray(x, np.float32), 2.0**-23),
    "float16": Numbers("float16", lambda x: np.asarray(x).astype(np.float16), 2.0**-10),
    "bfloat16": Numbers("bfloat16", lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), 2.0**-7),
    "w8a8": Numbers("w8a8", _quantized, 2.0**-7),
}

#: tokens, channels, inner sum; a seed for all draws.
T, D, K = 64, 96, 128
SEED = 20


def _layer(numbers: Numbers, x: Array, w: Array, order: int = 0) -> Array:
    """`[T, D]`: a product whose operands and result are in the format; `order` sums in another order."""
    a, b = (numbers.store(part).astype(np.float64) for part in (x, w.T))
    b = b.T
    if numbers.name == "float32":
        at = np.random.default_rng(order).permutation(len(w)) if order else np.arange(len(w))
        total = np.zeros((len(x), w.shape[1]), np.float32)
        for part in np.array_split(at, 4 + order):
            total += (a[:, part] @ b[part]).astype(np.float32)
        return total
    jitter = 1.0 + (np.random.default_rng(order).uniform(-1, 1, (len(x), 1)) * 2.0**-24 if order else 0.0)
    return numbers.store((a @ b) * jitter)


@dataclass(frozen=True)
class Healthy:
    """One layer's result: by the reference in float32, by the port, and by twins that measure the noise."""

    numbers: Numbers
    expected: Array
    actual: Array
    twins: tuple[Array, ...]

    def each(self, change: Callable[[Array], Array]) -> Healthy:
        """The same with something done on all sides, in the format of each."""
        return replace(
            self,
            expected=change(self.expected),
            actual=self.numbers.store(change(self.actual.astype(np.float64))),
            twins=tuple(change(twin.astype(np.float64)) for twin in self.twins),
        )


def healthy(numbers: Numbers, *, outlier: float = 1.0, seed: int = SEED) -> Healthy:
    """A linear layer `[T, D]`; `outlier` scales one output channel."""
    draw = np.random.default_rng(seed)
    x, w = draw.standard_normal((T, K)), draw.standard_normal((K, D)) / np.sqrt(K)
    w[:, 7] *= outlier
    single = FORMATS["float32"]
    exact = np.asarray(x.astype(np.float32).astype(np.float64) @ w.astype(np.float32).astype(np.float64))
    twins = (exact, _layer(single, x, w, 2), *(_layer(numbers, x, w, order) for order in (0, 3)))
    return Healthy(numbers, _layer(single, x, w), _layer(numbers, x, w, 1), twins)


def side(values: Array, axes: str = "t d", tap: str = "x", **about: Any) -> Side:
    """A run of one record."""
    return ((tap, Shown(np.asarray(values), axes, **about)),)


def made(name: str, why: str, one: Healthy, actual: Any, *, harmless: bool, axes: str = "t d") -> Trap:
    """A trap of one record; `actual` is stored in the format of the layer unless it has a type of its own."""
    held = actual if getattr(actual, "dtype", None) != np.float64 else one.numbers.store(actual)
    return Trap(
        name,
        why,
        harmless,
        side(one.expected, axes),
        side(held, axes),
        tuple(side(twin, axes) for twin in one.twins),
        one.numbers.name,
    )


def shipped(formats: tuple[str, ...] = tuple(FORMATS)) -> Iterator[Trap]:
    """All traps in these number formats."""
    from .traps_harmless import HARMLESS
    from .traps_missed import BUGS

    for name in formats:
        for family, harmless in ((BUGS, False), (HARMLESS, True)):
            for make in family:
                trap = make(FORMATS[name])
                if trap is not None:
                    assert trap.harmless is harmless
                    yield trap


def users(folder: Mapping[str, Mapping[str, Array]], *, harmless: bool) -> Iterator[Trap]:
    """A user's own: name -> arrays `expected`, `actual` and any number of `twin...`."""
    for name, arrays in folder.items():
        twins = tuple(side(value, "") for key, value in sorted(arrays.items()) if key.startswith("twin"))
        yield Trap(
            name, "your own", harmless, side(arrays["expected"], ""), side(arrays["actual"], ""), twins
        )
