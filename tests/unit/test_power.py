"""What the tolerances of a finished run would have caught: planted, compared and judged, not estimated."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.harness.errors import UserError
from parity.powering import weakest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a module whose port rounds its activations to bfloat16."""
    folder = tmp_path_factory.mktemp("power")
    (folder / "own_power.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); torch.manual_seed(0)\n"
        "        self.a = torch.nn.Linear(32, 32); self.b = torch.nn.Linear(32, 8)\n"
        "    def forward(self, x): return self.b(torch.relu(self.a(x)))\n"
        "def build(): return Net()\n"
    )
    np.savez(folder / "in.npz", x=np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PARITY_CACHE", str(folder / "cache"))
        case = {"model": "own_power:build", "inputs": str(folder / "in.npz")}
        for name, tol in (("auto", "auto"), ("fp32", "fp32")):
            parity.run(cand=["module:own_power:build"], out=folder / name, tol=tol, **case)
    return folder


def one(result):
    (powers,) = result.values()
    return {power.tap: power for power in powers}


def test_the_smallest_caught_error_lies_just_above_the_noise(run):
    for power in one(parity.power(run / "auto")).values():
        assert power.floor is not None
        assert 1e-8 < power.caught["scale"] < 1e-4
        assert not power.undetectable


def test_a_size_that_is_said_to_be_caught_is_caught_and_half_of_it_is_not(run):
    """Against the acceptance formula itself: atol = rtol = 1e-4 on every value."""
    power = one(parity.power(run / "fp32"))["module:a"]
    values = parity.Trace(run / "fp32/trace.h5")["torch"]["module:a", 0].astype(np.float64)

    def fails(size):
        planted = (values * (1.0 + size)).astype(np.float32)
        return bool((np.abs(planted - values) > 1e-4 + 1e-4 * np.abs(values)).any())

    assert fails(power.caught["scale"])
    assert not fails(power.caught["scale"] / 2)


def test_other_tolerances_have_another_power(run):
    tight, loose = one(parity.power(run / "auto")), one(parity.power(run / "auto", tol="bf16"))
    assert loose["output"].caught["scale"] > 100 * tight["output"].caught["scale"]
    assert weakest(tuple(loose.values())).caught["scale"] >= loose["output"].caught["scale"]


def test_an_error_in_one_row_must_be_no_smaller_than_one_in_all(run):
    for power in one(parity.power(run / "auto")).values():
        assert power.caught["row"] >= power.caught["scale"] / 2


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no report\.json"):
        parity.power(tmp_path)


def test_a_trace_or_an_array_for_a_result_is_told_what_is_expected(run, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros(3))
    for path in (run / "auto" / "trace.h5", tmp_path / "in.npz"):
        with pytest.raises(UserError, match="is no result; give the folder of a finished run"):
            parity.power(path)


def test_a_result_whose_trace_is_gone_says_which(run, tmp_path):
    shutil.copy(run / "auto/report.json", tmp_path)
    text = (tmp_path / "report.json").read_text().replace(str(run / "auto"), "/nowhere")
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"trace='/nowhere/trace\.h5': is gone"):
        parity.power(tmp_path)


def test_a_folder_that_moved_is_still_read(run, tmp_path):
    shutil.copytree(run / "fp32", tmp_path / "moved")
    text = (tmp_path / "moved/report.json").read_text().replace(str(run / "fp32"), "/nowhere")
    (tmp_path / "moved/report.json").write_text(text)
    assert one(parity.power(tmp_path / "moved"))


def test_the_command_prints_a_table_or_json(run):
    done = CliRunner().invoke(cli, ["power", str(run / "auto"), "--taps", "module:*"])
    assert done.exit_code == 0, done.output
    assert "module:a" in done.stdout
    assert "output" not in done.stdout.split("floor")[2].split("an error")[0]
    data = json.loads(CliRunner().invoke(cli, ["power", str(run / "auto"), "--json"]).stdout)
    (taps,) = data.values()
    assert {"tap", "step", "caught", "floor", "undetectable", "reason"} == set(taps[0])


def test_a_glob_without_a_tap_and_a_label_without_a_candidate_are_refused(run, monkeypatch):
    done = CliRunner().invoke(cli, ["power", str(run / "auto"), "--taps", "nothing*"])
    assert done.exit_code != 0
    monkeypatch.setattr("parity.powering.compare_runs", None)  # before anything is planted
    with pytest.raises(UserError, match=r"taps='nothing\*': matches no tap"):
        parity.power(run / "auto", taps="nothing*")
    with pytest.raises(UserError, match="cand='onnx'"):
        parity.power(run / "auto", cand="onnx")
