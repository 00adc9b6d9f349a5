"""Which of the two compiled passes takes a number format, and how its values get there without rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import dtypes

Array = np.ndarray[Any, Any]

_WIDE = frozenset(("float64", "int32", "uint32", "int64", "uint64", "complex128"))
_EXACT = frozenset(("int64", "uint64"))
_COMPLEX = {"complex64": "float32", "complex128": "float64"}
_NO_GRID = (0, 0, 0), 0.0, 0.0
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Format:
    """A number format as the judge needs it: spacing of its grid, or a step of 1 for integers."""

    name: str
    kind: str
    mantissa: int
    smallest_normal: float
    smallest: float

    def half_ulp(self, value: float) -> float:
        """Half the distance between neighbours at |value|: the rounding of one operation."""
        if self.kind != "float":
            return 0.5
        if not value > self.smallest_normal:
            return 0.5 * self.smallest
        return float(2.0 ** (np.frexp(value)[1] - 2 - self.mantissa))


@cache
def number_format(name: str) -> Format:
    """Grid of a logical dtype; complex formats have that of their parts."""
    part = _COMPLEX.get(name, name)
    if not part.startswith(("float", "bfloat")):
        return Format(name, "integer", 0, 1.0, 1.0)
    info = _finfo(part)
    return Format(name, "float", int(info.nmant), float(info.smallest_normal), float(info.smallest_subnormal))


def _finfo(name: str) -> Any:
    if name in ("float16", "float32", "float64"):
        return np.finfo(name)
    import ml_dtypes

    return ml_dtypes.finfo(dtypes.logical_dtype(name))


@dataclass(frozen=True, slots=True)
class Route:
    """How a pair of formats is measured.

    `wide`: in the float64 pass, else in the float32 pass. `exact`: differences of 64-bit integers are taken
    before rounding. `fills`: mask fills are looked for. `ulp` is the kernel's mode with shift and offset, and
    goes with the smallest normal and 1 / smallest subnormal; bfloat16 distances are those of float32 >> 16.
    """

    actual: Callable[[Array], Array]
    expected: Callable[[Array], Array]
    wide: bool
    exact: bool
    fills: bool
    ulp: tuple[int, int, int]
    ulp_normal: float
    ulp_scale: float


@cache
def route(actual: str, expected: str) -> Route:
    """The route of a pair of logical dtypes (complex formats arrive as their parts)."""
    wide = bool({actual, expected} & _WIDE)
    target = np.dtype("float64" if wide else "float32")
    ulp = _NO_GRID
    if actual == expected and number_format(actual).kind == "float":
        ulp = _ulp_grid(actual)
    return Route(
        _widener(actual, target),
        _widener(expected, target),
        wide,
        bool({actual, expected} & _EXACT) and _whole(actual) and _whole(expected),
        actual in _FLOATS and expected in _FLOATS,
        *ulp,
    )


def _whole(name: str) -> bool:
    return "int" in name or name == "bool"


def _ulp_grid(name: str) -> tuple[tuple[int, int, int], float, float]:
    """Kernel mode and constants that turn float32 bits into the place on a format's own grid."""
    if name in ("float32", "float64", "bfloat16"):
        return (1, 0, 0), 0.0, 0.0
    own = number_format(name)
    if name.endswith("e8m0fnu"):
        return _NO_GRID
    shift = 23 - own.mantissa
    at_normal = int(np.float32(own.smallest_normal).view(np.int32)) >> shift
    return (2, shift, at_normal - (1 << own.mantissa)), own.smallest_normal, 1.0 / own.smallest


def _dense(block: Array) -> Array:
    """A contiguous array in the machine's byte order: what was given, if it is that already."""
    if block.dtype.isnative and block.flags.c_contiguous:
        return block
    return np.ascontiguousarray(block, block.dtype.newbyteorder("="))


def _widener(name: str, target: np.dtype[Any]) -> Callable[[Array], Array]:
    if name == target.name:
        return _dense
    if name.startswith("float8"):
        table = np.arange(256, dtype=np.uint8).view(dtypes.logical_dtype(name)).astype(target)
        return lambda block: table[block.view(np.uint8)]
    return lambda block: block.astype(target)


def exact_difference(actual: Array, expected: Array) -> Array:
    """a - e of integers of up to 64 bits, signed or not, rounded once to float64.

    Halves of 32 bits are subtracted exactly; their recombination is the only rounding.
    """
    (high_a, low_a), (high_e, low_e) = _halves(actual), _halves(expected)
    difference: Array = (high_a - high_e).astype(np.float64) * 2.0**32 + (low_a - low_e).astype(np.float64)
    return difference


def _halves(array: Array) -> tuple[Array, Array]:
    """Upper and lower 32 bits as int64, the upper ones signed."""
    wide = array if array.dtype.itemsize == 8 else array.astype(np.int64)
    one = wide.dtype.type
    return (wide >> one(32)).astype(np.int64), (wide & one(0xFFFFFFFF)).astype(np.int64)


def parts(array: Array) -> Array:
    """A complex array as its real and imaginary parts along a new last axis."""
    dense = np.ascontiguousarray(array)
    return dense.reshape((*array.shape, 1)).view(_COMPLEX[array.dtype.name])
