"""Rows that one massive activation dominates: it hides no fault in the others, nor is one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from parity.harness.judge import Floor, floor_from, judge_floor
from parity.harness.metrics import measure

SIZES = [64, 256, 4096]


def massive(width: int, seed: int = 0, by: float = 1000.0) -> np.ndarray:
    """[16, width], one channel `by` times as large as the others."""
    x = np.random.default_rng(seed).standard_normal((16, width)).astype(np.float32)
    x[:, 17] = by * np.where(x[:, 17] < 0, x[:, 17] - 0.5, x[:, 17] + 0.5)
    return x


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def healthy(x: np.ndarray, seed: int) -> np.ndarray:
    """Computed in another order, then stored in bf16: errors proportional to each value."""
    noise = np.random.default_rng(seed).uniform(-1, 1, x.shape).astype(np.float32)
    return rounded(x * (1 + 2**-9 * noise))


def judged(actual: np.ndarray, expected: np.ndarray, floor: Floor) -> str:
    return judge_floor(measure(actual, expected), floor, dtype="bfloat16").status


@pytest.mark.parametrize("width", SIZES)
def test_a_fault_in_the_other_channels_of_a_row_is_caught(width: int) -> None:
    e = massive(width)
    floor = floor_from(measure(rounded(e), e))
    small = np.ones(width, np.float32)
    small[np.arange(width) != 17] = 1.08
    assert floor.rest > 0
    assert judged(rounded(e) * small, e, floor) == "fail"
    blind = Floor(floor.rms, floor.peak)
    assert judged(rounded(e) * small, e, blind) == "pass", "the massive channel hides it otherwise"


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("seed", range(20))
def test_the_rounding_of_a_massive_channel_is_no_fault(width: int, seed: int) -> None:
    e = massive(width, seed)
    floor = floor_from(measure(rounded(e), e))
    assert judged(healthy(e, seed + 100), e, floor) == "pass"


@pytest.mark.parametrize("seed", range(20))
def test_a_massive_channel_that_needs_no_rounding_is_no_fault(seed: int) -> None:
    """Its error is zero, so that the largest error is another value's."""
    e = massive(64, seed)
    e[:, 17] = 1024.0
    floor = floor_from(measure(rounded(e), e))
    assert judged(healthy(e, seed), e, floor) == "pass"


def test_rows_without_a_dominant_value_have_no_level_of_their_own() -> None:
    e = massive(64, by=1.0)
    assert floor_from(measure(rounded(e), e)).rest == 0.0


def test_a_row_of_one_hot_values_has_no_rest_to_be_judged() -> None:
    e = np.zeros((4, 64), np.float32)
    e[:, 3] = 1000.3
    floor = floor_from(measure(rounded(e), e))
    assert floor.rest == 0.0
    assert judged(rounded(e), e, floor) == "pass"
