"""The compiled pass against plain numpy in float64, for every number format and any way of feeding it."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.harness.dtypes import NAMES, logical_dtype
from parity.harness.metrics import Kind, Measurer, Metrics, measure, survey
from parity.harness.metrics.kernel import BLOCK
from parity.harness.metrics.layout import CHUNK
from parity.harness.metrics.setup import FILLS, ROWS, SUMS, setup
from parity.harness.tolerance import within

SPECIAL = [
    0.0,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    -1e-310,
    1e-45,
    1e-38,
    3.4e38,
    -3.4e38,
    1e-8,
    65504.0,
]
FILL = [-1e4, -1e9, -65504.0, float(np.finfo(np.float32).min), -30000.0]
SHAPES = [
    (),
    (1,),
    (0,),
    (3, 0, 2),
    (5,),
    (2, 3),
    (2, 4, 8),
    (3, 2, 40),
    (1, 33),
    (7, 1, 3, 5),
    (2, 1100),
    (40, 33),
    (2, 2, 700),
]
EPS = 1e-11


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape: ordinary values, with special ones and fills strewn in."""
    shape = draw(st.sampled_from(SHAPES), label="shape")
    name_a = draw(st.sampled_from(NAMES), label="actual dtype")
    name_e = draw(st.sampled_from([name_a, name_a, "float32"]), label="expected dtype")
    if name_a.startswith("complex"):
        name_e = name_a
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    scale = draw(st.sampled_from([1.0, 1e-20, 1e4, 100.0]), label="scale")
    noise = draw(st.sampled_from([0.0, 1e-6, 1e-2, 3.0]), label="noise")
    spoil = draw(st.sampled_from([0.0, 0.05, 0.5]), label="spoiled share")
    e = rng.standard_normal(shape) * scale
    a = e + noise * scale * rng.standard_normal(shape)
    a, e = np.array(a), np.array(e)
    for values in (SPECIAL, FILL):
        for side in ((a,), (e,), (a, e)):
            where = rng.random(shape) < spoil / 6
            pick = rng.choice(values, size=shape)
            for array in side:
                array[where] = pick[where]
    return _cast(a, name_a), _cast(e, name_e)


def _cast(array: np.ndarray, name: str) -> np.ndarray:
    dtype = logical_dtype(name)
    with np.errstate(all="ignore"):
        if "int" in name or name == "bool":
            info = None if name == "bool" else ml_dtypes.iinfo(dtype)
            low, high = (0, 1) if info is None else (int(info.min), int(info.max))
            whole = np.clip(np.nan_to_num(array * 10, nan=1.0), float(low), float(high))
            if name in ("int64", "uint64"):
                whole = np.vectorize(lambda v: max(low, min(high, int(v))), otypes=[dtype])(whole)
            return whole.astype(dtype)
        if name.startswith("complex"):
            return (array + 1j * array[..., ::-1] if array.ndim else array + 2j * array).astype(dtype)
        return array.astype(dtype)


