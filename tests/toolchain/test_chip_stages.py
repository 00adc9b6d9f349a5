"""`--stages` names the guilty stage of real defects of the toolchain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import parity
from parity.harness.comparison import Comparison

pytestmark = pytest.mark.slow


@pytest.fixture
def staged(toolchain, tmp_path, monkeypatch):
    """`staged(model, inputs, spec)`: the comparison of a chip's candidate with its stages."""
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))

    def run(model: str, inputs: dict[str, np.ndarray], spec: str = "cvi") -> Comparison:
        out = tmp_path / "out"
        return parity.run(model=model, inputs=inputs, cand=f"chip={spec}", stages=True, out=out)["chip"]

    return run


def caches(rows: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"q": (1, 8, 1, 64), "ks": (1, 2, rows, 64), "vs": (1, 2, rows, 64)}
    return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def to_onnx(factory, inputs: dict[str, np.ndarray], path, outputs=("y",)) -> str:
    """As anyone exports a graph: values have the exporter's own names."""
    example = tuple(map(torch.from_numpy, inputs.values()))
    torch.onnx.export(
        factory(), example, str(path), dynamo=False, opset_version=17,
        input_names=list(inputs), output_names=list(outputs),
    )  # fmt: skip
    return str(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_miscompiled_repeat_is_code_generation_at_the_reshape_behind_it(staged, tmp_path):
    """Right in the interpreter, cosine 0.5 on the simulator; the stock tool's own build does the same."""
    import chip_modules

    found = staged(to_onnx(chip_modules.expanded, caches(512), tmp_path / "gqa.onnx"), caches(512))
    assert found.verdict == "divergence"
    verdicts = {stage.name: stage.verdict for stage in found.stages}
    assert verdicts["export"] == verdicts["conversion"] == verdicts["quantization"] == "parity"
    cause = found.causes[0]
    assert cause.name == "code generation"
    assert cause.tap == "/Reshape_output_0"


@pytest.mark.parametrize(("factory", "rows"), [("grouped", 512), ("expanded", 256)])
def test_what_is_compiled_rightly_has_no_guilty_stage(staged, factory, rows):
    found = staged(f"chip_modules:{factory}", caches(rows))
    assert found.verdict == "parity", found.first
    assert found.causes == ()
    assert {stage.verdict for stage in found.stages} == {"parity"}


def test_an_artefact_that_aborts_at_load_is_code_generation_in_the_runtimes_words(staged):
    angles = np.linspace(0, 3, 32, dtype=np.float32)
    rope = np.stack([np.cos(angles), np.sin(angles)]).reshape(2, 1, 1, 32)
    found = staged("chip_modules:head", {"ids": np.array([[5]]), "rope": rope}, "cvi:int8")
    assert found.verdict == "failed"
    cause = found.causes[0]
    assert cause.name == "code generation"
    assert "init_dmabuf" in cause.evidence


def test_a_model_of_ours_has_every_stage_within_what_its_format_explains(toolchain, tmp_path):
    case = {"weights": "random:0", "scenario": "exact", "steps": 2}
    found = parity.run(cand="cvi", stages=True, out=tmp_path / "out", **case)["cvi"]
    assert [stage.name for stage in found.stages] == [
        "export", "conversion", "quantization", "code generation", "instrumentation"
    ]  # fmt: skip
    assert all(stage.verdict == "parity" and stage.compared for stage in found.stages)
    assert found.causes == ()


def test_what_the_lowering_cannot_do_is_not_blamed_on_the_conversion(staged, tmp_path):
    from onnx import TensorProto, checker, helper, save

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 32]) for name in "xy")
    nodes = [helper.make_node("Sin", ["x"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "sin", [x], [y]), opset_imports=opset, ir_version=8)
    checker.check_model(model)
    save(model, tmp_path / "sin.onnx")
    draw = np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)
    found = staged(str(tmp_path / "sin.onnx"), {"x": draw})
    verdicts = {stage.name: stage.verdict for stage in found.stages}
    assert verdicts["conversion"] == "parity"
    assert found.verdict == "failed"
    assert found.causes[0].name == "quantization"
    assert "lowering" in found.causes[0].evidence


