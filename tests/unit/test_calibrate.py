"""`parity calibrate`: noise floors in a file that people review, and what happens when it does not fit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.harness.errors import UserError
from parity.harness.judge import Floor
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import TraceWriter

CASE = {"weights": "random:0", "scenario": "one", "steps": 2}
KNOWN = {"model": "m", "weights": "w", "scenario_digest": "s", "policy": "full"}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A calibration file of a small case."""
    path = Path(tmp_path_factory.mktemp("calibrated")) / "floors.toml"
    parity.calibrate(path, **CASE)
    return path


@pytest.mark.slow
def test_the_file_holds_a_level_a_cause_and_the_case(calibrated: Path) -> None:
    data = tomllib.loads(calibrated.read_text())
    assert data["profile"] == "auto"
    assert data["case"].keys() >= {"model", "weights", "scenario_digest", "policy", "formats", "torch"}
    assert data["case"]["formats"] == ["float32"]
    taps = list(data["floor"])
    assert taps.index("layer0.q") < taps.index("layer3.mlp") < taps.index("logits"), "in execution order"
    row = data["floor"]["layer1.attn"]
    assert 0 < row["rms"] < row["peak"] < 1e-4
    assert row["cause"] in ("fp64", "order", "inputs", "threads", "batch")
    assert row["rows"] > 0
    assert all(len(line) < 160 for line in calibrated.read_text().splitlines())


@pytest.mark.slow
def test_a_run_is_judged_by_the_file_and_measures_nothing(calibrated: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("parity.driver.noise_floor", None)
    result = parity.run(cand="segmented", tol=str(calibrated), out=tmp_path / "out", report=False, **CASE)
    found = result["segmented"]
    assert found.verdict == "parity"
    assert found.tolerance == "floors.toml (auto)"
    held = load_tolerance(str(calibrated)).floors
    assert {row.floor for row in found.rows() if row.tap == "layer1.attn"} == {held["layer1.attn"].rms}
    assert not [f.text for f in found.findings if "floors.toml" in f.text]


@pytest.mark.slow
def test_other_weights_and_formats_are_refused_and_another_scenario_is_warned_of(
    calibrated, tmp_path
) -> None:
    options = {"tol": str(calibrated), "report": False}
    with pytest.raises(UserError, match="calibrated with weights="):
        parity.run(cand="segmented", out=tmp_path / "a", **options, **{**CASE, "weights": "random:1"})
    with pytest.raises(UserError, match="calibrated for float32, but a side was computed in bfloat16"):
        parity.run(cand="segmented:bf16", out=tmp_path / "b", **options, **CASE)
    found = parity.run(cand="segmented", out=tmp_path / "c", **options, **{**CASE, "steps": 3})["segmented"]
    assert [f.level for f in found.findings if "calibrated on another scenario" in f.text] == ["warning"]


@pytest.mark.slow
def test_a_file_that_is_there_is_kept_and_a_format_without_emulation_refused(calibrated, tmp_path) -> None:
    with pytest.raises(UserError, match="is there already"):
        parity.calibrate(calibrated, **CASE)
    with pytest.raises(UserError, match="are not computed in it here"):
        parity.calibrate(tmp_path / "x.toml", dtype="int8", **CASE)


@pytest.mark.slow
def test_the_command_prints_a_table(tmp_path) -> None:
    words = ["--weights", "random:0", "--scenario", "one", "--steps", "2", "-o", str(tmp_path / "f.toml")]
    done = CliRunner().invoke(cli, ["calibrate", *words])
    assert done.exit_code == 0, done.output
    assert "layer1.attn" in done.output
    assert f"run with --tol {tmp_path / 'f.toml'}" in done.output


# --- the file by itself ---


def traced(path: Path, **about: object) -> None:
    e = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    with TraceWriter(path) as writer:
        for name, by in (("torch", 0.0), ("port", 1e-5)):
            with writer.run(name, provenance={**KNOWN, **about, "dtype": "float32"}) as run:
                run.record("x", e + np.float32(by), step=0, axes="t d")
                run.record("y", e + np.float32(by), step=0, axes="t d")


def compared(tmp_path: Path, text: str) -> parity.Comparison:
    traced(tmp_path / "t.h5")
    (tmp_path / "f.toml").write_text(text)
    return parity.compare_traces(
        tmp_path / "t.h5", tmp_path / "t.h5", cand_run="port", tol=str(tmp_path / "f.toml")
    )


def test_taps_without_a_counterpart_warn_on_both_sides(tmp_path: Path) -> None:
    found = compared(tmp_path, '[floor]\n"x" = { rms = 1e-5, peak = 5e-5 }\n"z" = { rms = 1, peak = 1 }\n')
    assert {row.tap: row.floor for row in found.rows()} == {"x": 1e-5, "y": None}
    texts = [f.text for f in found.findings if f.level == "warning"]
    assert texts == [
        "f.toml holds noise floors of 1 tap (z) that no run has",
        "f.toml has no noise floor of 1 tap (y): the bound of the number format decides",
    ]


def test_floors_decide_and_overrides_go_before_them(tmp_path: Path) -> None:
    text = '[floor]\n"x" = { rms = 1e-7, peak = 5e-7 }\n"y" = { rms = 1e-7, peak = 5e-7 }\n'
    found = compared(tmp_path, text + '[[override]]\ntaps = "y"\natol = 1e-4\n')
    assert {row.tap: row.status for row in found.rows()} == {"x": "fail", "y": "pass"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("floor = 3", "should be a table"),
        ("[floor]\nx = 3", "should be a table such as"),
        ("[floor]\nx = { rms = 1 }", "needs rms and peak"),
        ("[floor]\nx = { rms = -1, peak = 1 }", "floor 'x' rms=-1"),
        ("[floor]\nx = { rms = 1, peak = 1, pek = 2 }", "Did you mean 'peak'"),
        ("profile = 'fp32'\n[floor]\nx = { rms = 1, peak = 1 }", "decide nothing under it"),
        ("case = 3", "should be a table"),
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_tolerance(str(tmp_path / "f.toml"))


def test_a_level_beside_a_dominant_value_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("[floor]\nx = { rms = 1, peak = 2, rest = 3 }")
    assert load_tolerance(str(tmp_path / "f.toml")).floors == {"x": Floor(1.0, 2.0, 3.0)}
