"""Every command does its work on a small case, and scripts can read what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
from parity.cli import main

CASE = ("--weights", "random:0", "--scenario", "one")
RunJson = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for the module: what one command writes the next one reads."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture
def run(capsys, monkeypatch, folder) -> Callable[..., tuple[int, str]]:
    """`run("trace", "ls", file)`: exit status and standard output."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PARITY_CACHE", str(folder / "cache"))

    def call(*args: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert "internal error" not in said.err, said.err
        return int(stopped.value.code or 0), said.out

    return call


@pytest.fixture
def run_json(run) -> RunJson:
    """The parsed JSON of a command that ends well."""

    def call(*args: object) -> Any:
        status, out = run(*args, "--json")
        assert status == 0, out
        return json.loads(out)

    return call


@pytest.fixture(scope="module")
def trace(folder) -> Path:
    """A reference and a candidate on its tokens, in one file."""
    path = folder / "trace.h5"
    parity.record("torch", out=path, weights="random:0", scenario="one", steps=2)
    parity.record("segmented", out=path, ref=f"{path}:torch")
    return path


def test_a_recorded_candidate_is_forced_and_isolated(trace):
    found = parity.Trace(trace)
    assert [run.name for run in found.runs] == ["torch", "segmented", "segmented@isolated"]
    assert found["segmented"].provenance["replay"] == "forced"
    assert np.array_equal(found["torch"]["ids", 2], found["segmented"]["ids", 2])


def test_record_prints_the_name_of_the_run(run_json):
    done = run_json("record", "exact=torch:fp64", *CASE, "--steps", "1", "--out", "exact.h5")
    assert done == {"run": "exact", "trace": "exact.h5"}
    assert parity.Trace("exact.h5")["exact"].provenance["dtype"] == "float64"


def test_a_name_that_is_recorded_twice_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["parity", "record", *CASE, "--steps", "1", "--out", "twice.h5"])
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            main()
        said.append(capsys.readouterr().err)
    assert "exists already" not in said[0]
    assert "run 'torch' exists already in twice.h5" in said[1]
    assert "torch#2" in said[1]


def test_two_stored_runs_are_compared_and_reported(run, trace, folder):
    status, out = run("compare", f"{trace}:torch", f"{trace}:segmented", "--tol", "fp32", "--out", "report")
    assert status == 0, out
    assert "PARITY" in out
    assert "<html" in (folder / "report" / "report.html").read_text(encoding="utf-8").lower()


def test_a_stored_result_is_rendered_again(run, run_json, trace, folder):
    found = run_json("compare", f"{trace}:torch", f"{trace}:segmented", "--tol", "fp32", "--out", "again")
    assert found["exit_code"] == 0
    status, out = run("report", "again", "--html", "page.html", "--json", "copy.json")
    assert status == 0
    assert "PARITY" in out
    assert (folder / "page.html").stat().st_size > 1000
    copy = json.loads((folder / "copy.json").read_text(encoding="utf-8"))
    assert copy["comparisons"] == found["comparisons"]


