"""The compiled pass: every sum, maximum and count over one chunk, in float64.

A chunk is walked in blocks of at most `BLOCK` elements (whole lines, or a piece of one), so that all loops over a
block find it in the first-level cache. A block with NaN, Inf or mask fills is first copied with those places set
to zero on both sides: they are counted and add nothing to any sum, and all loops see plain finite numbers.

All compiled functions of the pass lie in this file because numba's cache watches no other.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

BLOCK = 1024
BINS = 320
EXPONENT_LOW = -161
"""Bin k of the joint histogram holds magnitudes of binade k + EXPONENT_LOW; the ends hold what lies beyond."""
FILL_BOUND = -9984.0
"""A mask fill is at most this: -1e4 as bfloat16 rounds it."""
GUARD_SHARE = 0.01
"""Relative errors are taken against max(|expected|, this share of the RMS of the block)."""

# slots of the accumulator: floats, then integers in the same memory
ERR_SQ, REF_SQ, ACT_SQ, DOT, ERR_ABS, MAX_ABS, ACTUAL_AT, EXPECTED_AT, MAX_REL, GUARD_AT, MAX_REF, MAX_ACT, WORST = range(13)
MAX_ABS_AT, MAX_REL_AT, ULP, MISMATCHED = range(13, 17)
NAN_A, NAN_E, NAN_BOTH, POS_A, NEG_A, POS_E, NEG_E, INF_MISMATCH = range(17, 25)
STRUCTURAL, RESPELLED, EXCLUDED, CELLS = range(25, 29)
SLOTS = 29
# statistics of a row (last index of `rows`) and of a column (first index of `cols`)
S_ERR, S_REF, S_ERR_MAX, S_REF_MAX, S_MISMATCHED, S_NONFINITE, S_EXCLUDED = range(7)
STATS = 7
# geometry, and parameters followed by the named fills
START, LINE, ROW, COLUMNS, FULL, ULP_MODE, ULP_SHIFT, ULP_OFFSET, FILLS = range(9)
ATOL, RTOL, ULP_SCALE, ULP_NORMAL, FIRST_FILL = range(5)
NO_ULP, NATIVE_ULP, SMALL_ULP = range(3)

_LOWEST = (-65504.0, -3.3895313892515355e38, -3.4028234663852886e38, -1.7976931348623157e308)
_SUMS = {"reassoc", "contract"}


def _jit(signature: str | None = None, *, fastmath: Any = False) -> Any:
    """`njit` with a cache where one can be written, without elsewhere (a read-only install)."""
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    arguments = [signature] if signature else []

    def wrap(function: Any) -> Any:
        try:
            return nb.njit(*arguments, cache=True, **options)(function)
        except RuntimeError:
            return nb.njit(*arguments, **options)(function)

    return wrap


# --- finding and setting aside what is not an ordinary number ---


@_jit()
def _extent(bits, flip):
    """Largest bit pattern as signed and as unsigned: the most positive and the most negative float."""
    high, low = bits[0], bits[0] ^ flip
    for i in range(1, bits.size):
        high = max(high, bits[i])
        low = max(low, bits[i] ^ flip)
    return high, low ^ flip


@_jit()
def _magnitude(high, low, flip):
    """Bits of the largest |x|, from what `_extent` returns."""
    return max(high if high >= 0 else 0, low ^ flip if low < 0 else 0)


@_jit()
def _is_lowest(value):
    return value == -np.inf or value in _LOWEST


@_jit()
def _is_named(value, par):
    for i in range(FIRST_FILL, par.size):
        if value == par[i]:
            return True
    return False


@_jit()
def _fill(x, y, i, par):
    """0: no mask fill; 1: the same fill on both sides; 2: -inf or a type's minimum, spelled in two ways."""
    p, q = np.float64(x[i]), np.float64(y[i])
    if not (p <= FILL_BOUND and q <= FILL_BOUND):
        return 0
    if p != q:
        return 2 if _is_lowest(p) and _is_lowest(q) else 0
    if _is_lowest(q) or _is_named(q, par):
        return 1
    left = i > 0 and y[i - 1] == y[i]
    right = i + 1 < y.size and y[i + 1] == y[i]
    return 1 if left or right else 0


@_jit()
def _count_nonfinite(p, q, n):
    """Count a place with NaN or Inf on either side."""
    n[NAN_A] += np.isnan(p)
    n[NAN_E] += np.isnan(q)
    n[NAN_BOTH] += np.isnan(p) and np.isnan(q)
    n[POS_A] += p == np.inf
    n[NEG_A] += p == -np.inf
    n[POS_E] += q == np.inf
    n[NEG_E] += q == -np.inf