def _fills(a: np.ndarray, e: np.ndarray, blocks: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Mask fills, and those spelled in two ways, by the rule in words (float64 flat values)."""
    lowest = [
        -math.inf,
        *(float(ml_dtypes.finfo(t).min) for t in (np.float16, ml_dtypes.bfloat16, np.float32, float)),
    ]
    formats = (float, np.float32, ml_dtypes.bfloat16, np.float16)
    with np.errstate(over="ignore"):
        known = [float(np.float64(v).astype(t)) for v in FILLS for t in formats]
    low = (a <= -9984) & (e <= -9984)
    respelled = low & (a != e) & np.isin(a, lowest) & np.isin(e, lowest)
    same = low & (a == e)
    repeats = np.zeros(e.shape, bool)
    for block in blocks:
        v = e[block]
        next_same = np.append(v[1:] == v[:-1], False) if v.size else np.zeros(0, bool)
        repeats[block] = next_same | np.append(False, next_same[:-1])[: v.size]
        pairs_ = np.flatnonzero(np.append(False, next_same[:-1])[: v.size] & (v <= -9984) & (a[block] == v))
        if pairs_.size:
            repeats[block] |= v == v[pairs_[0]]
    return respelled | (same & (np.isin(e, lowest) | np.isin(e, known) | repeats)), respelled


def _blocks(m: Metrics) -> list[slice]:
    """Blocks of the pass: whole lines up to 1024 elements, or pieces of one, inside fixed chunks."""
    plan, out, place = m.plan, [], 0
    while place < plan.size:
        left = min(plan.size, (place // plan.chunk + 1) * plan.chunk) - place
        offset = place % plan.line
        fits = offset == 0 and plan.line <= BLOCK
        take = BLOCK // plan.line * plan.line if fits else min(BLOCK, plan.line - offset)
        out.append(slice(place, place + min(take, left)))
        place += min(take, left)
    return out


def _float_pair(a: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat float64 values and |a - e|, exact for 64-bit integers."""
    if a.dtype.kind == "c":
        a, e = (np.stack([x.real, x.imag], -1) for x in (a, e))
    d = None
    if {a.dtype.name, e.dtype.name} & {"int64", "uint64"} and "float" not in a.dtype.name + e.dtype.name:
        d = np.array([float(abs(int(p) - int(q))) for p, q in zip(a.reshape(-1), e.reshape(-1), strict=True)])
    a, e = a.astype(np.float64).reshape(-1), e.astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        return a, e, np.abs(a - e) if d is None else d


@settings(max_examples=300, deadline=None)
@given(pairs(), st.sampled_from([(0.0, 0.0), (1e-5, 1e-3), (1.0, 0.0), (0.0, 0.5)]))
def test_every_metric_is_what_numpy_computes_in_float64(
    pair: tuple[np.ndarray, np.ndarray], bound: tuple[float, float]
) -> None:
    actual, expected = pair
    atol, rtol = bound
    m = measure(actual, expected, atol=atol, rtol=rtol)
    a, e, d = _float_pair(actual, expected)
    floats = {"float16", "bfloat16", "float32", "float64"} >= {m.dtype_actual, m.dtype_expected}
    complex_ = actual.dtype.kind == "c"
    structural, respelled = _fills(a, e, _blocks(m)) if floats or complex_ else (np.zeros(a.shape, bool),) * 2
    finite = np.isfinite(a) & np.isfinite(e)
    used = finite & ~structural
    assert m.count == a.size
    assert (m.structural, m.respelled, m.used) == (structural.sum(), respelled.sum(), used.sum())
    assert (m.nan_actual, m.nan_expected) == (np.isnan(a).sum(), np.isnan(e).sum())
    assert m.nan_both == (np.isnan(a) & np.isnan(e)).sum()
    assert (m.posinf_actual, m.neginf_actual) == ((a == np.inf).sum(), (a == -np.inf).sum())
    assert (m.posinf_expected, m.neginf_expected) == ((e == np.inf).sum(), (e == -np.inf).sum())
    infinite = ~finite & ~np.isnan(a) & ~np.isnan(e) & ~structural
    assert m.inf_mismatch == (infinite & (a != e)).sum()
    du, au, eu = d[used], a[used], e[used]
    with np.errstate(all="ignore"):
        holds = np.where(finite, d <= atol + rtol * np.abs(e), a == e)
        assert m.mismatched == (~holds & ~structural).sum()
        assert m.max_abs == du.max(initial=0.0)
        for got, want in (
            (m._sum("err_sq"), (du**2).sum()),
            (m._sum("ref_sq"), (eu**2).sum()),
            (m._sum("act_sq"), (au**2).sum()),
            (m._sum("err_abs"), du.sum()),
        ):
            assert got == pytest.approx(want, rel=EPS)
        assert m._sum("dot") == pytest.approx((au * eu).sum(), rel=EPS, abs=EPS * np.abs(au * eu).sum())
    if m.max_abs > 0:
        assert d[m.max_abs_index] == m.max_abs
        assert m.max_abs_index == np.flatnonzero(used & (d == m.max_abs))[0]
        assert (m.actual_at_max, m.expected_at_max) == (a[m.max_abs_index], e[m.max_abs_index])
    _check_derived(m)
    _check_relative(m, d, e, used)
    _check_ulps(m, actual, expected, used)
    _check_joint(m, d, e, used)
    _check_slices(m, d, e, used, ~holds & ~structural, ~finite & ~structural)


def _check_derived(m: Metrics) -> None:
    for name in ("rmse", "rel_l2", "cosine", "sqnr_db", "mean_abs", "max_rel", "worst_ratio"):
        assert not math.isnan(getattr(m, name)), name
    assert -1.0 <= m.cosine <= 1.0


def _check_relative(m: Metrics, d: np.ndarray, e: np.ndarray, used: np.ndarray) -> None:
    worst = 0.0
    with np.errstate(all="ignore"):
        for block in _blocks(m):
            inside = used[block]
            v = np.where(inside, e[block], 0.0)
            guard = 0.01 * np.sqrt((v**2).sum() / max(inside.sum(), 1))
            relative = np.where(inside & (d[block] > 0), d[block] / np.maximum(np.abs(v), guard), 0.0)
            worst = max(worst, relative.max(initial=0.0))
    assert m.max_rel == pytest.approx(worst, rel=1e-9)


def _check_ulps(m: Metrics, actual: np.ndarray, expected: np.ndarray, used: np.ndarray) -> None:
    if m.dtype_actual != m.dtype_expected or "float" not in m.dtype_actual:
        assert m.ulp_max is None
        return
    if m.dtype_actual == "float8_e8m0fnu" or actual.dtype.kind == "c":
        return
    keys = [_ordered_keys(x) for x in (actual, expected)]
    assert m.ulp_max == max((abs(p - q) for p, q, u in zip(*keys, used, strict=True) if u), default=0)


def _ordered_keys(array: np.ndarray) -> list[int]:
    """Place of each float on its grid, as Python integers."""
    width = array.dtype.itemsize * 8
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}").tolist()
    half = 1 << (width - 1)
    return [-(b - half) if b >= half else b for b in bits]


