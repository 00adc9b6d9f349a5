"""Chips as candidates: the real compiler and the real simulators against the reference."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import parity
from parity.harness.comparison import Result
from parity.harness.errors import UserError
from parity.harness.progress import Silent
from parity.harness.trace import Trace

pytestmark = pytest.mark.slow

CASE: dict[str, Any] = {"weights": "random:0", "scenario": "exact", "steps": 3}


@pytest.fixture(scope="module")
def ran(toolchain, tmp_path_factory) -> Result:
    """A run with several candidates, its files kept."""
    out = tmp_path_factory.mktemp("chips") / "out"
    return parity.run(cand=["cvi", "cvi:int8", "cvi:tpu", "cvi:tapped"], out=out, **CASE)


@pytest.mark.parametrize("label", ["cvi", "cvi:int8", "cvi:tpu", "cvi:tapped"])
def test_a_healthy_build_is_at_parity(ran, label):
    found = ran[label]
    assert found.verdict == "parity", found.first
    assert found.counts.get("missing", 0) == 0
    assert {"layer0.q", "layer3.residual", "logits"} <= {r.tap for r in found.rows() if r.ratio is not None}


def test_the_tapped_build_and_the_interpreter_show_every_tap_that_the_chip_hides(ran):
    def seen(label: str) -> set[str]:
        return {row.tap for row in ran[label].rows() if row.metrics is not None}

    everything = {row.tap for row in ran["cvi"].rows()} - {"rope", "ids"}
    assert seen("cvi") < seen("cvi:tpu") | {"embed"}
    assert everything - seen("cvi:tapped") <= {"rope", "ids"}


def test_what_int8_does_is_told_apart_from_what_the_chip_does_besides_and_is_kept(ran):
    found = ran["cvi:int8"]
    told = {row.tap: row for row in found.rows() if row.quantization is not None}
    assert {"layer0.q", "layer3.residual", "logits"} <= told.keys()
    assert all(row.implementation is not None for row in told.values())
    assert 0.001 < told["logits"].quantization < 0.3
    assert told["logits"].implementation < 2 * told["logits"].quantization
    assert all(row.quantization is None for row in ran["cvi"].rows())
    again = parity.judge(ran.files["trace"], cand="cvi:int8")["cvi:int8"]
    parts = [(row.tap, row.step, row.quantization, row.implementation) for row in found.rows()]
    assert parts == [(row.tap, row.step, row.quantization, row.implementation) for row in again.rows()]
    assert [row.ratio for row in again.rows()] == [row.ratio for row in found.rows()]


def test_effective_formats_and_versions_are_fields_of_the_run(ran):
    details = ran["cvi"].candidate.provenance["details"]
    assert details["chip"] == "cv181x"
    assert details["toolchain"].startswith("1.")
    assert details["effective_formats"].get("bf16", 0) > 10
    assert ran["cvi:int8"].candidate.provenance["details"]["effective_formats"].get("int8", 0) > 10


def test_numbers_keep_the_format_that_the_chip_computes_in(ran):
    run = Trace(ran.files["trace"])["cvi"]
    formats = {record.dtype for tap in run.taps for record in run.records(tap)}
    assert "bfloat16" in formats


def test_segments_are_run_alone_at_some_steps(ran):
    local = {row.step for row in ran["cvi"].rows() if row.local is not None}
    assert local == {1, 2, 3}


@pytest.fixture(scope="module")
def folder(ran, toolchain, tmp_path_factory) -> Path:
    """The artefacts of the run in a folder, as a makefile leaves them: nothing but the segments."""
    out = tmp_path_factory.mktemp("artefacts")
    digests = ran["cvi"].candidate.provenance["details"]["artefacts"]
    from parity.harness.folders import cache_folder
    from parity.targets.sophgo.beside import sha256

    for path in (cache_folder() / "work" / "cache" / "sophgo" / "artefacts").rglob("*.cvimodel"):
        if digests.get(path.stem) == sha256(path):
            shutil.copy(path, out / path.name)
    assert len(list(out.iterdir())) == len(digests)
    return out


def test_files_compiled_elsewhere_run(folder, tmp_path):
    found = parity.run(cand=f"files=cvi:{folder}", out=tmp_path / "out", **CASE)["files"]
    assert found.verdict == "parity"
    assert found.candidate.provenance["dtype"] == "bfloat16"


def test_files_of_other_weights_are_a_divergence(folder, tmp_path):
    case = {**CASE, "weights": "random:1"}
    found = parity.run(cand=f"files=cvi:{folder}", out=tmp_path / "out", **case)["files"]
    assert found.verdict == "divergence"
    assert found.first is not None
    assert found.first.tap == "layer0.residual"


def test_files_for_another_chip_are_told_apart(folder, tmp_path):
    found = parity.run(cand=f"files=cvi:{folder}+cv180x", out=tmp_path / "out", **CASE)["files"]
    assert found.verdict == "failed"
    assert "181x and cannot run on cv180x" in found.failure


def test_files_of_another_window_are_refused(folder, tmp_path):
    with pytest.raises(parity.harness.errors.UserError, match="rows for --cache"):
        parity.run(cand=f"files=cvi:{folder}", out=tmp_path / "out", **{**CASE, "scenario": "wrap"})


def test_a_folder_that_lacks_a_segment_is_refused(folder, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    (some / "seg_1.cvimodel").unlink()
    with pytest.raises(parity.harness.errors.UserError, match=r"lacks seg_1.cvimodel"):
        parity.run(cand=f"files=cvi:{some}", out=tmp_path / "out", **CASE)


def test_bm1684x_runs_two_steps_unless_told_otherwise(toolchain, tmp_path):
    result = parity.run(cand="bm1684x", weights="random:0", cache="window(8)", out=tmp_path / "out")
    found = result["bm1684x"]
    assert found.verdict == "parity", found.first
    assert max(row.step for row in found.rows()) == 2
    assert found.candidate.provenance["details"]["effective_formats"].get("f16", 0) > 10


class Said(Silent):
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_what_compiling_takes_is_said_before_it_begins_and_refused_where_the_disk_is_full(
    toolchain, tmp_path, monkeypatch
):
    case = CASE | {"weights": f"random:{time.time_ns() % 1_000_000_000}", "steps": 1}  # never compiled before
    room = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1 << 20))
    with monkeypatch.context() as full:
        full.setattr("parity.targets.sophgo.compile.estimate.shutil", room)
        with pytest.raises(UserError, match=r"compiling takes \d+ MB of disk and 1 are free; make room"):
            parity.run(cand="cvi", out=tmp_path / "full", **case)
    said = Said()
    parity.run(cand="cvi", out=tmp_path / "out", progress=said, **case)
    assert any(
        re.match(r"\d to compile: about .* of memory each, \d+ MB of disk", line) for line in said.lines
    )
    again = Said()
    parity.run(cand="cvi", out=tmp_path / "again", progress=again, **case)
    assert not any("to compile" in line for line in again.lines)
