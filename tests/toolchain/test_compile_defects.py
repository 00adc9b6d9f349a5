"""What the linter says goes wrong does go wrong in the real compiler, and what it is silent about works."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Silent
from parity.targets.sophgo.compile import CompileJob, Interpreter, calibrate, compile_model, lint
from parity.targets.sophgo.compile.opset import load
from parity.targets.sophgo.compile.tables import write_qtable
from parity.targets.sophgo.runner.client import Device


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")


class Said(Silent):
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return Path(tmp_path_factory.mktemp("cache"))


def sample(graph: bytes, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {}
    for value in onnxruntime.InferenceSession(graph).get_inputs():
        floats = random.standard_normal(value.shape).astype(np.float32)
        made[value.name] = floats if "float" in value.type else random.integers(0, 8, value.shape)
    return made


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """0 where one of them is nothing but zeros."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one.ravel(), other.ravel())) / (norms or 1.0)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            "rms_rsqrt",
            r"at RMSNorm layer0\.out \(y_Mul\): to be implemented, CV18xx/RMSNorm\.cpp:\d+; write x / sqrt",
        ),
        (
            "where_mask",
            r"at CompareConst hidden_Less: Not support now, CV18xx/CompareConst\.cpp:\d+; add a float mask",
        ),
        ("wide_gather", r"at Gather rows_Gather: Not support now, CV18xx/Gather\.cpp:\d+; pick on the host"),
        (
            "scatter",
            r"at ScatterElements written_ScatterElements: unimplemented .*; keep the cache outside",
        ),
        ("sine", r"at Sin sin_Sin: unimplemented tpu dialect.*; compute it on the host"),
    ],
)
def test_what_cv181x_aborts_on_is_one_sentence_with_the_operator_the_reason_and_the_rewrite(
    toolchain, cache, form, said
):
    progress = Said()
    job = CompileJob(form, getattr(graphs, form)(), "cv181x", "bf16", taps={"y": "layer0.out"})
    with pytest.raises(CandidateError, match=said) as failed:
        compile_model(job, toolchain, cache, progress)
    assert any(line.startswith(f"{form}: abort: ") for line in progress.lines), "not said before"
    text = str(failed.value)
    assert "\n" not in text
    assert Path(text.rpartition("the whole log: ")[2]).is_file()


#: Graph, chip, mode, what the sentence says.
ABORTS = {
    "gelu-of-dynamo": (graphs.gelu("dynamo"), "cv181x", "bf16", "at Erf .*; write GELU as x "),
    "gelu-scaled": (graphs.gelu("scaled"), "bm1684", "f32", "Erf.*; write GELU as x "),
    "identity": (graphs.bare_output("identity"), "cv181x", "bf16", "the output is the input x as it comes"),
    "cast": (graphs.bare_output("cast"), "bm1684x", "f16", "the output is the input x as it comes in"),
    "joined": (graphs.bare_output("joined"), "bm1684x", "f16", "the output is the input x as it comes in"),
    "input": (graphs.bare_output("input"), "bm1684x", "f16", "output x: is an input or a constant itself"),
    "constant": (graphs.bare_output("constant"), "cv181x", "bf16", "the output is a constant, which"),
    "weight": (graphs.bare_output("weight"), "bm1684x", "f16", "output z: is an input or a constant itself"),
    "branch": (graphs.branch(fixed=False), "cv181x", "bf16", "; .*export a graph per branch"),
    "loop": (graphs.loop(), "bm1684x", "f16", "; .*call the graph once per turn"),
    "ceil": (graphs.alone("Ceil"), "cv181x", "bf16", "compute it on the host"),
    "sinh": (graphs.alone("Sinh"), "cv181x", "bf16", "compute it on the host"),
    "cosh": (graphs.alone("Cosh"), "bm1684", "f32", "compute it on the host"),
    "acos": (graphs.alone("Acos"), "cv181x", "bf16", "compute it on the host"),
    "l1": (graphs.alone("ReduceL1", axes=[-1]), "cv181x", "bf16", "compute it on the host"),
    "picked": (graphs.picked(), "cv181x", "bf16", "hand out what it picks from"),
}


@pytest.mark.parametrize("form", ABORTS)
def test_what_is_found_to_abort_does_and_the_sentence_says_what_to_write(toolchain, cache, form):
    graph, chip, mode, said = ABORTS[form]
    assert {finding.severity for finding in lint(graph, chip, mode)} == {"abort"}
    with pytest.raises(CandidateError, match=said):
        compile_model(CompileJob("form", graph, chip, mode), toolchain, cache, Silent())


@pytest.mark.parametrize("form", ["rms_rsqrt", "where_mask", "wide_gather", "scatter", "sine"])
def test_the_same_forms_work_on_bm1684x(toolchain, cache, form):
    assert compile_model(
        CompileJob(form, getattr(graphs, form)(), "bm1684x", "f16"), toolchain, cache, Silent()
    )


