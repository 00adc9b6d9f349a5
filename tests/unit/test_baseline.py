"""Baselines: what got worse within its tolerance is exit status 5; what does not compare is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.harness.errors import UserError
from parity.reports.json_report import read_json, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARITY_CACHE", str(folder / "cache"))
        case = {"weights": "random:0", "scenario": "one", "steps": 2}
        parity.run("torch", ["segmented"], out=folder / "out", report=True, **case)
    parity.baseline_save(folder / "out", folder / "base.json")
    return folder


def changed(run, tmp_path, change):
    """A result that differs from the saved one by what `change` does to its comparison."""
    result = read_json(run / "out/report.json")
    write_json(replace(result, comparisons=tuple(map(change, result.comparisons))), tmp_path / "report.json")
    return tmp_path


def grown(tap, ratio, status="pass"):
    def change(comparison):
        rows = [
            replace(row, ratio=ratio, status=status) if row.tap == tap else row for row in comparison.records
        ]
        return replace(comparison, records=tuple(rows))

    return change


def test_the_run_itself_is_no_worse(run):
    found = parity.baseline_check(run / "out", run / "base.json")
    assert found.exit_code == 0
    assert found.compared > 50


def test_an_error_that_grew_within_tolerance_is_status_5(run, tmp_path):
    found = parity.baseline_check(changed(run, tmp_path, grown("layer1.q", 0.9)), run / "base.json")
    assert found.exit_code == 5
    assert [item.tap for item in found.regressions] == ["layer1.q"]
    assert "0.9× of what is allowed" in found.regressions[0].text


def test_an_error_deep_in_the_noise_may_wander(run, tmp_path):
    path = changed(run, tmp_path, grown("embed", 0.05))
    assert parity.baseline_check(path, run / "base.json").exit_code == 0


def test_a_divergence_stays_a_divergence(run, tmp_path):
    path = changed(run, tmp_path, grown("layer1.q", 3.0, status="fail"))
    assert parity.baseline_check(path, run / "base.json").exit_code == 1


def test_a_tap_that_is_no_longer_compared_got_worse(run, tmp_path):
    path = changed(run, tmp_path, grown("layer1.q", None, status="skipped"))
    found = parity.baseline_check(path, run / "base.json")
    assert found.exit_code == 5
    assert "layer1.q is no longer compared" in found.regressions[0].text


def test_less_coverage_got_worse(run, tmp_path):
    def less(comparison):
        return replace(comparison, coverage=replace(comparison.coverage, checked=10))

    found = parity.baseline_check(changed(run, tmp_path, less), run / "base.json")
    assert "of the reference was checked" in found.regressions[0].text


def test_a_candidate_that_was_not_run_got_worse(run, tmp_path):
    data = json.loads((run / "base.json").read_text())
    data["candidates"]["onnx"] = data["candidates"]["segmented"]
    (tmp_path / "base.json").write_text(json.dumps(data))
    found = parity.baseline_check(run / "out", tmp_path / "base.json")
    assert found.exit_code == 5
    assert "onnx: is in the baseline and was not run" in found.regressions[0].text


@pytest.mark.parametrize("key", ["weights", "scenario_digest"])
def test_a_run_of_another_case_is_refused(run, tmp_path, key):
    data = json.loads((run / "base.json").read_text())
    data["candidates"]["segmented"]["case"][key] = "another"
    (tmp_path / "base.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"is of {key}='another'"):
        parity.baseline_check(run / "out", tmp_path / "base.json")


def test_a_run_judged_otherwise_is_refused(run, tmp_path):
    path = changed(run, tmp_path, lambda comparison: replace(comparison, tolerance="bf16"))
    with pytest.raises(UserError, match="was judged by tol='auto'"):
        parity.baseline_check(path, run / "base.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "parity-baseline", "version": 1}', "\x00"])
def test_a_file_that_is_no_baseline_is_refused(run, tmp_path, text):
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UserError, match="baseline="):
        parity.baseline_check(run / "out", tmp_path / "base.json")


def test_a_divergence_is_kept_only_when_told_so(run, tmp_path):
    path = changed(run, tmp_path, grown("layer1.q", 3.0, status="fail"))
    with pytest.raises(UserError, match="is not at parity"):
        parity.baseline_save(path, tmp_path / "base.json")
    assert parity.baseline_save(path, tmp_path / "base.json", force=True).exists()


def test_the_commands_say_what_got_worse(run, tmp_path):
    base = tmp_path / "base.json"
    done = CliRunner().invoke(cli, ["baseline", "save", str(run / "out"), "--out", str(base)])
    assert done.exit_code == 0
    worse = changed(run, tmp_path, grown("layer1.q", 0.9))
    done = CliRunner().invoke(cli, ["baseline", "check", str(worse), str(base)])
    assert done.exit_code == 5
    assert "WORSE     segmented: layer1.q" in done.output
    data = json.loads(CliRunner().invoke(cli, ["baseline", "check", str(worse), str(base), "--json"]).stdout)
    assert data["exit_code"] == 5
