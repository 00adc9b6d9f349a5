"""The joint histogram of |error| and |expected| by binades, and what can be bounded from it later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 320
EXPONENT_LOW = -161
"""Bin k > 0 holds [2^(k + EXPONENT_LOW), 2^(k + EXPONENT_LOW + 1)); the ends hold what lies beyond."""
LOWEST = EXPONENT_LOW + 1
HIGHEST = EXPONENT_LOW + BINS - 1

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Joint:
    """Cells of non-zero errors, ordered by error, then expected value: `[cells]` each.

    `err_log2` and `ref_log2` are binades (floor of log2), `count` places, `err_max` the largest |error|.
    The lowest `ref_log2` also holds expected zeros.
    """

    err_log2: Ints
    ref_log2: Ints
    count: Ints
    err_max: Floats

    @classmethod
    def from_cells(cls, cells: Floats) -> Joint:
        """From rows (cell, count, largest error) in any order, cells given more than once."""
        keys, place = np.unique(cells[:, 0].astype(np.int64), return_inverse=True)
        count = np.zeros(keys.size, np.int64)
        peak = np.zeros(keys.size)
        np.add.at(count, place, cells[:, 1].astype(np.int64))
        np.maximum.at(peak, place, cells[:, 2])
        return cls(keys // BINS + EXPONENT_LOW, keys % BINS + EXPONENT_LOW, count, peak)

    def ref_bounds(self) -> tuple[Floats, Floats]:
        """Bounds of |expected| in each cell: at least, below."""
        low = np.where(self.ref_log2 <= LOWEST, 0.0, np.ldexp(1.0, self.ref_log2))
        return low, np.where(self.ref_log2 >= HIGHEST, np.inf, np.ldexp(1.0, self.ref_log2 + 1))

    def mismatches(self, atol: float, rtol: float) -> tuple[int, int]:
        """Least and most places that can fail |a - e| <= atol + rtol * |e|, for any atol and rtol."""
        low, high = self.ref_bounds()
        with np.errstate(invalid="ignore", over="ignore"):
            most = self.err_max > atol + rtol * low
            ceiling = atol + (rtol * high if rtol else 0.0)
            least = np.where(self.err_max > ceiling, 1, 0)
            floor = np.where(self.err_log2 <= LOWEST, 0.0, np.ldexp(1.0, self.err_log2))
            least = np.where(floor > ceiling, self.count, least)
        return int(least.sum()), int(self.count[most].sum())

    def to_json(self) -> dict[str, list[Any]]:
        """Plain lists."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, list[Any]]) -> Joint:
        """Read back what `to_json` wrote."""
        err, ref, count = (np.array(data[name], np.int64) for name in ("err_log2", "ref_log2", "count"))
        return cls(err, ref, count, np.array(data["err_max"], np.float64))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Errors by binade: `log2`, `count`, `peak` of `[bins]`, ascending; `zeros` places are exactly equal."""

    log2: Ints
    count: Ints
    peak: Floats
    zeros: int

    @classmethod
    def from_joint(cls, joint: Joint, zeros: int) -> Histogram:
        """The marginal over expected values."""
        keys, place = np.unique(joint.err_log2, return_inverse=True)
        count = np.zeros(keys.size, np.int64)
        peak = np.zeros(keys.size)
        np.add.at(count, place, joint.count)
        np.maximum.at(peak, place, joint.err_max)
        return cls(keys, count, peak, zeros)

    def quantile(self, q: float) -> float:
        """A value that at least the share q of errors does not exceed: the largest error of the bin hit."""
        total = self.zeros + int(self.count.sum())
        needed = q * total - self.zeros
        if needed <= 0 or not self.count.size:
            return 0.0
        hit = int(np.searchsorted(np.cumsum(self.count), needed))
        return float(self.peak[min(hit, self.peak.size - 1)])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "log2": self.log2.tolist(),
            "count": self.count.tolist(),
            "peak": self.peak.tolist(),
            "zeros": self.zeros,
        }
