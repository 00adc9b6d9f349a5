"""The compiled part of judging: a record's rows against its noise floor, and the floor that rows show."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import numpy as np

from .kernel import _part, entry

S_ERR, S_REF, S_ERR_MAX, S_REF_MAX, S_MISMATCHED, S_NONFINITE, S_EXCLUDED = range(7)


@_part()
def _half_ulp(value, mantissa, normal, smallest):
    """Half the distance of neighbours of |value| on a grid; mantissa < 0: integers."""
    if mantissa < 0:
        return 0.5
    if not value > normal:
        return 0.5 * smallest
    return 2.0 ** (np.floor(np.log2(value)) - mantissa - 1)


def _worst_row(rows, row_size, whole, share, rms, peak, mantissa, normal, smallest):
    """Largest error over floor among rows, and its row: (ratio, row), (0, -1) when no row has an error.

    Of a row, RMS and maximum are held against max(level * scale, half an ULP of the row's largest value);
    scale = max(RMS of the row's reference, share * whole).
    """
    worst, at = 0.0, -1
    for r in range(rows.shape[0]):
        used = row_size - rows[r, S_EXCLUDED]
        if rows[r, S_ERR_MAX] == 0.0 or used <= 0:
            continue
        scale = max(np.sqrt(rows[r, S_REF] / used), share * whole)
        grain = _half_ulp(rows[r, S_REF_MAX], mantissa, normal, smallest)
        ratio = max(
            np.sqrt(rows[r, S_ERR] / used) / max(rms * scale, grain),
            rows[r, S_ERR_MAX] / max(peak * scale, grain),
        )
        if ratio > worst:
            worst, at = ratio, r
    return worst, float(at)


def _levels(rows, row_size, whole, share):
    """Largest relative RMS and maximum of errors among rows; rows of a zero tensor have none."""
    rms, peak = 0.0, 0.0
    for r in range(rows.shape[0]):
        used = row_size - rows[r, S_EXCLUDED]
        if rows[r, S_ERR_MAX] == 0.0 or used <= 0:
            continue
        scale = max(np.sqrt(rows[r, S_REF] / used), share * whole)
        if scale == 0.0:
            continue
        rms = max(rms, np.sqrt(rows[r, S_ERR] / used) / scale)
        peak = max(peak, rows[r, S_ERR_MAX] / scale)
    return rms, peak


WORST_ROW = entry(
    _worst_row,
    "UniTuple(float64,2)(float64[:,::1],int64,float64,float64,float64,float64,int64,float64,float64)",
)
LEVELS = entry(_levels, "UniTuple(float64,2)(float64[:,::1],int64,float64,float64)")