def test_comparing_stored_runs_loads_no_torch(trace):
    code = (
        "import sys\nfrom parity.cli import _run\n"
        f"status = _run(['compare', {f'{trace}:torch'!r}, {f'{trace}:segmented'!r}, '--tol', 'fp32'])\n"
        "assert status == 0, status\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_trace_is_listed(run, run_json, trace):
    runs = run_json("trace", "ls", trace)
    assert [line["name"] for line in runs] == ["torch", "segmented", "segmented@isolated"]
    assert all(line["complete"] for line in runs)
    taps = run_json("trace", "ls", f"{trace}:torch")
    assert [line["tap"] for line in taps][:2] == ["ids", "embed"]
    assert "torch" in run("trace", "ls", trace)[1]
    assert "layer0.q" in run("trace", "ls", f"{trace}:torch")[1]


def test_values_of_a_trace_are_shown(run, run_json, trace):
    (found,) = run_json("trace", "show", f"{trace}:torch", "logits", "--step", "1")
    logits = parity.Trace(trace)["torch"]["logits", 1]
    assert found["max"] == pytest.approx(float(logits.max()))
    assert found["nonfinite"] == 0
    part = run_json("trace", "show", f"{trace}:torch", "logits", "--step", "1", "--slice", "0,0,:3")
    assert part == pytest.approx(logits[0, 0, :3].tolist())
    assert "step 1" in run("trace", "show", f"{trace}:torch", "logits")[1]


def test_runs_are_diffed_by_their_taps(run, run_json, trace):
    assert run_json("trace", "diff", f"{trace}:torch", f"{trace}:torch") == []
    status, out = run("trace", "diff", f"{trace}:torch", f"{trace}:segmented@isolated", "--json")
    assert status == 1
    assert {"tap": "ids", "what": "tap", "second": "absent"}.items() <= json.loads(out)[0].items()


def test_taps_are_renamed_into_a_new_file(run, trace):
    status, _ = run("trace", "rename", trace, "renamed.h5", "logits=out", "embed=in")
    assert status == 0
    renamed = parity.Trace("renamed.h5")["torch"]
    assert "out" in renamed.taps
    assert "logits" not in renamed.taps
    assert np.array_equal(renamed["out", 1], parity.Trace(trace)["torch"]["logits", 1])


def test_a_run_is_exported_as_arrays(run, trace):
    assert run("trace", "export", f"{trace}:torch", "logits.npz", "--taps", "log*")[0] == 0
    with np.load("logits.npz") as arrays:
        assert np.array_equal(arrays["logits/step1"], parity.Trace(trace)["torch"]["logits", 1])


def test_a_sound_trace_is_left_alone_by_repair(run, trace):
    status, out = run("trace", "repair", trace)
    assert status == 0
    assert "0 of them damaged" in out


def test_the_lists_name_what_there_is(run, run_json):
    targets = {item["name"]: item["missing"] for item in run_json("targets")}
    base, chips = {"torch", "segmented", "onnx", "prefilled", "module", "dump"}, {"cvi", "bm1684x"}
    assert base | chips <= targets.keys()
    assert all(targets[name] is None for name in base)
    assert all("parity toolchain install" in targets[name] for name in chips)
    models = {item["name"]: item for item in run_json("models")}
    assert round(models["klm"]["parameters"] / 1e6, 1) == 23.1
    assert models["klm-tiny"]["segments"][0] == "seg_head"
    assert {"default", "wrap", "short"} <= run_json("scenarios").keys()
    assert run_json("scenarios", "wrap")["policy"] == "window(16)"
    for args in (["targets"], ["models"], ["scenarios"], ["scenarios", "batch3"]):
        status, out = run(*args)
        assert status == 0
        assert out.strip()


def test_a_cache_is_prefilled_into_files_that_a_run_starts_from(run, run_json, folder):
    (folder / "prompt.txt").write_text("The return", encoding="utf-8")
    case = ("--weights", "random:0", "--cache", "full")
    written = run_json("prefill", *case, "--prompt-file", "prompt.txt", "--out", "prefilled")
    names = {Path(path).name for path in written}
    assert {f"{name}.{end}" for name in ("past_k", "past_v", "rope") for end in ("npy", "pt")} <= names
    assert np.load("prefilled/past_k.npy").shape[3] == len("The return")
    args = ("--cand", "prefilled:prefilled", "--steps", "3", "--tol", "fp32", "--out", "from-files")
    status, out = run("run", *case, "--prompt", "The return", *args)
    assert status == 0, out


def test_segments_are_exported_under_the_originals_names(run_json):
    written = run_json("export", "--weights", "random:0", "--segments", "seg_tail", "--out", "segmented")
    assert {"seg_tail.onnx", "rope.npz"} <= {Path(path).name for path in written}


def test_the_doctor_finds_what_runs_need(run, run_json):
    found = run_json("doctor")
    assert found["problems"] == []
    versions = {item["name"]: item["version"] for item in found["packages"]}
    assert versions["numpy"] == np.__version__
    assert set(found["arithmetic"]) == {"numpy", "torch"}
    assert all("subnormals" in state for state in found["arithmetic"].values())
    assert "target onnx" in run("doctor")[1]


def test_the_doctor_says_what_is_broken(run, monkeypatch):
    monkeypatch.setattr("parity.doctor.REQUIRED", {"no-such-library": "everything"})
    status, out = run("doctor")
    assert status == 2
    assert "PROBLEM  no-such-library: is not installed (everything)" in out


def test_flags_of_the_processor_that_change_arithmetic_are_found(monkeypatch):
    from parity import doctor

    lines = {"flags": "fpu fma avx512_vnni amx_int8"}
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: lines)
    assert list(doctor.cpu_flags() or {}) == ["fma", "avx512_vnni", "amx_int8"]
    monkeypatch.setattr(doctor, "_cpuinfo", dict)
    assert doctor.cpu_flags() is None
