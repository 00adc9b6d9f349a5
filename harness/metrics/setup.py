"""What is settled before anything is measured: layout, route, and the tables that the compiled pass reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from . import kernel as k
from .layout import Layout, layout
from .widen import Route, exact_difference, route

Array = np.ndarray[Any, Any]
Values = tuple[Array, Array, Array, Array]
"""The first arguments of the pass: both sides, exact differences of wide integers, bit patterns."""

PLAIN, SUMS, ROWS, FULL = "plain", "sums", "rows", "full"
"""How much is measured: sums; also ULP distance; also rows; also columns and the joint histogram. The last
three give the same numbers, to the bit, where they give any."""

FILLS = tuple(-(10.0**power) for power in (4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 38))
"""Mask fills known by value, also as bfloat16 and float16 round them; others are known by repeating."""

_NO_DIFFERENCE: Array = np.empty(0, np.float64)


@dataclass(frozen=True, slots=True)
class Setup:
    """What holds for every pair of one shape and two number formats; `names` are those of the formats."""

    plan: Layout
    names: tuple[str, str]
    way: Route
    detail: str
    geometry: Array
    parameters: Array

    @property
    def num_rows(self) -> int:
        """How many rows are measured."""
        return self.plan.num_rows if self.detail in (ROWS, FULL) else 0

    def values(self, actual: Array, expected: Array) -> Values:
        """Flat arrays as the pass takes them."""
        way = self.way
        exact: Array = exact_difference(actual, expected) if way.exact else _NO_DIFFERENCE
        return way.actual(actual), way.expected(expected), exact, k.LIMITS[way.wide]

    def no_values(self) -> Values:
        """The same of empty arrays."""
        nothing: Array = np.empty(0, np.float64 if self.way.wide else np.float32)
        return nothing, nothing, _NO_DIFFERENCE, k.LIMITS[self.way.wide]


@lru_cache(maxsize=4096)
def setup(shape: tuple[int, ...], axes: str, actual: str, expected: str, detail: str) -> Setup:
    """The setup of a pair; UserError when `axes` does not fit `shape`."""
    plan, way = layout(shape, axes), route(actual, expected)
    geometry = np.zeros(k.GEOMETRY, np.int64)
    geometry[[k.SIZE, k.LINE, k.ROW, k.FILLS]] = plan.size, max(plan.size, 1), 1, way.fills
    if detail != PLAIN:
        geometry[[k.LINE, k.ROW]] = plan.line, plan.row_size
        geometry[k.ULP_MODE : k.ULP_OFFSET + 1] = way.ulp
    geometry[k.BY_ROW] = detail in (ROWS, FULL)
    if detail == FULL:
        geometry[[k.BY_CELL, k.COLUMNS]] = 1, plan.columns
    parameters = np.array((way.ulp_scale, way.ulp_normal, *_NAMED))
    return Setup(plan, (actual, expected), way, detail, geometry, parameters)


def _named_fills() -> tuple[float, ...]:
    import ml_dtypes

    known = np.array(FILLS)
    with np.errstate(over="ignore"):
        spelled = [known.astype(t).astype(np.float64) for t in (np.float32, ml_dtypes.bfloat16, np.float16)]
    values = {float(value) for array in (known, *spelled) for value in array}
    return tuple(sorted(value for value in values if np.isfinite(value)))


_NAMED = _named_fills()