@_jit()
def _clean(x, y, cx, cy, par, fills, n, rows, cols, place, geo):
    """Copy a block with NaN, Inf and mask fills as zeros on both sides; count them."""
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(y[i])
        kind = _fill(x, y, i, par) if fills else 0
        finite = np.isfinite(p) and np.isfinite(q)
        if kind == 0 and finite:
            cx[i], cy[i] = x[i], y[i]
            continue
        cx[i], cy[i] = 0.0, 0.0
        wrong = kind == 0 and p != q
        if not finite:
            _count_nonfinite(p, q, n)
        n[INF_MISMATCH] += wrong and not (np.isnan(p) or np.isnan(q))
        n[STRUCTURAL] += kind > 0
        n[RESPELLED] += kind == 2
        n[EXCLUDED] += 1
        n[MISMATCHED] += wrong
        if rows.size:
            row = (place + i) // geo[ROW]
            rows[row, S_MISMATCHED] += wrong
            rows[row, S_NONFINITE] += kind == 0
            rows[row, S_EXCLUDED] += 1
        if cols.size:
            column = (place + i) % geo[LINE]
            cols[S_MISMATCHED, column] += wrong
            cols[S_NONFINITE, column] += kind == 0
            cols[S_EXCLUDED, column] += 1


# --- loops over one block of finite numbers ---


@_jit(fastmath=_SUMS)
def _differences(x, y, exact, d):
    """|x - y| into `d`; sums of d*d, y*y, x*x, x*y and d."""
    dd, yy, xx, xy, d1 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(y[i])
        r = abs(p - q)
        d[i] = r
        dd += r * r
        yy += q * q
        xx += p * p
        xy += p * q
        d1 += r
    if exact.size:
        dd, d1 = 0.0, 0.0
        for i in range(x.size):
            r = abs(exact[i])
            d[i] = r
            dd += r * r
            d1 += r
    return dd, yy, xx, xy, d1


@_jit()
def _mismatches(d, y, atol, rtol):
    """Places where d <= atol + rtol * |y| does not hold, rounded as `tolerance.within` rounds."""
    count = 0
    for i in range(y.size):
        count += d[i] > atol + rtol * abs(np.float64(y[i]))
    return count


@_jit()
def _judged(d, y, atol, rtol, worst):
    """Mismatches, and how many d exceed `worst` times what is allowed."""
    count, beyond = 0, 0
    for i in range(y.size):
        allowed = atol + rtol * abs(np.float64(y[i]))
        count += d[i] > allowed
        beyond += d[i] > worst * allowed
    return count, beyond


@_jit()
def _raise_worst(d, y, atol, rtol, worst):
    """Largest d as a multiple of what is allowed."""
    for i in range(y.size):
        if d[i] > 0.0:
            worst = max(worst, d[i] / (atol + rtol * abs(np.float64(y[i]))))
    return worst


@_jit()
def _largest(values):
    """Maximum of non-negative floats, by their bits."""
    bits = values.view(np.int64)
    high = np.int64(0)
    for i in range(bits.size):
        high = max(high, bits[i])
    return high


@_jit()
def _raise_absolute(d, high, x, y, place, acc, n):
    """Keep the largest absolute error, its place and both values there."""
    for i in range(y.size):
        if d[i] == high:
            acc[MAX_ABS], acc[ACTUAL_AT], acc[EXPECTED_AT] = high, x[i], y[i]
            n[MAX_ABS_AT] = place + i
            return


@_jit()
def _exceeds(d, y, best, guard):
    """How many d exceed best * max(|y|, guard)."""
    count = 0
    for i in range(y.size):
        size = abs(np.float64(y[i]))
        size = size if size > guard else guard
        count += d[i] > best * size
    return count


@_jit()
def _raise_relative(d, y, guard, place, acc, n):
    """Keep the largest relative error, its place and its guard."""
    for i in range(y.size):
        size = max(abs(np.float64(y[i])), guard)
        if d[i] > 0.0 and d[i] / size > acc[MAX_REL]:
            acc[MAX_REL], acc[GUARD_AT] = d[i] / size, guard
            n[MAX_REL_AT] = place + i


@_jit()
def _ulps(xb, yb, flip):
    """Largest distance in steps of the common float grid; -0 and +0 are one point."""
    worst = np.uint64(0)
    for i in range(xb.size):
        p = xb[i] if xb[i] >= 0 else flip - xb[i]
        q = yb[i] if yb[i] >= 0 else flip - yb[i]
        worst = max(worst, np.uint64(max(p, q)) - np.uint64(min(p, q)))
    return worst


@_jit()
def _small_key(value, bits, flip, geo, par):
    """Place of a float of fewer than 32 bits on its own grid, from its widening."""
    size = abs(value)
    key = np.int64(size * par[ULP_SCALE])
    if size >= par[ULP_NORMAL]:
        key = (np.int64(bits & ~flip) >> geo[ULP_SHIFT]) - geo[ULP_OFFSET]
    return -key if value < 0.0 else key


