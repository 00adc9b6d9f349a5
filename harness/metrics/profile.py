"""Slices: statistics of rows, and of every index of every axis, from the sums of one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .layout import Layout

Floats = np.ndarray[Any, np.dtype[np.float64]]

S_ERR, S_REF, S_ERR_MAX, S_REF_MAX, S_MISMATCHED, S_NONFINITE, S_EXCLUDED = range(7)
"""Order of a row's (and a column's) raw statistics: sums of squares, maxima, counts."""
MAX_LISTED = 4096
"""Rows or slices beyond this many are left out of JSON."""


@dataclass(frozen=True, slots=True)
class SliceProfile:
    """One number per index of an axis: RMS of errors and of expected values, largest error, counts."""

    err_rms: Floats
    ref_rms: Floats
    max_abs: Floats
    mismatched: Floats
    nonfinite: Floats

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists, to four significant digits: they are plotted, not judged."""
        columns = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {name: [float(f"{value:.4g}") for value in column] for name, column in columns.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, list[float]]) -> SliceProfile:
        """Read back what `to_json` wrote."""
        return cls(**{name: np.array(values, np.float64) for name, values in data.items()})


@dataclass(frozen=True, slots=True)
class RowStats:
    """Statistics of every row, `[R]` each; `row_size` elements a row, `row_shape` the axes before them.

    Excluded places (not finite, or mask fills) take no part in RMS and maxima.
    """

    err_rms: Floats
    ref_rms: Floats
    err_max: Floats
    ref_max: Floats
    mismatched: Floats
    nonfinite: Floats
    row_size: int
    row_shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.err_rms.size


def row_stats(raw: Floats, plan: Layout) -> RowStats:
    """Rows from their raw sums `[R, 7]`."""
    used = np.maximum(plan.row_size - raw[:, S_EXCLUDED], 1.0)
    return RowStats(
        np.sqrt(raw[:, S_ERR] / used),
        np.sqrt(raw[:, S_REF] / used),
        raw[:, S_ERR_MAX],
        raw[:, S_REF_MAX],
        raw[:, S_MISMATCHED],
        raw[:, S_NONFINITE],
        plan.row_size,
        plan.row_shape,
    )


def slice_profiles(rows: Floats, columns: Floats, plan: Layout) -> dict[str, SliceProfile]:
    """A profile for each axis that rows or columns resolve, in the order of the axes."""
    profiles = {}
    outer = len(plan.row_shape)
    inner = len(plan.shape) - plan.line_dims if columns.shape[1] else len(plan.shape)
    for dim, name in enumerate(plan.axes):
        if dim < outer:
            raw = _reduce(rows.T.reshape(7, *plan.row_shape), dim)
        elif dim >= inner:
            raw = _reduce(columns.reshape(7, *plan.shape[inner:]), dim - inner)
        else:
            continue
        profiles[name] = _profile(raw, plan.size // plan.shape[dim])
    return profiles


def _reduce(raw: Floats, dim: int) -> Floats:
    """Raw statistics `[7, ...]` of one axis: sums add up, maxima stay maxima."""
    others = tuple(i for i in range(1, raw.ndim) if i != dim + 1)
    out: Floats = raw.sum(axis=others)
    for stat in (S_ERR_MAX, S_REF_MAX):
        out[stat] = raw[stat].max(axis=tuple(i - 1 for i in others))
    return out


def _profile(raw: Floats, size: int) -> SliceProfile:
    used = np.maximum(size - raw[S_EXCLUDED], 1.0)
    return SliceProfile(
        np.sqrt(raw[S_ERR] / used),
        np.sqrt(raw[S_REF] / used),
        raw[S_ERR_MAX],
        raw[S_MISMATCHED],
        raw[S_NONFINITE],
    )
