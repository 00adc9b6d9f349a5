"""Every chip in every mode that the table gives it, compiled for real, its formats and names read back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Silent
from parity.targets.sophgo.compile import CHIPS, MODES, CompileJob, Interpreter, calibrate, compile_model
from parity.targets.sophgo.compile.tables import read_calibration, write_calibration, write_qtable
from parity.targets.sophgo.runner.client import Device

CLAIMED = [(chip.name, mode) for chip in CHIPS.values() for mode in chip.modes]


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")
TAPS = {"mid": "layer0.mid", "y": "layer0.y", "h": "layer0.h"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One for the module: the graph is converted once."""
    return Path(tmp_path_factory.mktemp("cache"))


def samples(count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 1, 64)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def table(toolchain, cache) -> Path:
    return calibrate("block", graphs.block(), samples(), toolchain, cache)


def job(chip: str, mode: str, table: Path, **changes: Any) -> CompileJob:
    calibration = table if MODES[mode].calibrated else None
    return CompileJob("block", graphs.block(), chip, mode, calibration=calibration, taps=TAPS, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "mode"), CLAIMED, ids=["-".join(pair) for pair in CLAIMED])
def test_every_mode_that_a_chip_is_given_compiles_into_that_format(toolchain, cache, table, chip, mode):
    made = compile_model(job(chip, mode, table), toolchain, cache, Silent())
    wanted = MODES[mode].format
    assert made.file.suffix == CHIPS[chip].suffix
    assert made.manifest["formats"][wanted] >= 3
    kept = {item["format"] for item in made.manifest["kept"]}
    assert kept <= ({"f32"} if not MODES[mode].calibrated else {"f32", "f16", "bf16"})
    assert [end["tap"] for end in made.manifest["outputs"]] == ["layer0.mid", "layer0.y"]


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_every_chip_computes_the_block_on_its_simulator(toolchain, cache, table, chip, tmp_path):
    mode = "bf16" if "bf16" in CHIPS[chip].modes else "f32"
    made = compile_model(job(chip, mode, table), toolchain, cache, Silent())
    (sample,) = samples(1, seed=1)
    expected = onnxruntime.InferenceSession(graphs.block()).run(None, sample)
    with Device(chip, {"block": made.file}, toolchain, log=tmp_path / "log") as device:
        for actual, exact in zip(device.call("block", sample), expected, strict=True):
            np.testing.assert_allclose(actual.real.reshape(exact.shape), exact, atol=0.05)


def test_outputs_are_by_position_and_inner_values_present_or_fused(toolchain, cache, table):
    manifest = compile_model(job("cv181x", "bf16", table), toolchain, cache, Silent()).manifest
    assert [end["onnx"] for end in manifest["outputs"]] == ["mid", "y"]
    values = {entry["onnx"]: entry for entry in manifest["values"]}
    assert values["x"]["final"] == "x"
    assert values["s"]["status"] == "fused"  # the sigmoid inside of SiLU
    assert values["h"] | {"tap": "layer0.h", "status": "fused"} == values["h"]  # under its bias
    assert values["act"] | {"top": "act_Mul", "tpu": "act_Mul", "final": "act_Mul"} == values["act"]
    present = [entry for entry in manifest["tensors"] if entry["status"] == "present"]
    assert {"x", "mid", "y"} <= {entry["onnx"] for entry in present}
    fused = {entry["onnx"] for entry in manifest["tensors"] if entry["status"] == "fused"}
    assert {"s", "h"} <= fused


def test_a_second_compilation_comes_from_the_cache(toolchain, cache, table, monkeypatch):
    first = compile_model(job("cv181x", "bf16", table), toolchain, cache, Silent())
    monkeypatch.setattr("parity.targets.sophgo.compile.process.run", None)
    assert compile_model(job("cv181x", "bf16", table), toolchain, cache, Silent()) == first


def test_the_float_interpreter_agrees_with_onnx_runtime_to_120_db(toolchain, cache, table, tmp_path):
    made = compile_model(job("cv181x", "bf16", table), toolchain, cache, Silent())
    (sample,) = samples(1, seed=2)
    exact = onnxruntime.InferenceSession(graphs.block()).run(None, sample)
    with Interpreter(toolchain, made.top, tmp_path) as top, Interpreter(toolchain, made.tpu, tmp_path) as tpu:
        assert top.inputs == {"x": (1, 1, 64)}
        ours, lowered = top.call(sample), tpu.call(sample)
    for end, value in zip(made.manifest["outputs"], exact, strict=True):
        top_name = next(v["top"] for v in made.manifest["values"] if v["onnx"] == end["onnx"])
        assert decibels(ours[top_name], value) > 120
        assert 25 < decibels(lowered[end["mlir"]], value) < 70


def decibels(actual: np.ndarray, exact: np.ndarray) -> float:
    error = actual.reshape(exact.shape).astype(np.float64) - exact
    return float(10 * np.log10((exact**2).sum() / (error**2).sum()))


def test_an_interpreter_is_fed_its_own_inputs_or_refuses(toolchain, cache, table, tmp_path):
    made = compile_model(job("cv181x", "bf16", table), toolchain, cache, Silent())
    with Interpreter(toolchain, made.top, tmp_path) as interpreter:
        with pytest.raises(CandidateError, match="is fed z, should be x"):
            interpreter.call({"z": np.zeros((1, 1, 64), np.float32)})
        with pytest.raises(CandidateError, match=r"input x \(1, 64\), should be \(1, 1, 64\)"):
            interpreter.call({"x": np.zeros((1, 64), np.float32)})


def test_an_interpreter_that_dies_says_where_its_words_are(toolchain, tmp_path):
    (tmp_path / "broken.mlir").write_text("module {}")
    with pytest.raises(CandidateError, match=r"broken\.mlir: the interpreter ended .*interpreter\.log"):
        Interpreter(toolchain, tmp_path / "broken.mlir", tmp_path)


