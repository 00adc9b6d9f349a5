"""What differs is rounding, quantization or a bug."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import parity
from parity.harness.judge import Floor
from parity.harness.metrics import measure
from parity.harness.rules import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import TraceWriter


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((16, 64)).astype(np.float32)


def kind(actual: np.ndarray, expected: np.ndarray, rules: Rules) -> tuple[str, str]:
    rule = rules.of("x", str(expected.dtype), str(actual.dtype))
    metrics = measure(actual, expected, atol=rule.bound.atol, rtol=rule.bound.rtol)
    judgement = rule.judge(metrics)
    return judgement.status, rule.kind(judgement, metrics)


AUTO, FP32 = load_tolerance("auto"), load_tolerance("fp32")


@pytest.mark.parametrize(
    ("size", "narrow", "found"),
    [
        (1e-3, "", ("pass", "rounding")),
        (1e-3, "bfloat16", ("pass", "rounding")),
        (1e-3, "w8a8", ("pass", "quantization")),
        (1.0, "", ("fail", "bug")),
        (1.0, "w8a8", ("fail", "bug")),
    ],
)
def test_a_measured_floor_tells_all_three(size: float, narrow: str, found: tuple[str, str]) -> None:
    e = values()
    rules = Rules(AUTO, {"x": Floor(1e-3, 5e-3)}, narrow)
    assert kind(e + np.float32(size) * values(1), e, rules) == found


@pytest.mark.parametrize(
    ("size", "narrow", "found"),
    [
        (1e-2, "bfloat16", "rounding"),
        (1e-1, "w8a8", "quantization"),
        (1e-1, "bfloat16", "bug"),
        (2.0, "w8a8", "bug"),
        (1e-2, "", ""),
    ],
)
def test_a_failure_under_a_tight_tolerance_is_no_bug_where_the_arithmetic_explains_it(
    size: float, narrow: str, found: str
) -> None:
    e = values()
    assert kind(e + np.float32(size) * values(1), e, Rules(FP32, {}, narrow)) == ("fail", found)


def test_what_is_equal_or_passes_a_bound_is_not_called_anything() -> None:
    e = values()
    assert kind(e.copy(), e, Rules(AUTO, {"x": Floor(1e-3, 5e-3)})) == ("equal", "")
    assert kind(e + np.float32(1e-6), e, Rules(FP32, {}, "bfloat16")) == ("pass", "")


def test_one_nan_is_a_bug() -> None:
    e = values()
    a = e.copy()
    a[0, 0] = np.nan
    assert kind(a, e, Rules(AUTO, {"x": Floor(1e-3, 5e-3)})) == ("fail", "bug")
    assert kind(a, e, Rules(FP32, {}, "bfloat16")) == ("fail", "bug")


def test_rows_keep_it_and_the_console_says_it_where_it_is_not_plain(tmp_path: Path, capsys) -> None:
    e = values()
    with TraceWriter(tmp_path / "t.h5") as writer:
        for name, dtype in (("torch", "float32"), ("port", "bfloat16")):
            with writer.run(name, provenance={"dtype": dtype}) as run:
                run.record("x", e if name == "torch" else e.astype(ml_dtypes.bfloat16), step=0, axes="t d")
    found = parity.compare_traces(tmp_path / "t.h5", tmp_path / "t.h5", cand_run="port", tol="exact")
    assert [row.kind for row in found.rows()] == ["rounding"]
    back = parity.Comparison.from_json(found.to_json())
    assert [row.kind for row in back.rows()] == ["rounding"]
    from rich.console import Console

    from parity.harness.comparison import Result
    from parity.reports.console import print_result

    print_result(Result((found,)), Console(width=120))
    assert "fail 1/1 rounding" in capsys.readouterr().out
