"""The compiled pass: every sum, maximum and count over one chunk, in float64.

A chunk is walked in blocks of at most `BLOCK` elements (whole lines, or a piece of one), so that all loops
over a block find it in the first-level cache. A block with NaN, Inf or mask fills is first copied with those
places set to zero on both sides: they are counted, add nothing to any sum, and the loops see finite numbers.

Values are widened and differences taken in float64; sums run over a block in an order that the compiler
picks, then over blocks in sequence: the relative error of a sum of squares stays below 1e-12.

All compiled functions of the pass, and their constants, lie in this file: numba's cache watches no other.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import numba as nb
import numpy as np

BLOCK = 1024
BINS = 320
EXPONENT_LOW = -161
"""Bin k > 0 of the joint histogram holds binade k + EXPONENT_LOW, the ends all beyond; 0 is no error."""
FILL_BOUND = -9984.0
"""A mask fill is at most this: -1e4 as bfloat16 rounds it."""
GUARD_SHARE = 0.01
"""Relative errors are taken against max(|expected|, this share of the RMS of the block)."""

# slots of the accumulator: floats, then integers in the same memory
(
    ERR_SQ,
    REF_SQ,
    ACT_SQ,
    DOT,
    ERR_ABS,
    MAX_ABS,
    ACTUAL_AT,
    EXPECTED_AT,
    MAX_REL,
    GUARD_AT,
    MAX_REF,
    MAX_ACT,
    WORST,
) = range(13)
MAX_ABS_AT, MAX_REL_AT, ULP, MISMATCHED = range(13, 17)
NAN_A, NAN_E, NAN_BOTH, POS_A, NEG_A, POS_E, NEG_E, INF_MISMATCH = range(17, 25)
STRUCTURAL, RESPELLED, EXCLUDED, CELLS = range(25, 29)
SLOTS = 29
# statistics of a row (last index of `rows`) and of a column (first index of `cols`)
S_ERR, S_REF, S_ERR_MAX, S_REF_MAX, S_MISMATCHED, S_NONFINITE, S_EXCLUDED = range(7)
STATS = 7
# geometry (lengths, and what is wanted beside the sums), and parameters followed by the named fills
SIZE, LINE, ROW, COLUMNS, BY_ROW, BY_CELL, ULP_MODE, ULP_SHIFT, ULP_OFFSET, FILLS = range(10)
GEOMETRY = 10
ULP_SCALE, ULP_NORMAL, FIRST_FILL = range(3)
# rows of the workspace: folded columns, then buffers
ERRORS, SIZES, BOX, WORK = range(STATS, STATS + 4)
NO_ULP, NATIVE_ULP, SMALL_ULP = range(3)
ORDINARY, FILL, SPELLINGS, NOT_FINITE = range(4)

_LOWEST = (-65504.0, -3.3895313892515355e38, -3.4028234663852886e38, -1.7976931348623157e308)
_SUMS = {"reassoc", "contract"}
_ONE_AT_A_TIME = Lock()


def _part(*, fastmath: Any = False) -> Any:
    """A function that only compiled ones call: inlined there, without wrappers or a cache of its own."""
    return nb.njit(fastmath=fastmath, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def entry(function: Any, signature: Any) -> Callable[[], Any]:
    """What gives the compiled form of a function that Python calls, compiled or loaded when first asked for.

    It is cached on disk where that can be written (not in a read-only install without a home) and runs
    without the interpreter lock. Made while its module is loaded, so that what is cached belongs to the
    source that was loaded, whatever lies there later.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        dispatcher = nb.njit(cache=True, **options)(function)
    except RuntimeError:
        dispatcher = nb.njit(**options)(function)

    @cache
    def compiled() -> Any:
        with _ONE_AT_A_TIME:
            if not dispatcher.signatures:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return compiled


# --- finding and setting aside what is not an ordinary number ---


@_part()
def _extent(bits, flip):
    """Largest bit pattern as signed and as unsigned: the most positive and the most negative float."""
    high, low = bits[0], bits[0] ^ flip
    for i in range(1, bits.size):
        high = max(high, bits[i])
        low = max(low, bits[i] ^ flip)
    return high, low ^ flip


