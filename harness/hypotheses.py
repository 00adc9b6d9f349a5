"""Known shapes of bugs as transformations: what the right values would look like had each of them happened.

A hypothesis is tried by computing it, never by its name; the one that reproduces what was seen is told.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

#: Axes of more dimensions are not permuted: 5! layouts of a large tensor take too long.
MOST_AXES = 4
#: Rows of other positions that are tried.
SHIFTS = (1, -1, 2, -2)
WORDS = {"b": "sequence", "h": "head", "t": "token", "p": "position", "d": "channel", "v": "vocabulary",
         "f": "channel", "c": "plane"}  # fmt: skip


@dataclass(frozen=True)
class Hypothesis:
    """What the values would be if `name` had happened; `where` limits the places that it speaks of."""

    name: str
    values: Values
    where: npt.NDArray[np.bool_] | None = None


def hypotheses(expected: Values, actual: Values, axes: tuple[str, ...]) -> Iterator[Hypothesis]:
    """Every transformation of `expected` that fits its shape, cheap ones first.

    `axes` are the letters of the dimensions, or empty. Scales and offsets are fitted to `actual`.
    """
    yield Hypothesis("the sign is flipped", -expected)
    yield from _constants(expected, actual)
    yield from _channels(expected)
    yield from _shifts(expected, axes)
    yield from _layouts(expected, axes)
    yield from _formats(expected)


def _constants(expected: Values, actual: Values) -> Iterator[Hypothesis]:
    power = float((expected * expected).sum())
    if power:
        scale = float((expected * actual).sum()) / power
        yield Hypothesis(f"scaled by {scale:.4g}", expected * scale)
    offset = float((actual - expected).mean())
    yield Hypothesis(f"{offset:.4g} is added everywhere", expected + offset)
    yield Hypothesis(f"a constant, {float(actual.mean()):.4g}", np.full_like(expected, actual.mean()))


def _channels(expected: Values) -> Iterator[Hypothesis]:
    """Halves against pairs: how rotary embeddings go wrong."""
    size = expected.shape[-1] if expected.ndim else 0
    if size < 4 or size % 2:
        return
    left, right = expected[..., : size // 2], expected[..., size // 2 :]
    yield Hypothesis("the halves of the channels are swapped", np.concatenate([right, left], axis=-1))
    yield Hypothesis(
        "pairs of channels stand where halves should", np.stack([left, right], -1).reshape(expected.shape)
    )
    yield Hypothesis(
        "halves of channels stand where pairs should",
        np.concatenate([expected[..., ::2], expected[..., 1::2]], axis=-1),
    )


def _shifts(expected: Values, axes: tuple[str, ...]) -> Iterator[Hypothesis]:
    for axis, size in enumerate(expected.shape):
        word = _word(axes, axis)
        if size > 2:
            yield Hypothesis(f"reversed along {word}", np.flip(expected, axis))
        for by in (shift for shift in SHIFTS if abs(shift) < size):
            rolled = np.roll(expected, by, axis)
            yield Hypothesis(f"shifted by {by:+d} along {word}", rolled, _unwrapped(expected.shape, axis, by))


def _unwrapped(shape: tuple[int, ...], axis: int, by: int) -> npt.NDArray[np.bool_]:
    """Places whose value did not come round the end."""
    at = np.arange(shape[axis]) - by
    inside = (at >= 0) & (at < shape[axis])
    return np.broadcast_to(inside.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def _layouts(expected: Values, axes: tuple[str, ...]) -> Iterator[Hypothesis]:
    """Values laid out for another order of axes and not put back."""
    if not 2 <= expected.ndim <= MOST_AXES:
        return
    for order in list(itertools.permutations(range(expected.ndim)))[1:]:
        moved = expected.transpose(order)
        words = " ".join(_word(axes, axis) for axis in order)
        if moved.shape != tuple(size for size in moved.shape if size == 1):
            yield Hypothesis(f"laid out as {words} and not put back", moved.reshape(expected.shape))


def _formats(expected: Values) -> Iterator[Hypothesis]:
    """Numbers cut off instead of rounded."""
    single = expected.astype(np.float32)
    cut = (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    yield Hypothesis("cut off to bfloat16 instead of rounded", cut.astype(np.float64))
    yield Hypothesis("cut off to whole numbers", np.trunc(expected))


def _word(axes: tuple[str, ...], axis: int) -> str:
    return WORDS.get(axes[axis], axes[axis]) if axis < len(axes) else f"axis {axis}"


def permutation(expected: Values, actual: Values, axis: int) -> list[int] | None:
    """Which slice of `expected` stands at each place of `actual` along an axis; None if that is not the case.

    Slices are told by content, so a repeated one gives None.
    """
    rows_e = np.moveaxis(expected, axis, 0).reshape(expected.shape[axis], -1)
    rows_a = np.moveaxis(actual, axis, 0).reshape(actual.shape[axis], -1)
    distance = ((rows_a[:, None, :1024] - rows_e[None, :, :1024]) ** 2).sum(-1)
    found = [int(at) for at in distance.argmin(axis=1)]
    return found if sorted(found) == list(range(len(found))) and found != sorted(found) else None
