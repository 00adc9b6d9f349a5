"""Published rules as profiles: their numbers, our verdicts. Each catches a fault and passes the healthy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import parity
from parity.harness.dtypes import NAMES
from parity.harness.errors import UserError
from parity.harness.judge import Judgement, judge_vendor
from parity.harness.metrics import measure, measure_logits
from parity.harness.rules import Rules
from parity.harness.tolerance import Bound, describe, load_tolerance
from parity.harness.trace import TraceWriter
from parity.harness.vendors import VENDORS


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def judged(profile: str, actual: np.ndarray, expected: np.ndarray, *, logits: bool = False) -> Judgement:
    rule = Rules(load_tolerance(profile), {}).of("x", str(expected.dtype), str(actual.dtype))
    metrics = measure(actual, expected, atol=rule.bound.atol, rtol=rule.bound.rtol)
    finite = np.isfinite(actual).all() and np.isfinite(expected).all()
    return rule.judge(metrics, measure_logits(actual, expected) if logits and finite else None)


#: Profile -> how large a relative error of every value passes, and how large a one fails.
SIZES = {
    "atb-fp32": (2**-12, 2**-9),
    "atb-fp16": (2**-9, 2**-6),
    "atb-bf16": (2**-8, 2**-5),
    "atb-old-fp16": (5e-4, 5e-3),
    "atb-old-bf16": (2e-3, 5e-2),
    "msit-opcheck": (2**-22, 2**-18),
    "msprobe": (1e-5, 0.01),
    "msit-logits": (1e-4, 0.1),
    "modeltest-kl": (1e-4, 0.3),
    "npz-tool": (5e-3, 0.05),
    "tpu-mlir-f32": (5e-3, 0.05),
    "tpu-mlir-f16": (0.05, 0.3),
    "tpu-mlir-bf16": (0.05, 0.3),
    "tpu-mlir-int8": (0.1, 0.4),
    "torch-testing": (2**-23, 1e-3),
    "llama-cpp-nmse": (0.05, 0.3),
}


def test_every_rule_is_tried() -> None:
    assert SIZES.keys() == VENDORS.keys()


@pytest.mark.parametrize("profile", SIZES)
def test_a_rule_passes_what_is_within_its_numbers_and_fails_what_is_not(profile: str) -> None:
    e, signs = values(16, 256), np.sign(values(16, 256, seed=1))
    passes, fails = SIZES[profile]
    logits = VENDORS[profile].logits
    good = judged(profile, e * (1 + np.float32(passes) * signs), e, logits=logits)
    bad = judged(profile, e * (1 + np.float32(fails) * signs), e, logits=logits)
    assert (good.status, bad.status) == ("pass", "fail")
    assert good.ratio <= 1 < bad.ratio
    assert "but should be at most" in bad.reason


@pytest.mark.parametrize("profile", VENDORS)
def test_nan_and_a_flipped_sign_fail_every_rule(profile: str) -> None:
    e = values(8, 64)
    a = e.copy()
    a[3, 5] = np.nan
    assert judged(profile, a, e, logits=True).status == "fail"
    assert judged(profile, -e, e, logits=True).status == "fail"
    assert judged(profile, e.copy(), e, logits=True).status == "equal"


def test_two_other_tokens_of_one_size_fail_the_rule_that_lets_them_pass_in_the_tool() -> None:
    """Two one-hot logits with different tokens: the largest values are equal."""
    e, a = np.zeros((1, 64), np.float32), np.zeros((1, 64), np.float32)
    e[0, 3], a[0, 40] = 20.0, 20.0
    assert judged("msit-logits", a, e, logits=True).status == "fail"


def test_half_the_size_is_not_smaller_than_one_hundredth() -> None:
    e = values(4, 64)
    assert "norms" in judged("msit-logits", e / 2, e, logits=True).reason


def test_a_share_of_outliers_is_allowed_and_no_more() -> None:
    e = values(100, 100)
    few, many = e.copy(), e.copy()
    few.reshape(-1)[:9] += 1
    many.reshape(-1)[:11] += 1
    assert judged("atb-old-fp16", few, e).status == "pass"
    assert judged("atb-old-fp16", many, e).status == "fail"


@pytest.mark.parametrize("profile", VENDORS)
def test_token_ids_are_exact_under_every_rule(profile: str) -> None:
    vendor = VENDORS[profile]
    assert vendor.bound("int64") == (0.0, 0.0)
    assert vendor.bound("bool") == (0.0, 0.0)
    for name in NAMES:
        assert isinstance(load_tolerance(profile).bound("x", name, name), Bound)


def test_int8_may_be_one_step_apart() -> None:
    e = np.arange(100, dtype=np.int8)
    assert judged("atb-fp16", e + np.int8(1), e).passed
    assert judged("atb-fp16", e + np.int8(2), e).status == "fail"


def test_a_rule_of_logits_says_nothing_of_other_records() -> None:
    e = values(4, 64)
    found = judge_vendor(measure(e + 1, e), None, VENDORS["msit-logits"])
    assert (found.status, found.reason) == ("skipped", "the rule speaks of logits alone")


def traced(path: Path, axes: str, error: float) -> parity.Comparison:
    e = values(1, 3, 64)
    with TraceWriter(path) as writer:
        for name, by in (("torch", 0.0), ("port", error)):
            with writer.run(name) as run:
                run.record("hidden", e + np.float32(100 * by), step=0, axes="b t d")
                run.record("logits", e * np.float32(1 + by), step=0, axes=axes)
    return parity.compare_traces(path, path, cand_run="port", tol="msit-logits")


def test_a_trace_is_judged_by_its_logits_alone(tmp_path: Path) -> None:
    good = traced(tmp_path / "good.h5", "b t v", 1e-4)
    assert (good.verdict, good.counts) == ("parity", {"skipped": 1, "pass": 1})
    bad = traced(tmp_path / "bad.h5", "b t v", 0.2)
    assert (bad.verdict, bad.first.tap) == ("divergence", "logits")


def test_nothing_judged_is_inconclusive(tmp_path: Path) -> None:
    found = traced(tmp_path / "none.h5", "b t d", 0.2)
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert found.counts == {"skipped": 2}


def test_an_override_goes_before_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "tol.toml"
    file.write_text('profile = "atb-fp16"\n[[override]]\ntaps = "x"\natol = 0.0\nrtol = 0.0\n')
    rule = Rules(load_tolerance(str(file)), {}).of("x", "float32", "float32")
    assert rule.vendor is None
    assert rule.bound == Bound(0.0, 0.0)


def test_every_rule_is_described_and_a_misspelled_one_is_refused() -> None:
    text = describe()
    for name, vendor in VENDORS.items():
        assert f"| {name} | {vendor.rule} |" in text
    with pytest.raises(UserError, match="Did you mean 'msit-logits'"):
        load_tolerance("msit-logit")