@_part()
def _magnitude(high, low, flip):
    """Bits of the largest |x|, from what `_extent` returns."""
    return max(high if high >= 0 else 0, low ^ flip if low < 0 else 0)


@_part()
def _is_lowest(value):
    return value == -np.inf or value in _LOWEST


@_part()
def _repeated_fill(x, y):
    """A value of at most FILL_BOUND that stands twice in a row and on both sides; NaN: none."""
    for i in range(1, y.size):
        if y[i] <= FILL_BOUND and y[i] == y[i - 1] and x[i] == y[i]:
            return np.float64(y[i])
    return np.nan


@_part()
def _same_fill(x, y, i, repeated, par):
    """Whether x[i] == y[i] <= FILL_BOUND is a known constant, or a value that repeats in its block."""
    if y[i] == repeated or _is_lowest(np.float64(y[i])):
        return True
    for k in range(FIRST_FILL, par.size):
        if np.float64(y[i]) == par[k]:
            return True
    return (i > 0 and y[i - 1] == y[i]) or (i + 1 < y.size and y[i + 1] == y[i])


@_part()
def _kinds(x, y, fills, par, kinds):
    """What each place is: ORDINARY, a FILL on both sides, a fill in two SPELLINGS, or NOT_FINITE.

    A fill is -inf, the minimum of a float type, a known constant, or a value that repeats in its block. No
    array is handed on for an ordinary place: counting its references would take longer than all the rest.
    """
    repeated = _repeated_fill(x, y) if fills else np.nan
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(y[i])
        kind = ORDINARY if np.isfinite(p) and np.isfinite(q) else NOT_FINITE
        if fills and p <= FILL_BOUND and q <= FILL_BOUND:
            if p != q:
                kind = SPELLINGS if _is_lowest(p) and _is_lowest(q) else kind
            elif q == -np.inf or q == repeated or _same_fill(x, y, i, repeated, par):
                kind = FILL
        kinds[i] = kind


@_part()
def _count_kinds(x, y, kinds, n):
    """Count NaN, Inf, fills and what does not hold among the places that are left out."""
    for i in range(x.size):
        if kinds[i] == ORDINARY:
            continue
        p, q = np.float64(x[i]), np.float64(y[i])
        nan_a, nan_e = np.isnan(p), np.isnan(q)
        wrong = kinds[i] == NOT_FINITE and p != q
        n[NAN_A] += nan_a
        n[NAN_E] += nan_e
        n[NAN_BOTH] += nan_a and nan_e
        n[POS_A] += p == np.inf
        n[NEG_A] += p == -np.inf
        n[POS_E] += q == np.inf
        n[NEG_E] += q == -np.inf
        n[INF_MISMATCH] += wrong and not nan_a and not nan_e
        n[STRUCTURAL] += kinds[i] != NOT_FINITE
        n[RESPELLED] += kinds[i] == SPELLINGS
        n[EXCLUDED] += 1
        n[MISMATCHED] += wrong


@_part()
def _count_slices(x, y, kinds, place, geo, rows, cols):
    """Count what is left out, and what does not hold there, for rows and columns."""
    row, inside, column = place // geo[ROW], place % geo[ROW], place % geo[LINE]
    for i in range(x.size):
        if kinds[i] != ORDINARY:
            wrong = kinds[i] == NOT_FINITE and x[i] != y[i]
            rows[row, S_MISMATCHED] += wrong
            rows[row, S_NONFINITE] += kinds[i] == NOT_FINITE
            rows[row, S_EXCLUDED] += 1
            if cols.size:
                cols[S_MISMATCHED, column] += wrong
                cols[S_NONFINITE, column] += kinds[i] == NOT_FINITE
                cols[S_EXCLUDED, column] += 1
        inside, column = inside + 1, column + 1
        if column == geo[LINE]:
            column = 0
        if inside == geo[ROW]:
            row, inside = row + 1, 0


