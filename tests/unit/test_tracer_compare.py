"""compare(): which runs meet, what is said of each record, and what the original tool got wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.tracer import compare, executing, running, step, trace_tensor
from parity.harness.tracer.store import store

X = np.linspace(1, 2, 6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _own_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARITY_TRACE", raising=False)
    store.memory.clear()


def record(name: str, **taps: Any) -> None:
    with running(name, save=False):
        for tap, x in taps.items():
            trace_tensor(tap, x)


def status(result: Any, run: str = "port") -> dict[str, str]:
    return {row.tap: row.status for row in result[run].rows()}


def test_equal_runs_are_parity(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", q=X)
    record("port", q=X.copy())
    result = compare()
    assert (result.verdict, result.exit_code, status(result)) == ("parity", 0, {"q": "equal"})
    assert "[OK]      q" in capsys.readouterr().out


@pytest.mark.parametrize(("off", "want"), [(0.5e-5, "pass"), (9e-5, "fail")])
def test_eps_is_absolute_and_relative(off: float, want: str) -> None:
    record("torch", q=np.array([1.0]))
    record("port", q=np.array([1.0 + off]))
    assert status(compare())["q"] == want
    assert status(compare(1e-4))["q"] == "pass"
    assert status(compare(eps=0.0))["q"] == "fail"


def test_a_wrong_record_says_where_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", q=X)
    record("port", q=X + np.eye(2, 3, dtype=np.float32))
    result = compare()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("[WRONG]"))
    assert "max abs 1" in line
    assert "at [0, 0]: 2, but should be 1" in line
    assert (result.verdict, result.exit_code, result["port"].first.tap) == ("divergence", 1, "q")


def test_nan_on_one_side_is_wrong_and_on_both_is_not_silently_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = X.copy()
    bad[0, 0] = np.nan
    record("torch", one=X, both=bad)
    record("port", one=bad, both=bad)
    result = compare()
    assert status(result) == {"one": "fail", "both": "nonfinite"}
    assert result.exit_code != 0
    assert "nan %" not in capsys.readouterr().out


def test_infinities_compare_by_sign() -> None:
    record("torch", same=np.array([np.inf]), other=np.array([np.inf]))
    record("port", same=np.array([np.inf]), other=np.array([-np.inf]))
    assert status(compare()) == {"same": "equal", "other": "fail"}


def test_a_reference_of_zeros_divides_by_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", zero=np.zeros(3), off=np.zeros(3))
    record("port", zero=np.zeros(3), off=np.ones(3))
    assert status(compare()) == {"zero": "equal", "off": "fail"}
    assert "nan" not in capsys.readouterr().out


def test_other_number_formats_are_compared_by_value_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", q=X)
    record("port", q=X.astype(ml_dtypes.bfloat16))
    compare()
    assert "q  bfloat16 against float32" in capsys.readouterr().out
    assert status(compare(eps=1e-2)) == {"q": "pass"}
    assert status(compare(eps=1e-5)) == {"q": "fail"}


def test_a_transposed_tensor_of_equal_size_never_passes(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", t=X, flat=X)
    record("port", t=X.T.copy(), flat=X.reshape(-1))
    assert status(compare()) == {"t": "shape", "flat": "shape"}
    result = compare(ignore_shape=True)
    out = capsys.readouterr().out
    assert status(result) == {"t": "shape", "flat": "shape"}
    assert result.exit_code == 1
    assert "[WRONG]   t" in out
    assert "[SHAPE]   flat" in out
    assert "in row-major order the values agree" in out


def test_sizes_that_differ_are_not_cut_to_the_shorter() -> None:
    record("torch", q=X)
    record("port", q=X[:1])
    assert status(compare(ignore_shape=True)) == {"q": "shape"}


def test_names_on_one_side_are_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", a=X, b=X)
    record("port", a=X, c=X)
    result = compare()
    out = capsys.readouterr().out
    assert status(result) == {"a": "equal", "b": "missing", "c": "extra"}
    assert "[MISSING] b  1 record of torch that port has not: step 0 call 0" in out
    assert "[EXTRA]   c  1 record of port that torch has not: step 0 call 0" in out
    assert result.verdict == "divergence"


def test_a_tap_that_repeats_is_compared_call_by_call_and_counts_must_agree() -> None:
    with running("torch", save=False):
        for i in range(3):
            trace_tensor("q", X + i)
    with running("port", save=False):
        for i in (0, 7):
            trace_tensor("q", X + i)
    rows = compare()["port"].rows()
    assert [(row.call, row.status) for row in rows] == [(0, "equal"), (1, "fail"), (2, "missing")]


def test_steps_pair_with_steps_and_not_by_place() -> None:
    for name, steps in (("torch", (0, 1, 2)), ("port", (1, 2))):
        with running(name, save=False):
            for index in steps:
                with step(index):
                    trace_tensor("q", X + index)
    assert [(row.step, row.status) for row in compare()["port"].rows()] == [
        (0, "missing"), (1, "equal"), (2, "equal"),
    ]  # fmt: skip


def test_the_reference_is_chosen_by_name_and_not_by_insertion(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("port", "other", "torch"):
        record(name, q=X)
    result = compare()
    assert result.reference == "torch"
    assert [comparison.label for comparison in result] == ["port", "other"]
    assert "reference: torch (by its name)" in capsys.readouterr().out
    assert compare(ref="other").reference == "other"


def test_without_a_known_name_the_first_run_is_the_reference_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record("a", q=X)
    record("b", q=X)
    assert compare().reference == "a"
    assert "reference: a (the first that was recorded" in capsys.readouterr().out


def test_a_reference_that_is_not_there_is_a_user_error() -> None:
    record("torch", q=X)
    with pytest.raises(UserError, match=r"ref='torhc': no such run\. Did you mean 'torch'"):
        compare(ref="torhc")


@pytest.mark.parametrize("eps", [-1, float("inf"), float("nan")])
def test_an_eps_that_bounds_nothing_is_a_user_error(eps: float) -> None:
    with pytest.raises(UserError, match=f"eps={eps}"):
        compare(eps)


@pytest.mark.parametrize("names", [(), ("torch",)])
def test_nothing_compared_is_inconclusive_and_said(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        record(name, q=X)
    result = compare()
    assert (result.verdict, result.exit_code, len(result)) == ("inconclusive", 3, 0)
    assert "nothing was compared" in capsys.readouterr().out


def test_two_runs_without_a_common_name_are_not_a_pass() -> None:
    record("torch", a=X)
    record("port", b=X)
    assert compare().exit_code != 0


def test_a_comparison_has_no_truth_value() -> None:
    record("torch", q=X)
    record("port", q=X)
    with pytest.raises(TypeError, match="exit_code == 0"):
        bool(compare())


def test_an_alias_answers_for_its_record() -> None:
    with running("torch", save=False):
        trace_tensor("q", X)
    store.memory["torch"].records()[0].meta["alias"] = {"module:q_proj": 1}
    with running("port", save=False):
        trace_tensor("module:q_proj", X)
        trace_tensor("module:q_proj", X)
    rows = compare()["port"].rows()
    assert [(row.tap, row.call, row.status) for row in rows] == [
        ("module:q_proj", 1, "equal"), ("module:q_proj", 0, "extra"),
    ]  # fmt: skip


def test_the_original_tools_leading_dots_are_understood() -> None:
    record("torch", **{"layer0.q": X})
    record("port")
    store.memory["port"].record(".layer0.q", X)
    assert status(compare()) == {"layer0.q": "equal"}


def test_the_newest_run_of_a_name_is_compared_and_the_repeat_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record("torch", q=X)
    for i in (5, 1, 0):
        with running("port", save=False), executing("layer0"):
            trace_tensor("q", X + i)
    record("torch", **{"layer0.q": X})
    assert capsys.readouterr().err.count("'port'") == 1
    assert compare().verdict == "parity"


def test_runs_of_other_weights_are_not_compared_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    record("torch", q=X)
    record("port", q=X)
    store.memory["torch"].provenance["weights"] = "aaaa"
    store.memory["port"].provenance["weights"] = "bbbb"
    result = compare()
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert "weights: aaaa against bbbb" in capsys.readouterr().out
