"""Right values laid out wrongly: transformations of an output that tell nothing of the op behind it.

They are tried when no mistake of the op does as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .op import Values

#: Axes of more dimensions are not permuted: 5! layouts of a large tensor take too long.
MOST_AXES = 4
#: Rows of other positions that are tried.
SHIFTS = (1, -1, 2, -2)
#: Axes whose slices may stand in another order, and how many slices are tried.
PERMUTED, MOST_SLICES = ("h", "d", "f", "v", "b"), 512
WORDS = {"b": "sequence", "h": "head", "t": "token", "p": "position", "d": "channel", "v": "vocabulary",
         "f": "channel", "c": "plane"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the values would be if `name` had happened; `where` limits the places that it speaks of.

    `fitted` has a number that was fitted to what was seen: one without goes before. `fit` are such numbers
    with one sample each, and `kind` is the name without them, by which other steps are asked for the same.
    """

    name: str
    values: Values
    where: npt.NDArray[np.bool_] | None = None
    fitted: bool = False
    fit: tuple[float, ...] = ()
    kind: str = ""


def layouts(expected: Values, actual: Values, axes: tuple[str, ...]) -> Iterator[Layout]:
    """Every transformation of `expected` that fits its shape, cheap ones first.

    `axes` are the letters of the dimensions, or empty. Scales and offsets are fitted to `actual`.
    """
    yield Layout("the sign is flipped", -expected)
    yield from _constants(expected, actual)
    yield from _channels(expected)
    yield from _shifts(expected, actual, axes)
    yield from _transposed(expected, axes)
    yield from _orders(expected, actual, axes)
    yield from _few(expected, actual, axes)


def _constants(expected: Values, actual: Values) -> Iterator[Layout]:
    power = float((expected * expected).sum())
    if power:
        scale = float((expected * actual).sum()) / power
        yield Layout(f"scaled by {scale:.4g}", expected * scale, fitted=True)
    offset = float((actual - expected).mean())
    yield Layout(f"{offset:.4g} is added everywhere", expected + offset, fitted=True)
    yield Layout(
        f"a constant, {float(actual.mean()):.4g}", np.full_like(expected, actual.mean()), fitted=True
    )