@_part()
def _clean(x, y, cx, cy, par, n, rows, cols, place, geo):
    """Copy a block with NaN, Inf and mask fills as zeros on both sides; count them."""
    kinds = np.empty(x.size, np.uint8)
    _kinds(x, y, geo[FILLS] != 0, par, kinds)
    _count_kinds(x, y, kinds, n)
    if rows.size:
        _count_slices(x, y, kinds, place, geo, rows, cols)
    for i in range(x.size):
        cx[i] = x[i] if kinds[i] == ORDINARY else 0.0
        cy[i] = y[i] if kinds[i] == ORDINARY else 0.0


# --- loops over one block of finite numbers ---


@_part(fastmath=_SUMS)
def _differences(x, y, exact, d, w):
    """|x - y| into `d`, |y| into `w`; sums of d*d, y*y, x*x, x*y and d."""
    dd, yy, xx, xy, d1 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(y[i])
        r = abs(p - q)
        d[i] = r
        w[i] = abs(q)
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


@_part()
def _largest(bits):
    """Maximum of non-negative floats, by their bits."""
    high = np.int64(0)
    for i in range(bits.size):
        high = max(high, bits[i])
    return high


@_part()
def _judged(d, w, atol, rtol, worst, relative, guard):
    """How many d exceed what is allowed (rounded as `tolerance.within` rounds), `worst` times that, and
    `relative` times max(w, guard)."""
    count, beyond, above = 0, 0, 0
    for i in range(d.size):
        allowed = atol + rtol * w[i]
        size = w[i] if w[i] > guard else guard
        count += d[i] > allowed
        beyond += d[i] > worst * allowed
        above += d[i] > relative * size
    return count, beyond, above


@_part()
def _raise_worst(d, w, atol, rtol, worst):
    """Largest d as a multiple of what is allowed."""
    for i in range(d.size):
        allowed = atol + rtol * w[i]
        if d[i] > worst * allowed:
            worst = d[i] / allowed
    return worst


@_part()
def _raise_absolute(d, high, x, y, place, acc, n):
    """Keep the largest absolute error, its place and both values there."""
    for i in range(d.size):
        if d[i] == high:
            acc[MAX_ABS], acc[ACTUAL_AT], acc[EXPECTED_AT] = high, x[i], y[i]
            n[MAX_ABS_AT] = place + i
            return


@_part()
def _raise_relative(d, w, guard, place, acc, n):
    """Keep the largest relative error, its place and its guard."""
    for i in range(d.size):
        size = max(w[i], guard)
        if d[i] > acc[MAX_REL] * size:
            acc[MAX_REL], acc[GUARD_AT] = d[i] / size, guard
            n[MAX_REL_AT] = place + i


@_part()
def _ulps(xb, yb, flip):
    """Largest distance in steps of the common float grid; -0 and +0 are one point."""
    worst = np.uint64(0)
    for i in range(xb.size):
        p = xb[i] if xb[i] >= 0 else flip - xb[i]
        q = yb[i] if yb[i] >= 0 else flip - yb[i]
        worst = max(worst, np.uint64(max(p, q)) - np.uint64(min(p, q)))
    return worst


@_part()
def _small_key(value, bits, shift, offset, scale, normal):
    """Place of a float of fewer than 32 bits on its own grid, from its widening."""
    size = abs(value)
    tiny = np.int64(size * scale)
    key = tiny if size < normal else (bits >> shift) - offset
    return -key if value < 0.0 else key


@_part()
def _small_ulps(x, y, xb, yb, flip, shift, offset, scale, normal):
    worst = np.int64(0)
    for i in range(x.size):
        p = _small_key(np.float64(x[i]), np.int64(xb[i] & ~flip), shift, offset, scale, normal)
        q = _small_key(np.float64(y[i]), np.int64(yb[i] & ~flip), shift, offset, scale, normal)
        worst = max(worst, abs(p - q))
    return np.uint64(worst)