def test_an_operator_that_the_converter_has_not_is_one_sentence(toolchain, cache):
    job = CompileJob("nan", graphs.unknown_op(), "cv181x", "bf16", taps={"nan": "layer0.check"})
    with pytest.raises(
        CandidateError, match=r"no operator IsNaN \(at layer0\.check \(nan\)\); the whole log"
    ):
        compile_model(job, toolchain, cache, Silent())


def test_open_sizes_are_one_sentence(toolchain, cache):
    model = load(graphs.block())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    with pytest.raises(UserError, match="the graph has open sizes; export it with fixed shapes"):
        compile_model(
            CompileJob("o", model.SerializeToString(), "cv181x", "bf16"), toolchain, cache, Silent()
        )


def test_a_failure_deep_in_a_backend_is_one_sentence(toolchain, cache, monkeypatch):
    """The table leaves f32 on BM1684X2 out, because this is what happens."""
    from dataclasses import replace

    from parity.targets.sophgo.compile import chips

    row = chips.CHIPS["bm1684x2"]
    monkeypatch.setitem(chips.CHIPS, "bm1684x2", replace(row, modes=(*row.modes, "f32")))
    job = CompileJob("g", graphs.gqa_grouped(), "bm1684x2", "f32")
    with pytest.raises(
        CandidateError, match=r"g \(bm1684x2, f32\): the compiler failed in codegen"
    ) as failed:
        compile_model(job, toolchain, cache, Silent())
    assert "0x" not in str(failed.value)
    assert "does not hold" in str(failed.value)


#: Graph, chip, mode, whether the interpreter of the lowered graph is right where the simulator is not.
WRONG = {
    "repeat": (graphs.gqa_expand(rows=512, width=64), "cv181x", "bf16", True),
    "tile": (graphs.tiled((2, 1, 512, 64), (1, 4, 1, 1)), "cv183x", "bf16", True),
    "relu-on-halves": (graphs.mlp(end="relu"), "bm1684x", "f16", True),
    "relu-on-halves-1688": (graphs.mlp(end="relu"), "bm1688", "bf16", True),
    "residual-twice": (graphs.mlp(), "bm1684x", "bf16", True),
    "elu": (graphs.alone("Elu"), "cv181x", "bf16", False),
    "elu-bm": (graphs.alone("Elu"), "bm1684x", "f16", False),
    "floor": (graphs.alone("Floor"), "cv181x", "bf16", True),
    "prelu": (graphs.prelu(), "bm1684x", "f16", True),
    "lost-relu": (graphs.mlp("", end="both"), "cv181x", "bf16", False),
    "lost-relu-bm": (graphs.mlp("", end="both"), "bm1684x", "f32", False),
}
RIGHT = {
    "repeat": (graphs.gqa_expand(rows=511, width=64), "cv181x", "bf16"),
    "gelu": (graphs.gelu("known"), "cv181x", "bf16"),
    "gelu-halved": (graphs.gelu("halved"), "bm1684", "f32"),
    "gelu-dynamo-bm": (graphs.gelu("dynamo"), "bm1684x", "f16"),
    "output-of-a-sum": (graphs.bare_output("sum"), "cv181x", "bf16"),
    "output-reshaped": (graphs.bare_output("reshape"), "bm1684x", "f16"),
    "output-twice": (graphs.bare_output("twice"), "cv181x", "bf16"),
    "decided-branch": (graphs.branch(fixed=True), "cv181x", "bf16"),
    "elu": (graphs.alone("Elu", alpha=1.0), "cv181x", "bf16"),
    "hard-sigmoid": (graphs.alone("HardSigmoid", alpha=0.2), "bm1684x", "f16"),
    "tile": (graphs.tiled((1, 2, 512, 64), (1, 4, 1, 1)), "cv181x", "bf16"),
    "grouped": (graphs.gqa_grouped(), "cv181x", "bf16"),
    "divided": (graphs.rms_divided(), "cv181x", "bf16"),
    "gather": (graphs.runtime_gather(), "cv181x", "bf16"),
    "embedding": (graphs.embedding(), "cv181x", "bf16"),
    "rope": (graphs.rope_on_axis_0(), "cv181x", "bf16"),
    "head": (graphs.head(), "cv181x", "bf16"),
    "mlp-with-bias": (graphs.mlp(biased=True), "bm1684x", "f16"),
    "mlp-of-two-rows": (graphs.mlp(rows=2), "bm1684x", "f16"),
    "mlp-f32": (graphs.mlp(), "bm1684x", "f32"),
    "mlp-w8": (graphs.mlp(), "bm1684x", "w8f16"),
    "mlp-1688": (graphs.mlp(), "bm1688", "bf16"),
    "gelu-1688": (graphs.mlp("gelu", end="relu"), "bm1688", "bf16"),
    "relu-with-bias": (graphs.mlp("", end="both", biased=True), "cv181x", "bf16"),
}