def _channels(expected: Values) -> Iterator[Layout]:
    """Halves against pairs: how rotary embeddings go wrong."""
    size = expected.shape[-1] if expected.ndim else 0
    if size < 4 or size % 2:
        return
    left, right = expected[..., : size // 2], expected[..., size // 2 :]
    yield Layout("the halves of the channels are swapped", np.concatenate([right, left], axis=-1))
    yield Layout(
        "pairs of channels stand where halves should", np.stack([left, right], -1).reshape(expected.shape)
    )
    yield Layout(
        "halves of channels stand where pairs should",
        np.concatenate([expected[..., ::2], expected[..., 1::2]], axis=-1),
    )


def _shifts(expected: Values, actual: Values, axes: tuple[str, ...]) -> Iterator[Layout]:
    for axis, size in enumerate(expected.shape):
        word = _word(axes, axis)
        if _over_batch(expected, axes, axis) and not _all_moved(expected, actual, axis):
            continue
        if size > 2:
            yield Layout(f"reversed along {word}", np.flip(expected, axis))
        for by in (shift for shift in SHIFTS if 2 * abs(shift) <= size):
            where = _unwrapped(expected.shape, axis, by) if size > 2 else None
            yield Layout(f"shifted by {by:+d} along {word}", np.roll(expected, by, axis), where)


def _over_batch(expected: Values, axes: tuple[str, ...], axis: int) -> bool:
    return axes[axis] == "b" if axis < len(axes) else axis == 0 and expected.ndim > 1


def _all_moved(expected: Values, actual: Values, axis: int) -> bool:
    """Whether a roll of sequences may be looked for: all of them are wrong, and they are no masks."""
    first = expected.flat[0]
    others = expected[expected != first]
    if not others.size or (others == others[0]).all():
        return False
    rows = np.moveaxis(actual - expected, axis, 0).reshape(expected.shape[axis], -1)
    error = (rows**2).sum(1)
    return bool((error > 1e-3 * error.max()).all())


def _unwrapped(shape: tuple[int, ...], axis: int, by: int) -> npt.NDArray[np.bool_]:
    """Places whose value did not come round the end."""
    at = np.arange(shape[axis]) - by
    inside = (at >= 0) & (at < shape[axis])
    return np.broadcast_to(inside.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def _transposed(expected: Values, axes: tuple[str, ...]) -> Iterator[Layout]:
    """Values laid out for another order of axes and not put back; axes of one are no axes here."""
    long = [axis for axis, size in enumerate(expected.shape) if size > 1]
    if not 2 <= len(long) <= MOST_AXES:
        return
    for order in list(itertools.permutations(long))[1:]:
        words = " ".join(_word(axes, axis) for axis in order)
        squeezed = expected.reshape([expected.shape[axis] for axis in long])
        moved = squeezed.transpose([long.index(axis) for axis in order])
        yield Layout(f"laid out as {words} and not put back", moved.reshape(expected.shape))


def _orders(expected: Values, actual: Values, axes: tuple[str, ...]) -> Iterator[Layout]:
    """Slices of one axis in another order."""
    for axis, letter in enumerate(axes):
        if letter not in PERMUTED or expected.shape[axis] < 2:
            continue
        places, found = permutation(expected, actual, axis)
        if found is None:
            continue
        order = np.arange(expected.shape[axis])
        order[places] = found
        alone = expected.size == expected.shape[axis]
        fit = (*map(float, places), *map(float, found)) if alone else ()
        kind = f"{letter} in another order" if alone else ""
        yield Layout(_told(letter, places, order), expected.take(order, axis), None, True, fit, kind)


def _told(letter: str, places: Values, order: Values) -> str:
    if len(places) == 2 and len(order) > 4:
        return f"{WORDS.get(letter, letter)} {places[0]} and {places[1]} are swapped"
    shown = str(order[:12].tolist()).rstrip("]") + (" ..." if len(order) > 12 else "")
    return f"{letter} slices stand in the order {shown}]"


def permutation(expected: Values, actual: Values, axis: int) -> tuple[Values, Values | None]:
    """Places along an axis whose slices differ, and which slice of `expected` stands at each of them.

    None where that is no reordering. Slices are told by content, so a repeated one gives None.
    """
    rows_e = np.moveaxis(expected, axis, 0).reshape(expected.shape[axis], -1)
    rows_a = np.moveaxis(actual, axis, 0).reshape(actual.shape[axis], -1)
    error = ((rows_a - rows_e) ** 2).sum(1)
    places = np.flatnonzero(error > 1e-3 * error.max())
    if not 1 < len(places) <= MOST_SLICES:
        return places, None
    e, a = rows_e[places, :1024], rows_a[places, :1024]
    distance = (e * e).sum(1) - 2.0 * (a @ e.T)
    found = places[distance.argmin(axis=1)]
    return places, found if len(set(found.tolist())) == len(found) else None


def _few(expected: Values, actual: Values, axes: tuple[str, ...]) -> Iterator[Layout]:
    """A few slices of an axis are zero or scaled, all others right."""
    for axis, size in enumerate(expected.shape):
        if size < 4:
            continue
        rows_e = np.moveaxis(expected, axis, 0).reshape(size, -1)
        rows_a = np.moveaxis(actual, axis, 0).reshape(size, -1)
        error = ((rows_a - rows_e) ** 2).sum(1)
        worst = np.flatnonzero(error > 1e-3 * error.max())
        if not 0 < len(worst) <= max(size // 4, 1) or len(worst) > 8:
            continue
        power = (rows_e[worst] ** 2).sum(1)
        times = (rows_a[worst] * rows_e[worst]).sum(1) / np.where(power == 0.0, 1.0, power)
        factor = np.ones(size)
        factor[worst] = times
        told = ", ".join(f"{at} by {by:.3g}" for at, by in zip(worst, times, strict=True))
        shape = [-1 if at == axis else 1 for at in range(expected.ndim)]
        word = _word(axes, axis)
        fit = (*map(float, worst), *map(float, times)) if rows_e.shape[1] == 1 else ()
        kind = f"{word} scaled" if fit else ""
        yield Layout(f"{word} scaled: {told}", expected * factor.reshape(shape), None, True, fit, kind)


def _word(axes: tuple[str, ...], axis: int) -> str:
    return WORDS.get(axes[axis], axes[axis]) if axis < len(axes) else f"axis {axis}"