@_part()
def _cells(db, wb, cell):
    """Cell of each place in the joint histogram, from exponent bits; bin 0 of errors means no error."""
    for i in range(db.size):
        p = min(max((db[i] >> 52) - (1023 + EXPONENT_LOW), 1), BINS - 1)
        q = min(max((wb[i] >> 52) - (1023 + EXPONENT_LOW), 1), BINS - 1)
        cell[i] = (p if db[i] != 0 else 0) * BINS + q


@_part()
def _scatter(db, cell, n, table, touched):
    """Joint histogram: how many errors, and the bits of the largest, per cell; side by side in memory."""
    known = n[CELLS]
    for i in range(cell.size):
        k = 2 * cell[i]
        count = table[k]
        if count == 0:
            touched[known] = cell[i]
            known += 1
        table[k] = count + 1
        if db[i] > table[k + 1]:
            table[k + 1] = db[i]
    n[CELLS] = known


@_part(fastmath=_SUMS)
def _columns(d, w, err, ref, peak):
    for i in range(d.size):
        err[i] += d[i] * d[i]
        ref[i] += w[i] * w[i]
        peak[i] = d[i] if d[i] > peak[i] else peak[i]


@_part()
def _wrong_columns(d, w, wrong, atol, rtol):
    for i in range(d.size):
        wrong[i] += d[i] > atol + rtol * w[i]


# --- putting a block together ---


@_part(fastmath={"reassoc"})
def _rows(d, w, db, wb, place, wrong, geo, atol, rtol, rows, box):
    """Rows of a block that holds whole lines, or a piece of one.

    Unsigned indices, no slices and no calls with arrays: short lines go 4 x faster. Not contracted, so that
    mismatches round as `tolerance.within` does.
    """
    bits, size, at = box.view(np.int64), np.uint64(d.size), np.uint64(0)
    row, room = place // geo[ROW], geo[ROW] - place % geo[ROW]
    take = min(np.uint64(geo[LINE] - place % geo[LINE]), size)
    while at < size:
        dd, ww, dm, wm = 0.0, 0.0, np.int64(0), np.int64(0)
        for j in range(take):
            i = at + np.uint64(j)
            dd += d[i] * d[i]
            ww += w[i] * w[i]
            dm = max(dm, db[i])
            wm = max(wm, wb[i])
        rows[row, S_ERR] += dd
        rows[row, S_REF] += ww
        bits[0], bits[1] = dm, wm
        rows[row, S_ERR_MAX] = max(rows[row, S_ERR_MAX], box[0])
        rows[row, S_REF_MAX] = max(rows[row, S_REF_MAX], box[1])
        if wrong:
            count = 0
            for j in range(take):
                i = at + np.uint64(j)
                count += d[i] > atol + rtol * w[i]
            rows[row, S_MISMATCHED] += count
        room -= np.int64(take)
        if room == 0:
            row, room = row + 1, geo[ROW]
        at += take
        take = min(np.uint64(geo[LINE]), size - at)


@_part()
def _add_columns(d, w, first, wrong, atol, rtol, to):
    """Add a block to the columns that begin at `first`."""
    end = first + d.size
    _columns(d, w, to[S_ERR, first:end], to[S_REF, first:end], to[S_ERR_MAX, first:end])
    if wrong:
        _wrong_columns(d, w, to[S_MISMATCHED, first:end], atol, rtol)


@_part()
def _distance(x, y, xb, yb, flip, geo, par):
    """Largest ULP distance of a block, in the mode of its number format."""
    if geo[ULP_MODE] == NATIVE_ULP:
        return _ulps(xb, yb, flip)
    return _small_ulps(x, y, xb, yb, flip, geo[ULP_SHIFT], geo[ULP_OFFSET], par[ULP_SCALE], par[ULP_NORMAL])