def _check_joint(m: Metrics, d: np.ndarray, e: np.ndarray, used: np.ndarray) -> None:
    some = used & (d > 0)
    assert m.joint.count.sum() == some.sum()
    assert m.hist.zeros == (used & (d == 0)).sum()
    want: dict[tuple[int, int], list[float]] = {}
    for p, q in zip(d[some], np.abs(e[some]), strict=True):
        want.setdefault((_binade(p), _binade(q)), []).append(p)
    joint = m.joint
    got = {
        (int(i), int(j)): (int(c), float(p))
        for i, j, c, p in zip(joint.err_log2, joint.ref_log2, joint.count, joint.err_max, strict=True)
    }
    assert got == {key: (len(values), max(values)) for key, values in want.items()}


def _binade(value: float) -> int:
    return min(max(math.frexp(value)[1] - 1, -160), 158) if value > 0 else -160


def _check_slices(
    m: Metrics, d: np.ndarray, e: np.ndarray, used: np.ndarray, wrong: np.ndarray, nonfinite: np.ndarray
) -> None:
    shape = m.shape
    with np.errstate(all="ignore"):
        cube = {
            "err": np.where(used, d, 0.0).reshape(shape),
            "ref": np.where(used, np.abs(e), 0.0).reshape(shape),
            "n": used.reshape(shape).astype(float),
        }
        for dim, name in enumerate(m.plan.axes if m.count else ()):
            profile = m.profiles[name]
            others = tuple(i for i in range(len(shape)) if i != dim)
            n = np.maximum(cube["n"].sum(axis=others), 1)
            np.testing.assert_allclose(
                profile.err_rms, np.sqrt((cube["err"] ** 2).sum(axis=others) / n), rtol=1e-9
            )
            np.testing.assert_allclose(
                profile.ref_rms, np.sqrt((cube["ref"] ** 2).sum(axis=others) / n), rtol=1e-9
            )
            np.testing.assert_array_equal(profile.max_abs, cube["err"].max(axis=others))
            np.testing.assert_array_equal(profile.mismatched, wrong.reshape(shape).sum(axis=others))
            np.testing.assert_array_equal(profile.nonfinite, nonfinite.reshape(shape).sum(axis=others))
        rows = m.rows
        flat = {
            key: value.reshape(-1, rows.row_size) if m.count else value.reshape(0, 1)
            for key, value in cube.items()
        }
        n = np.maximum(flat["n"].sum(axis=1), 1)
        np.testing.assert_allclose(rows.err_rms, np.sqrt((flat["err"] ** 2).sum(axis=1) / n), rtol=1e-9)
        np.testing.assert_array_equal(rows.err_max, flat["err"].max(axis=1, initial=0))
        np.testing.assert_array_equal(rows.ref_max, flat["ref"].max(axis=1, initial=0))


@settings(max_examples=100, deadline=None)
@given(pairs(), st.data())
def test_any_feed_sizes_and_layouts_give_the_same_bits(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    a, e = pair
    whole = measure(a, e, atol=1e-5, rtol=1e-3)
    measurer = Measurer(a.shape, atol=1e-5, rtol=1e-3)
    flat_a, flat_e, place = a.reshape(-1), e.reshape(-1), 0
    while place < a.size:
        step = data.draw(st.integers(1, max(1, a.size - place)), label="feed")
        measurer.feed(flat_a[place : place + step], flat_e[place : place + step])
        place += step
    if not a.size:
        measurer.feed(flat_a, flat_e)
    _same_bits(whole, measurer.finish())
    strided = np.zeros((*a.shape, 2), a.dtype)[..., 0]
    strided[...] = a
    _same_bits(whole, measure(strided, e[::1] if e.ndim else e, atol=1e-5, rtol=1e-3))


def _same_bits(one: Metrics, two: Metrics) -> None:
    np.testing.assert_array_equal(one._sums.view(np.int64), two._sums.view(np.int64))
    np.testing.assert_array_equal(one.raw_rows.view(np.int64), two.raw_rows.view(np.int64))
    np.testing.assert_array_equal(one._columns.view(np.int64), two._columns.view(np.int64))
    assert one.joint.to_json() == two.joint.to_json()


@settings(max_examples=100, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=6), st.data())
def test_a_survey_gives_the_same_bits_as_one_measurement_each(
    found: list[tuple[np.ndarray, np.ndarray]], data: st.DataObject
) -> None:
    formats = {tuple(side.dtype for side in pair) for pair in found if pair[0].dtype.kind != "c"}
    for one in formats:
        same = [pair for pair in found if tuple(side.dtype for side in pair) == one and pair[0].size]
        if same:
            _survey_like_measure(same, data)


