"""`parity judge`: other tolerances for what was run before, and the least that would pass."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.harness.comparison import Result
from parity.harness.errors import UserError
from parity.harness.judge import least_bound
from parity.harness.metrics import measure
from parity.harness.tolerance import within
from parity.harness.trace import TraceWriter
from parity.reports.json_report import write_json


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def folder(tmp_path: Path, *, error: float = 1e-3, nan: bool = False, keep: bool = True) -> Path:
    """What a run leaves: `x` is off by `error` everywhere, `y` is equal."""
    e, trace = values(4, 64), tmp_path / "trace.h5"
    with TraceWriter(trace) as writer:
        for name in ("torch", "port"):
            own = e if name == "torch" else e + np.float32(error)
            with writer.run(name) as run:
                run.record("y", e, step=0, axes="t d")
                if nan and name == "port":
                    own = own.copy()
                    own[0, 0] = np.nan
                run.record("x", own, step=0, axes="t d")
    found = parity.compare_traces(trace, trace, cand_run="port", tol="fp32")
    write_json(Result((found,), provenance={"request": {"tol": "fp32"}}), tmp_path / "report.json")
    if not keep:
        trace.unlink()
    return tmp_path


@pytest.mark.parametrize("keep", [True, False], ids=["values", "metrics"])
def test_another_tolerance_gives_another_verdict_without_a_rerun(tmp_path: Path, keep: bool) -> None:
    where = folder(tmp_path, keep=keep)
    own = parity.judge(where)
    assert (own["port"].verdict, own["port"].tolerance, own.exit_code) == ("divergence", "fp32", 1)
    assert own["port"].first.tap == "x"
    loose = parity.judge(where, tol="bf16")
    assert (loose["port"].verdict, loose.exit_code) == ("parity", 0)
    assert loose["port"].first is None
    assert parity.judge(where / "report.json", tol="fp16")["port"].verdict == "parity"


@pytest.mark.parametrize("keep", [True, False], ids=["values", "metrics"])
def test_the_least_that_would_pass_does_and_half_of_it_does_not(tmp_path: Path, keep: bool) -> None:
    where = folder(tmp_path, keep=keep)
    least = parity.judge(where).least["port"]
    e = values(4, 64)
    assert within(e + np.float32(1e-3), e, least.bound, least.bound).all()
    assert not within(e + np.float32(1e-3), e, least.bound / 2.01, least.bound / 2.01).all()
    assert least.taps == {"x": least.bound}
    assert least.profile == "fp16"
    own = f'taps = "x"\natol = {least.bound}\nrtol = {least.bound}\nreason = "r"\n'
    (tmp_path / "tol.toml").write_text(f'profile = "exact"\n[[override]]\n{own}')
    assert parity.judge(where, tol=str(tmp_path / "tol.toml"))["port"].verdict == "parity"


def test_no_tolerance_passes_nan(tmp_path: Path) -> None:
    least = parity.judge(folder(tmp_path, nan=True), tol="bf16").least["port"]
    assert (least.bound, least.profile, least.taps) == (math.inf, None, {"x": math.inf})
    assert least.to_json()["bound"] == "inf"


def test_the_metrics_of_a_report_are_not_enough_for_noise_floors_and_shares(tmp_path: Path) -> None:
    where = folder(tmp_path, keep=False)
    for tol in ("auto", "atb-fp16"):
        with pytest.raises(UserError, match="needs the values"):
            parity.judge(where, tol=tol)


def test_records_whose_metrics_were_not_kept_are_not_passed(tmp_path: Path) -> None:
    where = folder(tmp_path, error=1e-6, keep=False)
    data = json.loads((where / "report.json").read_text())
    for row in data["comparisons"][0]["records"]:
        row["metrics"] = None
    (where / "report.json").write_text(json.dumps(data))
    found = parity.judge(where, tol="fp16")["port"]
    assert found.counts == {"equal": 1, "skipped": 1}
    assert any("keep no metrics" in f.text for f in found.findings if f.level == "warning")


def test_the_runs_of_a_trace_are_judged_in_pairs(tmp_path: Path) -> None:
    trace = folder(tmp_path) / "trace.h5"
    assert parity.judge(trace, tol="fp16")["port"].verdict == "parity"
    back = parity.judge(trace, tol="fp16", ref="port")
    assert [found.label for found in back.result] == ["torch"]
    with pytest.raises(UserError, match="is not in"):
        parity.judge(trace, cand="prt")


def test_a_trace_with_one_run_has_nothing_to_be_judged_by(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("torch") as run:
        run.record("x", values(2, 2), step=0)
    with pytest.raises(UserError, match="alone"):
        parity.judge(tmp_path / "t.h5")


def test_the_command_says_verdict_least_and_overrides(tmp_path: Path) -> None:
    where = folder(tmp_path)
    done = CliRunner().invoke(cli, ["judge", str(where)])
    assert done.exit_code == 1
    assert "port would pass with atol = rtol = 0.00" in done.output
    assert "or the profile fp16" in done.output
    assert 'taps = "x"' in done.output
    done = CliRunner().invoke(cli, ["judge", str(where), "--tol", "fp16", "--json"])
    assert done.exit_code == 0
    data = json.loads(done.stdout[done.stdout.index("{") :])
    assert data["comparisons"][0]["verdict"] == "parity"
    assert data["least"]["port"]["profile"] == "fp16"
    assert data["least"]["port"]["taps"] == {}


def test_the_least_bound_is_sure_and_exact_where_it_was_measured() -> None:
    e = 100 * values(32, 64)
    a = e + np.float32(1e-2) * values(32, 64, seed=1)
    exact = least_bound(measure(a, e, atol=1.0, rtol=1.0))
    true = float((np.abs(a.astype(float) - e) / (1 + np.abs(e.astype(float)))).max())
    assert exact == pytest.approx(true)
    for other in (measure(a, e), measure(a, e).slim(), measure(a, e, atol=1e-2, rtol=1e-4).slim()):
        assert within(a, e, least_bound(other), least_bound(other)).all()
    assert least_bound(measure(a, e)) <= 2.01 * true
    assert least_bound(measure(e, e)) == 0.0