def test_int8_reports_what_the_chip_cannot_do_in_int8(toolchain, cache, table):
    manifest = compile_model(job("cv181x", "int8", table), toolchain, cache, Silent()).manifest
    assert {item["kind"] for item in manifest["kept"]} == {"tpu.LayerNorm", "tpu.Softmax"}
    scaled = [entry for entry in manifest["tensors"] if entry["format"] == "int8"]
    assert scaled
    assert all(entry["scale"] > 0 for entry in scaled)


def test_int8_is_right_on_the_simulator_within_its_steps(toolchain, cache, table, tmp_path):
    made = compile_model(job("cv181x", "int8", table), toolchain, cache, Silent())
    (sample,) = samples(1)
    (exact, _) = onnxruntime.InferenceSession(graphs.block()).run(None, sample)
    with Device("cv181x", {"block": made.file}, toolchain, log=tmp_path / "log") as device:
        assert decibels(device.call("block", sample)[0].real, exact) > 25


@pytest.mark.parametrize("calibrator", ["stock", "stock-max"])
def test_the_stock_calibrator_gives_a_table_of_the_same_tensors(toolchain, cache, table, calibrator):
    other = calibrate("block", graphs.block(), samples(), toolchain, cache, calibrator=calibrator)
    ours, theirs = read_calibration(table), read_calibration(other)
    assert theirs.facts["calibrator"] == calibrator
    assert theirs.thresholds.keys() >= ours.thresholds.keys()
    assert theirs.thresholds["x"].high == pytest.approx(ours.thresholds["x"].high, rel=1e-4)
    made = compile_model(job("cv181x", "int8", other), toolchain, cache, Silent())
    assert made.manifest["calibration"]["calibrator"] == calibrator


def test_a_calibrator_or_samples_that_do_not_fit_are_refused(toolchain, cache):
    with pytest.raises(UserError, match="calibrator='kl': unknown"):
        calibrate("block", graphs.block(), samples(), toolchain, cache, calibrator="kl")
    with pytest.raises(UserError, match=r"number 0 has .* block takes"):
        calibrate("block", graphs.block(), [{"z": np.zeros(4)}], toolchain, cache)
    with pytest.raises(UserError, match="there are no samples"):
        calibrate("block", graphs.block(), [], toolchain, cache)


def test_a_table_of_another_model_is_refused(toolchain, cache):
    other = calibrate("other", graphs.gqa_grouped(), [grouped_sample()], toolchain, cache)
    with pytest.raises(UserError, match=r"was made for other \("):
        compile_model(job("cv181x", "int8", other), toolchain, cache, Silent())


def grouped_sample() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"q": (1, 8, 1, 32), "ks": (1, 2, 16, 32), "vs": (1, 2, 16, 32)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_table_whose_names_do_not_match_is_an_error_with_the_list(toolchain, cache, table, tmp_path):
    """The compiler itself takes it and leaves those operators in float, without a word."""
    lacking = read_calibration(table)
    thresholds = {name: row for name, row in lacking.thresholds.items() if name != "up_Add"}
    write_calibration(
        tmp_path / "t.txt", type(lacking)({**thresholds, "upp_Add": thresholds["x"]}, lacking.facts)
    )
    with pytest.raises(UserError, match=r"no threshold for 1 of .* would silently stay float: up_Add;"):
        compile_model(job("cv181x", "int8", tmp_path / "t.txt"), toolchain, cache, Silent())


def test_an_operator_that_a_qtable_keeps_is_kept_and_said(toolchain, cache, table, tmp_path):
    write_qtable(tmp_path / "q.txt", {"down_Add": "BF16"})
    made = compile_model(job("cv181x", "int8", table, qtable=tmp_path / "q.txt"), toolchain, cache, Silent())
    kept = {item["tensor"]: item for item in made.manifest["kept"]}
    assert kept["down_Add"] | {"format": "bf16", "why": "asked for by the qtable"} == kept["down_Add"]
    assert made.manifest["qtable"] == {"down_Add": "BF16"}
    write_qtable(tmp_path / "q.txt", {"nothing_Add": "BF16"})
    with pytest.raises(UserError, match="the graph has no operator nothing_Add"):
        compile_model(job("cv181x", "int8", table, qtable=tmp_path / "q.txt"), toolchain, cache, Silent())


def test_a_group_size_that_divides_nothing_leaves_weights_wide_and_is_an_error(toolchain, cache, table):
    with pytest.raises(CandidateError, match=r"block: mode=w4f16: .* left the weights of .* in f16"):
        compile_model(job("bm1684x", "w4f16", table, group_size=256), toolchain, cache, Silent())


def test_a_mode_that_would_be_replaced_is_refused_before_anything_runs(toolchain, tmp_path):
    with pytest.raises(UserError, match="cv181x has no f16"):
        compile_model(CompileJob("b", graphs.block(), "cv181x", "f16"), toolchain, tmp_path / "c", Silent())
    assert not (tmp_path / "c").exists()


def test_what_the_compiler_makes_of_f16_on_cv181x_is_seen_in_its_types(toolchain, cache, table, monkeypatch):
    """If the table of modes were wrong, reading back would still catch it."""
    from dataclasses import replace

    from parity.targets.sophgo.compile import chips

    row = CHIPS["cv181x"]
    monkeypatch.setitem(chips.CHIPS, "cv181x", replace(row, modes=(*row.modes, "f16")))
    with pytest.raises(CandidateError, match=r"computes .* on cv181x in bf16 instead of f16"):
        compile_model(job("cv181x", "f16", table), toolchain, cache, Silent())