def _survey_like_measure(found: list[tuple[np.ndarray, np.ndarray]], data: st.DataObject) -> None:
    """Each pair twice, as a kind of its own; tensors lie in any order."""
    names = found[0][0].dtype.name, found[0][1].dtype.name
    details = [data.draw(st.sampled_from([SUMS, ROWS]), label="detail") for _ in found]
    kinds = [
        Kind(setup(a.shape, "", *names, detail), (1e-5 * place, 1e-3), 2)
        for place, ((a, _), detail) in enumerate(zip(found, details, strict=True))
    ]
    sizes = np.repeat([pair[0].size for pair in found], 2)
    order = np.array(data.draw(st.permutations(range(sizes.size)), label="order"))
    begins = np.empty(sizes.size, np.int64)
    begins[order] = sizes[order].cumsum() - sizes[order]
    actual, expected = (np.concatenate([found[i // 2][side].reshape(-1) for i in order]) for side in (0, 1))
    for pair, kind, surveyed in zip(found, kinds, survey(actual, expected, begins, kinds), strict=True):
        alone = measure(*pair, atol=kind.bound[0], rtol=kind.bound[1])
        assert surveyed.rel_l2.tolist() == [alone.rel_l2] * len(surveyed)
        assert surveyed.floats("max_abs").tolist() == [alone.max_abs] * 2
        assert surveyed.counts("mismatched").tolist() == [alone.mismatched] * 2
        for m in surveyed:
            _same_bits(m.slim(), alone.slim())
            rows = alone.raw_rows if kind.pair.detail == ROWS else alone.raw_rows[:0]
            np.testing.assert_array_equal(m.raw_rows.view(np.int64), rows.view(np.int64))


def test_threads_change_no_bit_of_a_survey() -> None:
    rng = np.random.default_rng(2)
    kinds = [
        Kind(setup(shape, "", "float32", "float32", ROWS), (1e-5, 1e-4), count)
        for shape, count in (((3, 40), 200), ((1100,), 3), ((2, 700), 90))
    ]
    sizes = np.repeat([kind.pair.plan.size for kind in kinds], [kind.number for kind in kinds])
    e = rng.standard_normal(sizes.sum()).astype(np.float32)
    a = e + 1e-4 * rng.standard_normal(e.size).astype(np.float32)
    begins = sizes.cumsum() - sizes
    found = [survey(a, e, begins, kinds, threads=count) for count in (1, 2, 3, 4)]
    for others in found[1:]:
        for one, two in zip(found[0], others, strict=True):
            for m, n in zip(one, two, strict=True):
                _same_bits(m, n)


@pytest.mark.parametrize(
    "shape", [(5, CHUNK // 3 + 7), (3 * CHUNK + 11,), (2 * CHUNK // 48 * 3, 48), (9, CHUNK)], ids=str
)
@pytest.mark.parametrize("profiles", [True, False], ids=["full", "plain"])
def test_threads_and_feeds_change_no_bit_of_a_large_tensor(shape: tuple[int, ...], profiles: bool) -> None:
    rng = np.random.default_rng(1)
    e = rng.standard_normal(shape).astype(np.float32)
    a = e + 1e-4 * rng.standard_normal(shape).astype(np.float32)
    found = [measure(a, e, atol=1e-5, rtol=1e-4, profiles=profiles, threads=n) for n in (1, 2, 3, 4)]
    for size in (CHUNK // 2 + 1, CHUNK, 2 * CHUNK + 5):
        measurer = Measurer(shape, atol=1e-5, rtol=1e-4, profiles=profiles, threads=2)
        for start in range(0, a.size, size):
            measurer.feed(a.reshape(-1)[start : start + size], e.reshape(-1)[start : start + size])
        found.append(measurer.finish())
    for other in found[1:]:
        _same_bits(found[0], other)
    d = np.abs(a.astype(np.float64) - e)
    assert found[0].rmse == pytest.approx(np.sqrt((d**2).mean()), rel=EPS)
    assert found[0].max_abs_index == d.argmax()
    assert found[0].mismatched == (~within(a, e, 1e-5, 1e-4)).sum()
    if profiles and d.ndim > 1:
        np.testing.assert_array_equal(found[0].profiles["0"].max_abs, d.max(axis=1))