@_jit()
def _small_ulps(x, y, xb, yb, flip, geo, par):
    worst = np.int64(0)
    for i in range(x.size):
        p = _small_key(np.float64(x[i]), xb[i], flip, geo, par)
        q = _small_key(np.float64(y[i]), yb[i], flip, geo, par)
        worst = max(worst, abs(p - q))
    return np.uint64(worst)


@_jit()
def _bin(bits):
    """Bin of a float64 from its exponent bits."""
    return min(max(((bits >> 52) & 0x7FF) - (1023 + EXPONENT_LOW), 0), BINS - 1)


@_jit()
def _cells(d, y, wide, cell):
    for i in range(y.size):
        wide[i] = y[i]
    db, wb = d.view(np.int64), wide.view(np.int64)
    for i in range(y.size):
        cell[i] = _bin(db[i]) * BINS + _bin(wb[i])


@_jit()
def _scatter(d, cell, n, counts, peaks, touched):
    """Joint histogram of the non-zero errors: how many, and the largest, per cell."""
    known = n[CELLS]
    for i in range(d.size):
        if d[i] > 0.0:
            k = cell[i]
            if counts[k] == 0:
                touched[known] = k
                known += 1
            counts[k] += 1
            if d[i] > peaks[k]:
                peaks[k] = d[i]
    n[CELLS] = known


@_jit(fastmath=_SUMS)
def _row(d, y, row):
    """Sums of squares of one line, or of a piece of one, into its row."""
    dd, yy = 0.0, 0.0
    for i in range(d.size):
        q = np.float64(y[i])
        dd += d[i] * d[i]
        yy += q * q
    row[S_ERR] += dd
    row[S_REF] += yy


@_jit(fastmath=_SUMS)
def _columns(d, y, err, ref):
    for i in range(d.size):
        q = np.float64(y[i])
        err[i] += d[i] * d[i]
        ref[i] += q * q


@_jit()
def _column_peaks(d, peaks):
    p, q = peaks.view(np.int64), d.view(np.int64)
    for i in range(d.size):
        p[i] = max(p[i], q[i])


@_jit()
def _column_mismatches(d, y, wrong, atol, rtol):
    for i in range(d.size):
        wrong[i] += d[i] > atol + rtol * abs(np.float64(y[i]))


# --- putting a block together ---


