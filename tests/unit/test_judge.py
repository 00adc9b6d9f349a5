"""Judging: the traps that comparers fall into, each held by the rule that avoids it."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest

from parity.harness.judge import FACTOR, Floor, floor_from, judge_bound, judge_floor, minimum_tolerance
from parity.harness.metrics import Metrics, measure
from parity.harness.tolerance import Bound, within

FP32 = Bound(1e-4, 1e-4)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x: np.ndarray, dtype: type = ml_dtypes.bfloat16) -> np.ndarray:
    return x.astype(dtype).astype(np.float32)


def bf16_floor(x: np.ndarray) -> Floor:
    return floor_from(measure(rounded(x), x))


def by_floor(actual: np.ndarray, expected: np.ndarray, floor: Floor, **options: object) -> str:
    return judge_floor(measure(actual, expected), floor, **options).status


def test_one_nan_fails_by_bound_and_by_floor() -> None:
    e = values(8, 64)
    a = e.copy()
    a[3, 5] = np.nan
    m = measure(a, e, atol=1e9, rtol=1e9)
    assert judge_bound(m, Bound(1e9, 1e9)).status == "fail"
    assert judge_floor(m, Floor(1e9, 1e9)).status == "fail"
    assert "nan=1, but should be 0" in judge_bound(m, Bound(1e9, 1e9)).reason


def test_nan_on_both_sides_is_nonfinite_unless_allowed() -> None:
    e = values(8, 64)
    e[3, 5] = np.nan
    m = measure(e.copy(), e, atol=1e-4, rtol=1e-4)
    assert judge_bound(m, FP32).status == judge_floor(m, Floor(1e-6, 1e-6)).status == "nonfinite"
    assert judge_bound(m, FP32, allow_nonfinite=True).passed
    assert judge_floor(m, Floor(1e-6, 1e-6), allow_nonfinite=True).passed


def test_allowed_nan_does_not_hide_an_error_elsewhere() -> None:
    e = values(8, 64)
    e[3, 5] = np.nan
    a = e.copy()
    a[7, 7] += 1
    assert judge_bound(measure(a, e, atol=1e-4, rtol=1e-4), FP32, allow_nonfinite=True).status == "fail"


def test_infinities_compare_by_sign() -> None:
    e = values(4, 32)
    e[0, 0] = np.inf
    same, flipped, gone = e.copy(), e.copy(), e.copy()
    flipped[0, 0], gone[0, 0] = -np.inf, 3e38
    assert judge_bound(measure(same, e), FP32).status == "equal"
    for wrong in (flipped, gone):
        assert judge_bound(measure(wrong, e, atol=1e-4, rtol=1e-4), FP32).status == "fail"


def test_equal_minus_infinity_masks_are_equal() -> None:
    e = np.where(np.tri(16, 64, dtype=bool), values(16, 64), -np.inf).astype(np.float32)
    m = measure(e.copy(), e)
    assert judge_bound(m, FP32).status == "equal"
    assert m.structural == (e == -np.inf).sum()
    assert not math.isnan(m.rel_l2)


def test_a_mask_in_two_spellings_passes_but_is_not_equal() -> None:
    e = np.where(np.tri(16, 64, dtype=bool), values(16, 64), np.finfo(np.float32).min).astype(np.float32)
    a = np.where(e < -1e38, -np.inf, e).astype(np.float32)
    m = measure(a, e)
    assert (judge_bound(m, FP32).status, m.respelled) == ("pass", m.structural)


@pytest.mark.parametrize("fill", [-np.inf, -1e4, -1e9, -12345.0])
def test_masked_scores_do_not_hide_wrong_scores(fill: float) -> None:
    e = np.where(np.tri(64, 64, 3, dtype=bool), values(64, 64), fill).astype(np.float32)
    a = np.where(np.tri(64, 64, 3, dtype=bool), e + 0.2 * values(64, 64, seed=1), fill).astype(np.float32)
    floor = bf16_floor(np.where(np.tri(64, 64, 3, dtype=bool), e, 0).astype(np.float32))
    assert by_floor(a, e, floor, dtype="bfloat16") == "fail"
    assert measure(a, e).rms_expected < 2


def test_a_fill_on_one_side_only_is_an_error() -> None:
    e = np.where(np.tri(64, 64, dtype=bool), values(64, 64), -1e9).astype(np.float32)
    a = e.copy()
    a[5, 2] = -1e9
    m = measure(a, e, atol=1e-4, rtol=1e-4)
    assert judge_bound(m, FP32).status == judge_floor(m, Floor(1e-2, 1e-2)).status == "fail"
    assert m.unravel() == (5, 2)


def test_a_wrong_last_token_of_1024_fails() -> None:
    e = values(1024, 64)
    a = rounded(e)
    a[-1] += 0.2 * values(64, seed=1)
    assert by_floor(rounded(e), e, bf16_floor(e), dtype="bfloat16") == "pass"
    judged = judge_floor(measure(a, e), bf16_floor(e), dtype="bfloat16")
    assert (judged.status, judged.row) == ("fail", (1023,))


def test_one_wrong_outlier_channel_fails() -> None:
    e = values(128, 256)
    e[:, 17] *= 60
    a = rounded(e)
    a[:, 17] *= 1.2
    assert by_floor(a, e, bf16_floor(e), dtype="bfloat16") == "fail"


def test_a_large_mean_does_not_hide_scrambled_deviations() -> None:
    e = 1000 + values(64, 64)
    a = 1000 + values(64, 64, seed=1)
    floor = floor_from(measure(e, e.astype(np.float64) + 1e-5))
    assert by_floor(a, e, floor) == "fail"


def test_a_scale_of_1_08_fails() -> None:
    e = values(64, 64)
    assert by_floor(rounded(e) * 1.08, e, bf16_floor(e), dtype="bfloat16") == "fail"


def test_a_flipped_sign_fails_and_has_cosine_minus_one() -> None:
    e = values(8, 64)
    m = measure(-e, e)
    assert m.cosine == pytest.approx(-1.0)
    assert judge_floor(m, bf16_floor(e)).status == "fail"


def test_a_transposed_tensor_of_equal_size_fails() -> None:
    e = values(64, 64)
    assert by_floor(rounded(e.T), e, bf16_floor(e), dtype="bfloat16") == "fail"


def test_one_step_of_int8_rounding_passes_and_many_fail() -> None:
    e = np.random.default_rng(0).integers(-100, 100, (64, 64), dtype=np.int8)
    step = np.random.default_rng(1).integers(-1, 2, e.shape, dtype=np.int8)
    assert by_floor(e + step, e, Floor(0.0, 0.0)) == "pass"
    assert judge_bound(measure(e + step, e, atol=1.0), Bound(1.0, 0.0)).status == "pass"
    assert by_floor(e + 20, e, Floor(0.0, 0.0)) == "fail"


def test_zero_tensors_are_equal_and_errors_against_zeros_fail() -> None:
    zero = np.zeros((4, 32), np.float32)
    assert by_floor(zero, zero, Floor(0, 0)) == "equal"
    judged = judge_floor(measure(zero + 1e-30, zero), Floor(1e-2, 1e-2))
    assert judged.status == "fail"
    assert "zero everywhere" in judged.reason


def test_a_measured_floor_of_a_zero_reference_allows_nothing() -> None:
    zero = np.zeros((4, 32), np.float32)
    assert floor_from(measure(zero + 1e-3, zero)) == Floor(0.0, 0.0)


def test_tiny_values_are_judged_by_their_own_scale() -> None:
    e = values(8, 64) * np.float32(1e-20)
    assert by_floor(rounded(e), e, bf16_floor(e), dtype="bfloat16") == "pass"
    assert by_floor(e * 1.5, e, bf16_floor(e), dtype="bfloat16") == "fail"


def test_a_quiet_row_is_held_against_a_tenth_of_the_tensor() -> None:
    e = values(32, 64)
    e[3] *= 1e-3
    a = e + 1e-5 * values(32, 64, seed=1)
    assert by_floor(a, e, Floor(2e-5, 8e-5)) == "pass"
    assert by_floor(a, e, Floor(1e-8, 4e-8)) == "fail"


def test_reordered_sums_pass_on_a_floor_from_another_order() -> None:
    x, w = values(64, 512), values(512, 64, seed=1)
    e = x @ w
    order = np.random.default_rng(2).permutation(512)
    chunks = sum(x[:, i : i + 32] @ w[i : i + 32] for i in range(0, 512, 32))
    floor = floor_from(measure(x[:, order] @ w[order], e))
    assert by_floor(np.asarray(chunks), e, floor) == "pass"


def test_the_factor_is_the_border_between_pass_and_fail() -> None:
    e = np.ones((4, 64), np.float32)
    a = e + np.float32(2**-10)
    level = 2**-10 / FACTOR
    judged = judge_floor(measure(a, e), Floor(level, level))
    assert judged.status == "pass"
    assert (judged.ratio, judged.over_floor) == (pytest.approx(1.0), pytest.approx(FACTOR))
    assert judge_floor(measure(a, e), Floor(level * 0.99, level)).status == "fail"
    assert judge_floor(measure(a, e), Floor(level, level * 0.99)).status == "fail"


def test_half_an_ulp_of_the_row_maximum_is_the_least_floor() -> None:
    e = values(8, 64)
    m = measure(rounded(e), e)
    assert judge_floor(m, Floor(0.0, 0.0), dtype="bfloat16").status == "pass"
    assert judge_floor(m, Floor(0.0, 0.0), dtype="float32").status == "fail"


def test_empty_tensors_are_said_to_be_empty() -> None:
    m = measure(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32))
    for judged in (judge_bound(m, FP32), judge_floor(m, Floor(0, 0))):
        assert (judged.status, judged.reason) == ("skipped", "empty: shape=[0, 4] holds no values")


def test_equal_and_pass_are_told_apart() -> None:
    e = values(4, 32)
    assert judge_bound(measure(e, e, atol=1e-4, rtol=1e-4), FP32).status == "equal"
    near = judge_bound(measure(e + np.float32(1e-6), e, atol=1e-4, rtol=1e-4), FP32)
    assert near.status == "pass"
    assert 0 < near.ratio < 1


def test_the_bound_is_exact_at_its_border() -> None:
    e = np.ones(64)
    a = e.copy()
    a[7] = np.nextafter(1.5, 2)
    m = measure(a, e, atol=0.25, rtol=0.25)
    assert judge_bound(m, Bound(0.25, 0.25)).status == "fail"
    a[7] = 1.5
    assert judge_bound(measure(a, e, atol=0.25, rtol=0.25), Bound(0.25, 0.25)).status == "pass"


def test_another_bound_is_judged_from_the_histogram_and_never_wrongly_passed() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        e = values(16, 64, seed=seed)
        a = e + (10.0 ** rng.uniform(-6, -1)) * values(16, 64, seed=seed + 99)
        bound = Bound(float(10.0 ** rng.uniform(-6, 0)), float(10.0 ** rng.uniform(-6, 0)))
        stored = Metrics.from_json(json.loads(json.dumps(measure(a, e).to_json())))
        judged = judge_bound(stored, bound)
        wrong = int((~within(a, e, bound.atol, bound.rtol)).sum())
        assert not (judged.passed and wrong)
        if not wrong and not judged.passed:
            assert "cannot show" in judged.reason
        least, most = stored.joint.mismatches(bound.atol, bound.rtol)
        assert least <= wrong <= most


def test_metrics_without_a_histogram_are_not_passed_under_another_bound() -> None:
    e = values(8, 64)
    m = measure(e + np.float32(1e-6), e, profiles=False)
    assert "compare again" in judge_bound(m, FP32).reason
    assert "compare again" in judge_floor(m, Floor(1, 1)).reason


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 3.0])
def test_the_minimum_tolerance_passes_and_is_at_most_twice_too_wide(noise: float) -> None:
    e = values(32, 64)
    a = e + np.float32(noise) * values(32, 64, seed=1)
    atol, rtol = minimum_tolerance(measure(a, e))
    assert within(a, e, atol, rtol).all()
    assert not within(a, e, atol / 2.01, rtol / 2.01).all()


def test_no_tolerance_passes_a_one_sided_nan() -> None:
    e = values(4, 32)
    a = e.copy()
    a[0, 0] = np.nan
    assert minimum_tolerance(measure(a, e)) == (math.inf, math.inf)
    assert minimum_tolerance(measure(e, e)) == (0.0, 0.0)


def test_metrics_whose_rows_were_dropped_are_not_passed() -> None:
    e = values(8, 64)
    m = measure(e + 1, e)
    data = m.to_json()
    for heavy in ("hist", "joint", "profiles", "rows"):
        data.pop(heavy)
    for light in (m.slim(), Metrics.from_json(data)):
        assert judge_floor(light, Floor(1, 1)).status == judge_bound(light, FP32).status == "fail"
        assert minimum_tolerance(light) == (m.max_abs, 0.0)
        with pytest.raises(AssertionError):
            floor_from(light)


def test_floors_merge_to_the_higher_of_each() -> None:
    assert Floor(1.0, 4.0).merge(Floor(2.0, 3.0)) == Floor(2.0, 4.0)