def turned(rows: int = 512) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"q": (1, 1, 2, 64), "ks": (1, 16, 2, 64), "wide": (1, 2, rows, 64)}
    return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("factory", "name", "tap"),
    [
        ("turned", "quantization or code generation", "o1"),
        ("turned_and_repeated", "code generation", "/Reshape_output_0"),
    ],
)
def test_where_the_interpreter_itself_crashes_the_instrumented_graph_stands_in(
    staged, tmp_path, factory, name, tap
):
    """It names the stage where both builds are wrong alike; where only the clean one is, nobody saw which."""
    import chip_modules

    path = to_onnx(getattr(chip_modules, factory), turned(), tmp_path / "turned.onnx", ["o0", "o1"])
    found = staged(path, turned())
    tpu = next(stage for stage in found.stages if stage.name == "quantization")
    assert tpu.verdict == "parity"
    assert found.causes[0].name == name
    assert found.causes[0].tap == tap
    said = [finding.text for finding in found.findings if finding.level == "warning"]
    assert any("interpreter crashes" in text and "killed by SIG" in text for text in said), said
    assert not any("SIGKILL" in text for text in said)


class Masked(torch.nn.Module):
    """Something for each kind of input."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * 2 * keep.to(x.dtype))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_inputs_of_narrow_formats_are_widened_for_the_chip_and_that_is_said(staged, tmp_path):
    draw = np.random.default_rng(0)
    x, keep = draw.standard_normal((3, 8)), draw.random((3, 8)) > 0.5
    half = {"x": x.astype(np.float16), "keep": keep}
    found = staged(to_onnx(Masked, half, tmp_path / "half.onnx"), half)
    assert found.verdict == "parity", found.failure
    notes = " ".join(finding.text for finding in found.findings if finding.level == "note")
    assert "x: float16 in the graph, float32 to the compiler" in notes
    assert "keep: bool in the graph, float32 to the compiler" in notes


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_inputs_that_no_chip_takes_are_the_users_to_mend(staged, tmp_path):
    draw = np.random.default_rng(0)
    wide = {"x": draw.standard_normal((3, 8)), "keep": draw.random((3, 8)) > 0.5}
    found = staged(to_onnx(Masked, wide, tmp_path / "wide.onnx"), wide)
    assert found.verdict == "refused"
    assert "input 'x' is float64" in found.refused
    assert found.causes == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_operator_of_several_results_is_followed_through_every_level(staged, tmp_path):
    class Largest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, torch.topk(x, 3).values

    draw = {"x": np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)}
    found = staged(to_onnx(Largest, draw, tmp_path / "topk.onnx", ["y", "largest"]), draw)
    assert found.verdict == "parity", found.failure
    assert {stage.verdict for stage in found.stages} == {"parity"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_the_code_generator_cannot_do_is_not_blamed_on_quantization(staged, tmp_path):
    """Every level from the quantized graph on needs the whole compiler; its own words say how far it came."""

    class SixAxes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 2, 3, 2, 2, 2).permute(0, 3, 1, 2, 5, 4).sum(2)

    draw = {"x": np.random.default_rng(0).standard_normal((6, 8), dtype=np.float32)}
    found = staged(to_onnx(SixAxes, draw, tmp_path / "six.onnx"), draw)
    assert found.verdict == "failed"
    assert "failed in codegen" in found.failure
    assert found.causes[0].name == "code generation"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_output_that_is_a_constant_is_named(staged, tmp_path):
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.ones(3, 8))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + self.p, self.p * 2

    draw = {"x": np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)}
    found = staged(to_onnx(Constant, draw, tmp_path / "const.onnx", ["y", "p2"]), draw)
    conversion = next(stage for stage in found.stages if stage.name == "conversion")
    assert "is no tensor of the compiler's graph but an input or a constant" in conversion.reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_values_that_the_converter_fuses_are_left_out_of_the_instrumented_build(staged, tmp_path):
    """An exported GELU is five operators, of which the converter makes one."""
    import chip_modules

    draw = {"x": np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)}
    found = staged(to_onnx(chip_modules.mlp, draw, tmp_path / "mlp.onnx"), draw)
    assert found.verdict == "parity"
    instrumented = next(stage for stage in found.stages if stage.name == "instrumentation")
    assert instrumented.verdict == "parity"
    tapped = parity.run(model=str(tmp_path / "mlp.onnx"), inputs=draw, cand="cvi:tapped")["cvi:tapped"]
    hidden = {row.tap for row in tapped.rows() if row.metrics is None}
    assert {"/Div_output_0", "/Erf_output_0"} <= hidden
    assert not {"/a/Gemm_output_0", "/Mul_1_output_0", "y"} & hidden


def test_the_instrumented_build_shows_every_module_also_the_one_that_ends_the_model(toolchain, monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    draw = {"x": np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)}
    found = parity.run(model="chip_modules:mlp", inputs=draw, cand="cvi:tapped")["cvi:tapped"]
    seen = {row.tap for row in found.rows() if row.metrics is not None}
    assert seen == {"module:n", "module:a", "module:b", "output"}