@_jit()
def _slices(d, y, yb, flip, place, wrong, geo, par, rows, cols, box, ybox):
    """Rows and columns of a block that holds whole lines or a piece of one."""
    line, at = geo[LINE], 0
    ybits = ybox.view(yb.dtype)
    while at < d.size:
        column = (place + at) % line
        take = min(line - column, d.size - at)
        dl, yl = d[at : at + take], y[at : at + take]
        row = rows[(place + at) // geo[ROW]]
        _row(dl, yl, row)
        box.view(np.int64)[0] = _largest(dl)
        row[S_ERR_MAX] = max(row[S_ERR_MAX], box[0])
        high, low = _extent(yb[at : at + take], flip)
        ybits[0] = _magnitude(high, low, flip)
        row[S_REF_MAX] = max(row[S_REF_MAX], np.float64(ybox[0]))
        if wrong:
            row[S_MISMATCHED] += _mismatches(dl, yl, par[ATOL], par[RTOL])
        if geo[COLUMNS]:
            end = column + take
            _columns(dl, yl, cols[S_ERR, column:end], cols[S_REF, column:end])
            _column_peaks(dl, cols[S_ERR_MAX, column:end])
            if wrong:
                _column_mismatches(dl, yl, cols[S_MISMATCHED, column:end], par[ATOL], par[RTOL])
        at += take


@_jit()
def _full(x, y, xb, yb, flip, d, cell, wide, place, ref_sq, used, geo, par, acc, n, counts, peaks, touched):
    """What a block with errors adds beyond the plain reductions, slices apart."""
    guard = GUARD_SHARE * np.sqrt(ref_sq / used)
    if _exceeds(d, y, acc[MAX_REL], guard):
        _raise_relative(d, y, guard, place, acc, n)
    worst = np.uint64(0)
    if geo[ULP_MODE] == NATIVE_ULP:
        worst = _ulps(xb, yb, flip)
    elif geo[ULP_MODE] == SMALL_ULP:
        worst = _small_ulps(x, y, xb, yb, flip, geo, par)
    n[ULP] = np.int64(max(np.uint64(n[ULP]), worst))
    _cells(d, y, wide, cell)
    _scatter(d, cell, n, counts, peaks, touched)


@_jit()
def _take(place, left, line):
    """Length of the next block: whole lines when several fit, else a piece of one."""
    offset = place % line
    if offset == 0 and line <= BLOCK:
        return min(BLOCK // line * line, left)
    return min(min(BLOCK, line - offset), left)


@_jit()
def _pass(a, e, ab, eb, exact, flip, inf, fill, geo, par, acc, rows, cols, counts, peaks, touched):
    n = acc.view(np.int64)
    dbuf, wide, cells = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK, np.int32)
    box, abox = np.empty(1), np.empty(1, a.dtype)
    full = geo[FULL] != 0
    done = 0
    while done < a.size:
        place = geo[START] + done
        end = done + _take(place, a.size - done, geo[LINE])
        x, y, xb, yb, ex = a[done:end], e[done:end], ab[done:end], eb[done:end], exact[done:end]
        used = end - done
        hx, lx = _extent(xb, flip)
        hy, ly = _extent(yb, flip)
        mx, my = _magnitude(hx, lx, flip), _magnitude(hy, ly, flip)
        fills = geo[FILLS] != 0 and lx < 0 and ly < 0 and (lx ^ flip) >= fill and (ly ^ flip) >= fill
        if fills or mx >= inf or my >= inf:
            before = n[EXCLUDED]
            cx, cy = np.empty(used, a.dtype), np.empty(used, a.dtype)
            _clean(x, y, cx, cy, par, geo[FILLS] != 0, n, rows, cols, place, geo)
            used -= n[EXCLUDED] - before
            x, y, xb, yb = cx, cy, cx.view(ab.dtype), cy.view(ab.dtype)
            hx, lx = _extent(xb, flip)
            hy, ly = _extent(yb, flip)
            mx, my = _magnitude(hx, lx, flip), _magnitude(hy, ly, flip)
        abits = abox.view(ab.dtype)
        abits[0] = mx
        acc[MAX_ACT] = max(acc[MAX_ACT], np.float64(abox[0]))
        abits[0] = my
        acc[MAX_REF] = max(acc[MAX_REF], np.float64(abox[0]))
        d = dbuf[: end - done]
        dd, yy, xx, xy, d1 = _differences(x, y, ex, d)
        acc[ERR_SQ] += dd
        acc[REF_SQ] += yy
        acc[ACT_SQ] += xx
        acc[DOT] += xy
        acc[ERR_ABS] += d1
        box.view(np.int64)[0] = _largest(d)
        high, wrong = box[0], 0
        if high > 0.0:
            wrong, beyond = _judged(d, y, par[ATOL], par[RTOL], acc[WORST])
            n[MISMATCHED] += wrong
            if beyond:
                acc[WORST] = _raise_worst(d, y, par[ATOL], par[RTOL], acc[WORST])
            if high > acc[MAX_ABS]:
                _raise_absolute(d, high, x, y, place, acc, n)
            if full:
                _full(x, y, xb, yb, flip, d, cells, wide, place, yy, used, geo, par, acc, n, counts, peaks, touched)
        if full:
            _slices(d, y, yb, flip, place, wrong, geo, par, rows, cols, box, abox)
        done = end


@_jit()
def _harvest(n, counts, peaks, touched, out):
    """Move the touched cells of the joint histogram out, and clear them."""
    for i in range(n[CELLS]):
        k = touched[i]
        out[i, 0], out[i, 1], out[i, 2] = k, counts[k], peaks[k]
        counts[k], peaks[k] = 0, 0.0
    n[CELLS] = 0


_TAIL = "float64[::1],int64[::1],float64[::1],float64[::1],float64[:,::1],float64[:,::1],int64[::1],float64[::1],int32[::1])"


@_jit("void(float32[::1],float32[::1]," + _TAIL)
def pass32(a, e, exact, geo, par, acc, rows, cols, counts, peaks, touched):
    """One chunk of float32 pairs."""
    flip, inf, fill = np.int32(-(2**31)), np.int32(0x7F800000), np.int32(0x461C0000)
    _pass(a, e, a.view(np.int32), e.view(np.int32), exact, flip, inf, fill, geo, par, acc, rows, cols, counts, peaks, touched)


@_jit("void(float64[::1],float64[::1]," + _TAIL)
def pass64(a, e, exact, geo, par, acc, rows, cols, counts, peaks, touched):
    """One chunk of float64 pairs; `exact`, when not empty, holds a - e of wide integers."""
    flip, inf, fill = np.int64(-(2**63)), np.int64(0x7FF0000000000000), np.int64(0x40C3800000000000)
    _pass(a, e, a.view(np.int64), e.view(np.int64), exact, flip, inf, fill, geo, par, acc, rows, cols, counts, peaks, touched)


@_jit("void(float64[::1],int64[::1],float64[::1],int32[::1],float64[:,::1])")
def harvest(acc, counts, peaks, touched, out):
    """Move the joint histogram out as rows (cell, count, largest error), and clear it."""
    _harvest(acc.view(np.int64), counts, peaks, touched, out)
