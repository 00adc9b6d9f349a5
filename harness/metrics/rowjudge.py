"""The compiled part of judging: a record's rows against its noise floor, and the floor that rows show."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import numpy as np

from .kernel import _part, entry

S_ERR, S_REF, S_ERR_MAX, S_REF_MAX, S_MISMATCHED, S_NONFINITE, S_EXCLUDED = range(7)
DOMINANT = 0.5
"""One value dominates a row when it holds more than this share of the row's energy."""
CANCELLED = 1e-12
"""What is left of a sum of squares below this share of it is rounding."""


@_part()
def _half_ulp(value, mantissa, normal, smallest):
    """Half the distance of neighbours of |value| on a grid; mantissa < 0: integers."""
    if mantissa < 0:
        return 0.5
    if not value > normal:
        return 0.5 * smallest
    return 2.0 ** (np.floor(np.log2(value)) - mantissa - 1)


@_part()
def _rest(rows, r, used):
    """Of a row that one value dominates: mean squares of the errors and of the values without the largest.

    (-1, 0) for any other row. The largest error is taken for that value's: where it is not, the value's own
    error is smaller, and no healthy row is made to look worse.
    """
    top = rows[r, S_REF_MAX] * rows[r, S_REF_MAX]
    if used < 8 or top <= DOMINANT * rows[r, S_REF]:
        return -1.0, 0.0
    error = rows[r, S_ERR] - rows[r, S_ERR_MAX] * rows[r, S_ERR_MAX]
    error = error if error > CANCELLED * rows[r, S_ERR] else 0.0
    value = rows[r, S_REF] - top
    value = value if value > CANCELLED * top else 0.0
    return error / (used - 1), value / (used - 1)


def _worst_row(rows, row_size, whole, share, rms, peak, rest, mantissa, normal, smallest, shares):
    """Largest error over floor among rows, and its row: (ratio, row), (0, -1) when no row has an error.

    Of a row, RMS and maximum are held against max(level * scale, half an ULP of the row's largest value);
    scale = max(RMS of the row's reference, share * whole). `shares` `[rows, 2]` make the levels of each row
    smaller, in 255ths; there may be none. Where one value dominates the row, the others are also judged
    without it, against `rest` times their own RMS.
    """
    worst, at = 0.0, -1
    for r in range(rows.shape[0]):
        used = row_size - rows[r, S_EXCLUDED]
        if rows[r, S_ERR_MAX] == 0.0 or used <= 0:
            continue
        scale = max(np.sqrt(rows[r, S_REF] / used), share * whole)
        grain = _half_ulp(rows[r, S_REF_MAX], mantissa, normal, smallest)
        mean, most = rms * scale, peak * scale
        if r < shares.shape[0]:
            mean *= shares[r, 0] / 255.0
            most *= shares[r, 1] / 255.0
        ratio = max(np.sqrt(rows[r, S_ERR] / used) / max(mean, grain), rows[r, S_ERR_MAX] / max(most, grain))
        if rest > 0.0:
            error, value = _rest(rows, r, used)
            if error > 0.0 and value > 0.0:
                own = np.sqrt(value)
                grain = _half_ulp(own, mantissa, normal, smallest)
                ratio = max(ratio, np.sqrt(error) / max(rest * own, grain))
        if ratio > worst:
            worst, at = ratio, r
    return worst, float(at)


def _levels(rows, row_size, whole, share):
    """Largest relative RMS and maximum of errors among rows, and RMS beside a dominant value.

    Rows of a zero tensor have none; the last is 0 where no row is dominated by one value.
    """
    rms, peak, rest = 0.0, 0.0, 0.0
    for r in range(rows.shape[0]):
        used = row_size - rows[r, S_EXCLUDED]
        if rows[r, S_ERR_MAX] == 0.0 or used <= 0:
            continue
        scale = max(np.sqrt(rows[r, S_REF] / used), share * whole)
        if scale == 0.0:
            continue
        rms = max(rms, np.sqrt(rows[r, S_ERR] / used) / scale)
        peak = max(peak, rows[r, S_ERR_MAX] / scale)
        error, value = _rest(rows, r, used)
        if error > 0.0 and value > 0.0:
            rest = max(rest, np.sqrt(error / value))
    return rms, peak, rest


WORST_ROW = entry(
    _worst_row,
    "UniTuple(float64,2)(float64[:,::1],int64,float64,float64,float64,float64,float64,int64,float64,float64,"
    "uint8[:,::1])",
)
LEVELS = entry(_levels, "UniTuple(float64,3)(float64[:,::1],int64,float64,float64)")