def run(toolchain: Any, cache: Path, graph: bytes, chip: str, mode: str) -> tuple[float, float]:
    """Cosines to ONNX Runtime, of the simulator and of the interpreter."""
    made = compile_model(CompileJob("net", graph, chip, mode), toolchain, cache, Silent())
    feed = sample(graph)
    exact = onnxruntime.InferenceSession(graph).run(None, feed)[-1]
    with Interpreter(toolchain, made.tpu, cache / "log") as interpreter:
        interpreted = interpreter.call(feed)[made.manifest["outputs"][-1]["mlir"]]
    with Device(chip, {"net": made.file}, toolchain, log=cache / "log.txt") as device:
        return cosine(device.call("net", feed)[-1].real, exact), cosine(interpreted, exact)


@pytest.mark.slow
@pytest.mark.parametrize("form", WRONG)
def test_what_is_found_wrong_is_computed_wrongly(toolchain, cache, form):
    graph, chip, mode, lowered_right = WRONG[form]
    assert {finding.severity for finding in lint(graph, chip, mode)} == {"wrong"}
    simulated, interpreted = run(toolchain, cache, graph, chip, mode)
    assert simulated < 0.99
    assert (interpreted > 0.995) == lowered_right


@pytest.mark.slow
@pytest.mark.parametrize("form", RIGHT)
def test_what_is_passed_over_is_computed_rightly(toolchain, cache, form):
    graph, chip, mode = RIGHT[form]
    assert lint(graph, chip, mode) == []
    simulated, interpreted = run(toolchain, cache, graph, chip, mode)
    assert simulated > 0.999
    assert interpreted > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["cv186x", "bm1688"])
def test_attention_that_is_fused_gets_its_kernel_built_and_is_right(toolchain, cache, chip):
    lacking = [tool for tool in ("cmake", "make", "g++") if shutil.which(tool) is None]
    if lacking:
        pytest.skip(f"this machine has no {', '.join(lacking)}, with which the kernel is built")
    graph = graphs.attention()
    assert [finding.severity for finding in lint(graph, chip, "f16")] == ["note"]
    simulated, interpreted = run(toolchain, cache, graph, chip, "f16")
    assert simulated > 0.999
    assert interpreted > 0.999
    (made,) = (cache / "artefacts").glob(f"net-{chip}-f16-*/net_tpu.mlir")
    assert "tpu.FAttention" in made.read_text()


def test_without_a_compiler_for_its_kernel_fused_attention_fails_with_what_is_lacking(
    toolchain, cache, monkeypatch, tmp_path
):
    for tool in ("sh", "bash", "cp", "mkdir", "rm", "cat"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tmp_path))
    job = CompileJob("lone", graphs.attention(), "bm1688", "f16")
    with pytest.raises(
        CandidateError, match=r"a kernel could not be built .this machine has no cmake and no make"
    ):
        compile_model(job, toolchain, cache, Silent())


def test_the_head_that_aborts_at_load_in_int8_is_found_and_cured_by_the_qtable_that_is_told(
    toolchain, cache, tmp_path
):
    graph = graphs.head()
    (finding,) = lint(graph, "cv181x", "int8")
    assert finding.severity == "abort"
    samples = [sample(graph, seed) for seed in range(4)]
    table = calibrate("head", graph, samples, toolchain, cache)
    made = compile_model(
        CompileJob("head", graph, "cv181x", "int8", calibration=table), toolchain, cache, Silent()
    )
    with (
        pytest.raises(CandidateError, match="init_dmabuf"),
        Device("cv181x", {"head": made.file}, toolchain, log=tmp_path / "log"),
    ):
        pass
    lines = dict(line.split(" ") for line in finding.rewrite.rpartition(": ")[2].split(", "))
    write_qtable(tmp_path / "q.txt", lines)
    cured = CompileJob("head", graph, "cv181x", "int8", calibration=table, qtable=tmp_path / "q.txt")
    made = compile_model(cured, toolchain, cache, Silent())
    exact = onnxruntime.InferenceSession(graph).run(None, samples[0])
    with Device("cv181x", {"head": made.file}, toolchain, log=tmp_path / "log") as device:
        assert cosine(device.call("head", samples[0])[-1].real, exact[-1]) > 0.99


@pytest.mark.parametrize("exporter_opset", [18, 20])
def test_graphs_of_newer_opsets_are_rewritten_and_right(toolchain, cache, exporter_opset):
    g = graphs.Sketch(x=(1, 4, 64))
    g.node("MatMul", "x", g.weight("w", 64, 64), to="h")
    g.node("ReduceMean", "h", g.constant("axes", [-1]), to="m", keepdims=1)
    g.node("Sub", "h", "m", to="y")
    graph = g.model("y", opset=exporter_opset, ir=10)
    made = compile_model(CompileJob("new", graph, "cv181x", "bf16"), toolchain, cache, Silent())
    assert made.manifest["notes"][0] == f"opset {exporter_opset}, IR 10 rewritten to 17, 8"
    simulated, _ = run(toolchain, cache, graph, "cv181x", "bf16")
    assert simulated > 0.999