@_part()
def _take(place, left, line):
    """Length of the next block: whole lines when several fit, else a piece of one."""
    offset = place % line
    if offset == 0 and line <= BLOCK:
        return min(BLOCK // line * line, left)
    return min(min(BLOCK, line - offset), left)


@_part()
def _pass(a, e, exact, limits, start, atol, rtol, geo, par, acc, rows, cols, work, table, touched):
    """Add the pairs of `a` and `e`, of which the first has the flat place `start`, to all accumulators."""
    ab, eb, n = a.view(limits.dtype), e.view(limits.dtype), acc.view(np.int64)
    flip, inf, fill = limits[0], limits[1], limits[2]
    cells, box, abox = touched[BINS * BINS :], work[BOX], np.empty(2, a.dtype)
    bits, abits = box.view(np.int64), abox.view(ab.dtype)
    done = 0
    while done < a.size:
        place = start + done
        end = done + _take(place, a.size - done, geo[LINE])
        x, y, xb, yb = a[done:end], e[done:end], ab[done:end], eb[done:end]
        used = end - done
        hx, lx = _extent(xb, flip)
        hy, ly = _extent(yb, flip)
        mx, my = _magnitude(hx, lx, flip), _magnitude(hy, ly, flip)
        fills = geo[FILLS] != 0 and lx < 0 and ly < 0 and (lx ^ flip) >= fill and (ly ^ flip) >= fill
        if fills or mx >= inf or my >= inf:
            before = n[EXCLUDED]
            cx, cy = np.empty(used, a.dtype), np.empty(used, a.dtype)
            _clean(x, y, cx, cy, par, n, rows, cols, place, geo)
            used -= n[EXCLUDED] - before
            x, y, xb, yb = cx, cy, cx.view(ab.dtype), cy.view(ab.dtype)
            hx, lx = _extent(xb, flip)
            hy, ly = _extent(yb, flip)
            mx, my = _magnitude(hx, lx, flip), _magnitude(hy, ly, flip)
        abits[0], abits[1] = mx, my
        acc[MAX_ACT] = max(acc[MAX_ACT], np.float64(abox[0]))
        acc[MAX_REF] = max(acc[MAX_REF], np.float64(abox[1]))
        d, w = work[ERRORS, : end - done], work[SIZES, : end - done]
        db, wb = d.view(np.int64), w.view(np.int64)
        dd, yy, xx, xy, d1 = _differences(x, y, exact[done:end], d, w)
        acc[ERR_SQ] += dd
        acc[REF_SQ] += yy
        acc[ACT_SQ] += xx
        acc[DOT] += xy
        acc[ERR_ABS] += d1
        bits[0], wrong = _largest(db), 0
        if box[0] > 0.0:
            guard = GUARD_SHARE * np.sqrt(yy / used)
            wrong, beyond, above = _judged(d, w, atol, rtol, acc[WORST], acc[MAX_REL], guard)
            n[MISMATCHED] += wrong
            if beyond:
                acc[WORST] = _raise_worst(d, w, atol, rtol, acc[WORST])
            if box[0] > acc[MAX_ABS]:
                _raise_absolute(d, box[0], x, y, place, acc, n)
            if above:
                _raise_relative(d, w, guard, place, acc, n)
            if geo[ULP_MODE]:
                n[ULP] = np.int64(max(np.uint64(n[ULP]), _distance(x, y, xb, yb, flip, geo, par)))
            if geo[BY_CELL]:
                _cells(db, wb, cells[: end - done])
                _scatter(db, cells[: end - done], n, table, touched)
        if geo[BY_ROW]:
            _rows(d, w, db, wb, place, wrong, geo, atol, rtol, rows, box)
        if geo[COLUMNS]:
            _add_columns(d, w, place % geo[LINE], wrong, atol, rtol, work if geo[LINE] <= BLOCK else cols)
        done = end


@_part()
def _fold(stat, line, used, work, cols):
    """Add the lines of a folded statistic to its columns, and clear them."""
    for at in range(0, used, line):
        first = np.uint64(at)
        for j in range(np.uint64(line)):
            cols[stat, j] += work[stat, first + j]
            work[stat, first + j] = 0.0


@_part()
def _fold_peaks(line, used, work, cols):
    for at in range(0, used, line):
        first = np.uint64(at)
        for j in range(np.uint64(line)):
            p, q = cols[S_ERR_MAX, j], work[S_ERR_MAX, first + j]
            cols[S_ERR_MAX, j] = q if q > p else p
            work[S_ERR_MAX, first + j] = 0.0


@_part()
def _finish(end, geo, n, cols, work, table, touched, out):
    """Fold the columns and move the touched cells out; the workspace is clean again."""
    line, count = geo[LINE], 0
    if geo[COLUMNS] and line <= BLOCK:
        used = min(BLOCK // line * line, end)
        _fold(S_ERR, line, used, work, cols)
        _fold(S_REF, line, used, work, cols)
        _fold(S_MISMATCHED, line, used, work, cols)
        _fold_peaks(line, used, work, cols)
    peaks = table.view(np.float64)
    for i in range(n[CELLS]):
        k = touched[i]
        if k >= BINS:
            out[count, 0], out[count, 1], out[count, 2] = k, table[2 * k], peaks[2 * k + 1]
            count += 1
        table[2 * k], table[2 * k + 1] = 0, 0
    n[CELLS] = 0
    return count


# --- what Python calls ---

LIMITS: dict[bool, np.ndarray[Any, Any]] = {
    False: np.array([-(2**31), 0x7F800000, 0x461C0000], np.int32),
    True: np.array([-(2**63), 0x7FF0000000000000, 0x40C3800000000000], np.int64),
}
"""Bits of float32 and, wide, of float64: the sign, infinity, and the smallest size of a mask fill."""


def _chunk(
    a, e, exact, limits, start, last, atol, rtol, geo, par, acc, rows, cols, work, table, touched, out
):
    """One chunk of pairs that begins at the flat place `start`; after the `last` also the end.

    `exact`, when not empty, holds a - e of wide integers. Returns how many cells went to `out`, or less than
    0 when there was no room or this was not the last.
    """
    _pass(a, e, exact, limits, start, atol, rtol, geo, par, acc, rows, cols, work, table, touched)
    if not last or out.shape[0] < acc.view(np.int64)[CELLS]:
        return -1
    return _finish(start + a.size, geo, acc.view(np.int64), cols, work, table, touched, out)


def _many(a, e, exact, limits, begins, kinds, bounds, geos, par, acc, rows, work, table, touched):
    """Many small tensors: number i begins at `begins[i]` on both sides; its kind says how it is measured.

    Each has a row of `acc`, and those whose kind wants it have their rows in `rows`, in the same order.
    """
    row, cols = 0, np.empty((STATS, 0))
    for i in range(begins.size):
        geo, bound = geos[kinds[i]], bounds[kinds[i]]
        begin, end = begins[i], begins[i] + geo[SIZE]
        last = row + geo[BY_ROW] * (geo[SIZE] // geo[ROW])
        _pass(
            a[begin:end], e[begin:end], exact[begin:end], limits, 0, bound[0], bound[1], geo, par,
            acc[i], rows[row:last], cols, work, table, touched,
        )  # fmt: skip
        row = last


def _signatures(wide: bool) -> tuple[Any, Any]:
    """Argument types of `_chunk` and `_many`, over float32 or, when `wide`, float64 pairs."""
    f8, i8 = nb.float64, nb.int64
    line, grid, ints = f8[::1], f8[:, ::1], i8[::1]
    read = nb.types.Array(f8 if wide else nb.float32, 1, "C", readonly=True)
    values = read, read, line, (i8 if wide else nb.int32)[::1]
    space = grid, ints, nb.int32[::1]
    chunk = i8(*values, i8, nb.boolean, f8, f8, ints, line, line, grid, grid, *space, grid)
    return chunk, nb.void(*values, ints, ints, grid, i8[:, ::1], line, grid, grid, *space)


CHUNK = {wide: entry(_chunk, _signatures(wide)[0]) for wide in (False, True)}
"""`_chunk` over float32 and, wide, float64 pairs."""

MANY = {wide: entry(_many, _signatures(wide)[1]) for wide in (False, True)}
"""`_many`, likewise."""
