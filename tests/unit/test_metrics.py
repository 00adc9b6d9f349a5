"""The measuring API: what a person relies on beyond the numbers that the oracle checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.metrics import Measurer, Metrics, histogram, kernel, measure, profile, rowjudge
from parity.harness.metrics.layout import CHUNK, MAX_ROWS, layout
from parity.harness.metrics.measurer import SMALL
from parity.harness.metrics.metrics import SLOT

SRC = Path(__file__).resolve().parents[2] / "src"


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_unequal_shapes_are_refused_and_nothing_is_broadcast() -> None:
    for other in ((4, 8), (32,), (1, 4, 8), (8, 1)):
        with pytest.raises(UserError, match="nothing is broadcast or reshaped"):
            measure(values(8, 4), values(*other))


@pytest.mark.parametrize(("axes", "said"), [("b t", "names 2 axes"), ("b b d", "used twice")])
def test_axes_must_name_each_dimension_once(axes: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        measure(values(2, 3, 4), values(2, 3, 4), axes=axes)


def test_a_scalar_and_lists_are_measured() -> None:
    assert measure(1.5, 1.0).max_abs == 0.5
    assert measure([1, 2, 3], [1, 2, 5]).unravel() == (2,)
    assert measure(np.float32(2), np.float32(2)).exact_zero


def test_whole_numbers_as_tolerance_are_taken() -> None:
    assert measure([1.0, 2.0], [2.0, 2.0], atol=1, rtol=0).mismatched == 0
    assert measure([1.0, 2.0], [2.0, 2.0], atol=np.float32(0.5)).mismatched == 1


def test_torch_tensors_of_low_precision_are_measured_by_their_bits() -> None:
    torch = pytest.importorskip("torch")
    e = torch.linspace(-3, 3, 96).reshape(3, 32)
    m = measure(e.to(torch.bfloat16), e)
    assert (m.dtype_actual, m.dtype_expected) == ("bfloat16", "float32")
    assert m.max_abs == float((e.to(torch.bfloat16).double() - e.double()).abs().max())


def test_read_only_strided_and_swapped_arrays_are_measured() -> None:
    a, e = values(64, 64), values(64, 64, seed=1)
    want = measure(a, e).to_json()
    frozen = a.copy()
    frozen.flags.writeable = False
    assert measure(frozen, e).to_json() == want
    assert measure(np.asfortranarray(a), e).to_json() == want
    assert measure(a.astype(">f4"), e).to_json() == want
    wide = np.zeros((64, 128), np.float32)
    wide[:, ::2] = a
    assert measure(wide[:, ::2], e).to_json() == want
    assert measure(wide[0, ::2], e[0]).max_abs == measure(a[0], e[0]).max_abs


def test_errors_are_not_computed_in_the_candidates_type() -> None:
    e = np.full((4, 32), 2048, np.float16)
    a = np.full((4, 32), 2049, np.float32)
    assert measure(a, e).max_abs == 1.0
    big = np.full((4, 32), 3e38, np.float32)
    assert measure(big, -big).max_abs == pytest.approx(6e38)


def test_differences_of_64_bit_integers_are_exact() -> None:
    e = np.array([2**63 - 1, -(2**63), 2**53], np.int64)
    a = np.array([2**63 - 2, -(2**63), 2**53 + 1], np.int64)
    m = measure(a, e)
    assert (m.max_abs, m.mismatched, m.max_abs_index) == (1.0, 2, 0)
    unsigned = np.array([2**64 - 1], np.uint64)
    assert measure(unsigned, np.array([-1], np.int64)).max_abs == 2.0**64


def test_booleans_and_small_integers_are_numbers() -> None:
    m = measure(np.array([True, False, True]), np.array([True, True, True]), atol=0.5)
    assert (m.mismatched, m.max_abs, m.ulp_max) == (1, 1.0, None)
    int4 = np.array([-8, 7, 0], ml_dtypes.int4)
    assert measure(int4, int4[::-1].copy()).max_abs == 8.0


def test_complex_arrays_are_pairs_of_real_and_imaginary_part() -> None:
    e = (values(4, 16) + 1j * values(4, 16, seed=1)).astype(np.complex64)
    a = e.copy()
    a[2, 3] += 1j
    m = measure(a, e, axes="t d")
    assert (m.axes, m.shape, m.count) == ("t d z", (4, 16, 2), 128)
    assert m.unravel() == (2, 3, 1)
    measurer = Measurer((4, 16), axes="t d")
    measurer.feed(a, e)
    assert measurer.finish().to_json() == m.to_json()
    with pytest.raises(UserError, match="complex and real"):
        measure(e, e.real)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_ulps_are_counted_on_the_formats_own_grid(dtype: type) -> None:
    bits = np.arange(0, 100, dtype=np.uint8 if np.dtype(dtype).itemsize == 1 else np.uint16)
    e = bits.view(dtype)
    assert measure((bits + 3).view(dtype), e).ulp_max == 3
    assert measure(-e, e).ulp_max == 2 * 99


def test_ulps_are_counted_in_float32_and_float64_and_not_across_formats() -> None:
    one = np.ones(8, np.float32)
    assert measure(np.nextafter(one, np.float32(2)), one).ulp_max == 1
    assert measure(np.nextafter(one.astype(float), 2), one.astype(float)).ulp_max == 1
    assert measure(-np.zeros(8), np.zeros(8)).ulp_max == 0
    lowest = np.full(4, -np.finfo(np.float64).max)
    assert measure(-lowest, lowest).ulp_max == 2 * int(np.array(np.finfo(np.float64).max).view(np.int64))
    assert measure(one, one.astype(float)).ulp_max is None


def test_the_guard_keeps_relative_errors_of_small_values_small() -> None:
    e = values(8, 64)
    e[0, 0] = 1e-30
    m = measure(e + np.float32(1e-6), e)
    assert m.max_rel < 1e-3
    assert m.rel_guard == pytest.approx(0.01 * np.sqrt((e.astype(float) ** 2).mean()), rel=0.01)


def test_nothing_is_divided_by_a_zero_norm() -> None:
    zero, one = np.zeros((4, 32)), np.ones((4, 32))
    both = measure(zero, zero)
    assert (both.rel_l2, both.cosine, both.sqnr_db) == (0.0, 1.0, np.inf)
    wrong = measure(one, zero)
    assert (wrong.rel_l2, wrong.cosine, wrong.sqnr_db) == (np.inf, 0.0, -np.inf)
    assert measure(zero, one).cosine == 0.0


def test_the_cosine_keeps_its_sign() -> None:
    e = values(4, 64)
    assert measure(-2 * e, e).cosine == pytest.approx(-1)
    assert measure(e, e).cosine == pytest.approx(1)


def test_nan_is_counted_and_leaks_into_nothing() -> None:
    e = values(4, 64)
    a = e.copy()
    a[0, :5], e[0, 3:7] = np.nan, np.nan
    m = measure(a, e)
    assert (m.nan_actual, m.nan_expected, m.nan_both, m.nan_mismatch) == (5, 4, 2, 5)
    assert m.mismatched == 7
    assert not m.exact_zero
    assert m.rmse == 0.0
    assert "NaN" not in json.dumps(m.to_json())
    all_nan = measure(np.full((4, 8), np.nan), np.full((4, 8), np.nan))
    assert (all_nan.used, all_nan.rmse, all_nan.cosine) == (0, 0.0, 1.0)


def test_quantiles_bound_the_errors_from_above() -> None:
    e = values(64, 64)
    a = e + 0.01 * values(64, 64, seed=1)
    a[:32] = e[:32]
    m, d = measure(a, e), np.abs(a.astype(float) - e)
    for q in (0.1, 0.5, 0.9, 0.99, 1.0):
        assert (d <= m.hist.quantile(q)).mean() >= q
        assert m.hist.quantile(q) <= 2 * np.quantile(d, q, method="higher") + 1e-300
    assert m.hist.quantile(1.0) == m.max_abs
    assert m.hist.zeros == (d == 0).sum()


def test_json_and_back_gives_the_same_metrics() -> None:
    e = values(2, 3, 5, 16)
    a = e + np.float32(1e-3)
    a[0, 0, 0, 0], e[1, 1, 1, 1] = np.inf, -np.inf
    m = measure(a, e, axes="b h t d", atol=1e-5, rtol=1e-5)
    data = json.loads(json.dumps(m.to_json()))
    again = Metrics.from_json(data)
    assert again.to_json() == m.to_json() or _near(again.to_json(), m.to_json())
    assert list(again.profiles) == ["b", "h", "t", "d"]
    np.testing.assert_allclose(again.raw_rows, m.raw_rows, rtol=1e-14)
    for heavy in ("hist", "joint", "profiles", "rows"):
        data.pop(heavy)
    light = Metrics.from_json(data)
    assert (light.max_abs, light.rel_l2, light.ulp_max) == (m.max_abs, m.rel_l2, m.ulp_max)
    assert light.profiles == {}
    assert light.joint.count.size == 0


def _near(one: dict, two: dict) -> bool:
    rows = {name: (one.pop(name), two.pop(name)) for name in ("rows",)}
    for name in ("err_rms", "ref_rms"):
        np.testing.assert_allclose(rows["rows"][0][name], rows["rows"][1][name], rtol=1e-14)
    return one == two


def test_plain_metrics_have_no_slices_and_the_same_sums() -> None:
    a, e = values(64, 64), values(64, 64, seed=1)
    plain, full = measure(a, e, profiles=False, atol=1e-3), measure(a, e, atol=1e-3)
    assert (plain.max_abs, plain.mismatched, plain.max_abs_index) == (
        full.max_abs,
        full.mismatched,
        full.max_abs_index,
    )
    assert plain.rmse == pytest.approx(full.rmse, rel=1e-13)
    assert (plain.profiles, len(plain.rows), plain.ulp_max) == ({}, 0, None)
    assert Metrics.from_json(plain.to_json()).to_json() == plain.to_json()


def test_a_measurer_refuses_too_few_too_many_and_other_formats() -> None:
    measurer = Measurer((4, 8))
    measurer.feed(values(16), values(16))
    with pytest.raises(UserError, match="both sides"):
        measurer.feed(values(3), values(4))
    with pytest.raises(UserError, match="feed on"):
        measurer.finish()
    with pytest.raises(UserError, match="elements=33"):
        measurer.feed(values(17), values(17))
    with pytest.raises(UserError, match="float64 against float32"):
        measurer.feed(values(4).astype(float), values(4))


def test_a_measurer_of_an_empty_shape_finishes_without_food() -> None:
    m = Measurer((0, 5), axes="t d").finish()
    assert (m.count, m.exact_zero, m.profiles, m.unravel()) == (0, True, {}, ())
    assert Metrics.from_json(m.to_json()).to_json() == m.to_json()


def test_work_that_was_abandoned_leaves_nothing_behind() -> None:
    a, e = values(3 * CHUNK), values(3 * CHUNK, seed=1)
    want = measure(a, e).to_json()
    for _ in range(3):
        Measurer((3 * CHUNK,)).feed(a[:CHUNK], e[:CHUNK])
        with pytest.raises(UserError):
            Measurer((2,)).finish()
    assert measure(a, e).to_json() == want


def test_many_threads_measure_at_once() -> None:
    pairs = [(values(40, 64, seed=i), values(40, 64, seed=i + 1)) for i in range(8)]
    want = [measure(a, e).to_json() for a, e in pairs]
    got: list[object] = [None] * 8

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = measure(*pairs[i]).to_json()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want


def test_more_cells_than_the_workspace_lists_are_all_kept() -> None:
    rng = np.random.default_rng(0)
    e = np.ldexp(rng.standard_normal(60000), rng.integers(-150, 100, 60000))
    a = e + np.ldexp(rng.standard_normal(60000), rng.integers(-150, 100, 60000))
    m = measure(a, e)
    assert m.joint.count.size > 1024
    assert m.joint.count.sum() == (np.abs(a - e) > 0).sum()
    assert measure(e, e).joint.count.size == 0


def test_short_rows_of_a_huge_tensor_are_merged() -> None:
    plan = layout((1 << 12, 1 << 10, 64), "b t d")
    assert plan.num_rows <= MAX_ROWS
    assert (plan.line, plan.columns, plan.row_shape) == (64, 64, (1 << 12,))
    assert layout((5, 4, 8), "t h d").row_shape == (5,)
    assert layout((7,), "d").row_shape == ()


def test_one_chunk_holds_whatever_takes_the_short_way() -> None:
    for row in (1, 33, CHUNK // 2 - 1, CHUNK // 2 + 1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK):
        assert layout((8, row), "").chunk >= SMALL


def test_tables_that_two_files_hold_agree() -> None:
    assert (histogram.BINS, histogram.EXPONENT_LOW) == (kernel.BINS, kernel.EXPONENT_LOW)
    for name in ("ERR", "REF", "ERR_MAX", "REF_MAX", "MISMATCHED", "NONFINITE", "EXCLUDED"):
        slot = f"S_{name}"
        assert getattr(kernel, slot) == getattr(profile, slot) == getattr(rowjudge, slot)
    assert (SLOT["err_sq"], SLOT["worst_ratio"]) == (kernel.ERR_SQ, kernel.WORST)
    assert (SLOT["max_abs_index"], SLOT["ulp"], SLOT["excluded"]) == (
        kernel.MAX_ABS_AT,
        kernel.ULP,
        kernel.EXCLUDED,
    )
    assert (SLOT["mismatched"], SLOT["nan_actual"], SLOT["structural"]) == (
        kernel.MISMATCHED,
        kernel.NAN_A,
        kernel.STRUCTURAL,
    )


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_importing_metrics_tolerance_and_judge_loads_no_compiler_and_no_torch() -> None:
    code = (
        "import sys; from parity.harness import metrics, tolerance, judge, slices;"
        "print([m for m in ('numba', 'torch', 'h5py', 'llvmlite') if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from parity.harness.metrics import measure\n"
        "print(measure([1.0], [2.0]).max_abs)"
    )
    assert run(code).strip() == "1.0"
