"""Forms that a chip aborts on or computes wrongly are found in the graph, and only those."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

from parity.harness.errors import UserError
from parity.targets.sophgo.compile import lint
from parity.targets.sophgo.compile.finding import Finding
from parity.targets.sophgo.compile.opset import load
from parity.targets.sophgo.compile.view import View


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")
Sketch = graphs.Sketch
FINE = ("block", "rms_divided", "gqa_expand", "gqa_grouped", "embedding", "runtime_gather", "rope_on_axis_0")


def found(graph: bytes, chip: str = "cv181x", mode: str = "bf16", **taps: str) -> list[tuple[str, str]]:
    return [(one.severity, one.op) for one in lint(graph, chip, mode, taps=taps)]


@pytest.mark.parametrize("form", FINE)
@pytest.mark.parametrize(("chip", "mode"), [("cv181x", "bf16"), ("cv181x", "int8"), ("bm1684x", "f16")])
def test_forms_that_work_are_passed_over(form, chip, mode):
    assert found(getattr(graphs, form)(), chip, mode) == []


@pytest.mark.parametrize(
    ("form", "op"),
    [
        ("rms_rsqrt", "Mul y"),
        ("scatter", "ScatterElements written"),
        ("sine", "Sin sin"),
        ("wide_gather", "Gather rows"),
    ],
)
def test_forms_that_cv18xx_aborts_on_are_found(form, op):
    assert found(getattr(graphs, form)()) == [("abort", op)]
    assert found(getattr(graphs, form)(), "bm1684x", "f16") == []


def test_masks_made_in_the_graph_are_found_at_the_comparison_and_the_choice():
    assert found(graphs.where_mask()) == [("abort", "Less hidden"), ("abort", "Where masked")]


def test_a_choice_by_a_constant_is_fine():
    g = Sketch(scores=(1, 4, 8, 8))
    hidden = g.node("Less", g.constant("m", 0.0), g.constant("half", 0.5), to="hidden")
    g.node("Where", hidden, g.constant("low", -1e4), "scores", to="y")
    assert found(g.model("y")) == []


@pytest.mark.parametrize(
    ("rows", "mode", "findings"),
    [
        (511, "bf16", []),
        (512, "bf16", [("wrong", "Expand ks_wide"), ("wrong", "Expand vs_wide")]),
        (1023, "int8", []),
        (1024, "int8", [("wrong", "Expand ks_wide"), ("wrong", "Expand vs_wide")]),
    ],
)
def test_repeated_keys_are_found_from_the_size_on_that_goes_wrong(rows, mode, findings):
    assert found(graphs.gqa_expand(rows=rows, width=64), mode=mode) == findings


@pytest.mark.parametrize(
    ("shape", "repeats", "wrong"),
    [
        ((1, 2, 512, 64), (1, 4, 1, 1), False),
        ((2, 1, 512, 64), (1, 4, 1, 1), True),
        ((2, 1, 511, 64), (1, 4, 1, 1), False),
        ((1, 512, 64), (4, 1, 1), False),
        ((2, 40000), (1, 4), True),
    ],
)
def test_only_blocks_behind_another_axis_go_wrong(shape, repeats, wrong):
    assert bool(found(graphs.tiled(shape, repeats))) == wrong


def test_whole_parts_of_an_input_before_an_embedding_are_an_empty_program_in_int8():
    (finding,) = lint(graphs.head(), "cv181x", "int8")
    assert (finding.severity, finding.op) == ("abort", "Slice cos")
    assert "cos_Slice BF16, sin_Slice BF16" in finding.rewrite
    assert found(graphs.head(), "cv181x", "bf16") == []
    assert found(graphs.rope_on_axis_0(), "cv181x", "int8") == []


@pytest.mark.parametrize("chip", ["cv186x", "bm1688"])
def test_fused_attention_in_f16_is_noted_where_a_kernel_is_built(chip):
    assert found(graphs.gqa_expand(), chip, "f16") == [("note", "Softmax p")]
    assert found(graphs.gqa_expand(), chip, "bf16") == []


BM = ("bm1684x", "f16")


@pytest.mark.parametrize("act", ["silu", "gelu", "Tanh", "Elu"])
def test_a_relu_behind_an_mlp_that_is_split_is_found(act):
    assert found(graphs.mlp(act, end="relu", normed=False), *BM) == [("wrong", "Relu cut")]
    assert found(graphs.mlp(act, end="relu", biased=True), *BM) == [("wrong", "Relu cut")]
    assert found(graphs.mlp(act, end="relu"), "bm1684x", "w8f16") == []
    assert found(graphs.mlp(act, end="relu"), "bm1684x", "f32") == []
    assert found(graphs.mlp(act, end="relu"), "bm1684x2", "f16") == []
    assert bool(found(graphs.mlp(act, end="relu"), "bm1688", "bf16")) == (act != "gelu")


@pytest.mark.parametrize("act", ["silu", "gelu", "Sigmoid"])
def test_a_residual_of_one_row_behind_an_mlp_that_is_split_is_found(act):
    assert found(graphs.mlp(act), *BM) == [("wrong", "Add mid")]
    assert found(graphs.mlp(act), "bm1688", "bf16") == []


@pytest.mark.parametrize(
    "fine", [{"biased": True}, {"rows": 2}, {"normed": False}, {"act": ""}, {"act": "Relu"}]
)
def test_an_mlp_that_is_not_split_or_not_merged_is_passed_over(fine):
    assert found(graphs.mlp(**fine), *BM) == []


@pytest.mark.parametrize("chip", ["cv181x", "bm1684x", "bm1684x2"])
def test_a_relu_behind_a_residual_that_becomes_a_bias_is_found(chip):
    assert found(graphs.mlp("", end="both"), chip, "bf16") == [("wrong", "Relu cut")]
    assert found(graphs.mlp("", end="both", rows=2), chip, "bf16") == []
    assert found(graphs.mlp("", end="both", biased=True), chip, "bf16") == []


@pytest.mark.parametrize("chip", ["cv181x", "bm1684"])
def test_gelu_is_known_in_two_orders_and_newer_exporters_write_a_third(chip):
    mode = "bf16" if chip == "cv181x" else "f32"
    for order in ("known", "halved"):
        assert found(graphs.gelu(order), chip, mode) == []
    for order in ("dynamo", "scaled"):
        (finding,) = lint(graphs.gelu(order), chip, mode)
        assert (finding.severity, finding.op) == ("abort", "Erf curve")
        assert "x * (1 + erf(x / sqrt(2))) * 0.5 in this order" in finding.rewrite
    assert found(graphs.gelu("dynamo"), *BM) == []


def test_an_erf_that_is_no_gelu_is_to_be_computed_on_the_host():
    (finding,) = lint(graphs.alone("Erf"), "cv181x", "bf16")
    assert finding.rewrite == "compute it on the host and feed the result in"


def test_the_gelu_of_torch_s_newer_exporter_is_found():
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Net(), (torch.zeros(1, 4, 64),), dynamo=True, opset_version=18, verbose=False
        )
    assert program is not None
    graph = program.model_proto.SerializeToString()
    assert [one.severity for one in lint(graph, "cv181x", "bf16")] == ["abort"]


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        ("input", "output x"), ("weight", "output z"), ("identity", "Identity z"), ("cast", "Cast z"),
        ("joined", "Concat z"), ("constant", "Relu z"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("chip", "mode"), [("cv181x", "bf16"), ("bm1684x", "f16")])
def test_an_output_for_which_nothing_is_computed_is_found_on_every_chip(kind, op, chip, mode):
    (finding,) = lint(graphs.bare_output(kind), chip, mode)
    assert (finding.severity, finding.op) == ("abort", op)
    assert "leave it away" in finding.rewrite


@pytest.mark.parametrize("kind", ["reshape", "twice", "sum"])
def test_an_output_for_which_something_is_computed_is_passed_over(kind):
    assert found(graphs.bare_output(kind)) == []


def test_branches_and_loops_are_found_but_not_a_branch_that_is_decided():
    assert found(graphs.branch(fixed=False)) == [("abort", "If chosen")]
    assert found(graphs.branch(fixed=False), "bm1688", "bf16") == [("abort", "If chosen")]
    assert found(graphs.branch(fixed=False), *BM) == []
    assert found(graphs.branch(fixed=True)) == []
    assert found(graphs.loop()) == found(graphs.loop(), *BM) == [("abort", "Loop last")]


@pytest.mark.parametrize(("op", "value"), [("Elu", "1.0"), ("HardSigmoid", "0.2")])
@pytest.mark.parametrize(("chip", "mode"), [("cv181x", "bf16"), ("bm1684x", "f16")])
def test_an_attribute_that_is_left_out_is_found_where_the_converter_has_another_default(
    op, value, chip, mode
):
    (finding,) = lint(graphs.alone(op), chip, mode)
    assert finding.severity == "wrong"
    assert finding.rewrite == f"write the attribute alpha ({value}) into the graph"
    assert found(graphs.alone(op, alpha=1.0), chip, mode) == []


def test_what_cv18xx_computes_wrongly_or_lacks_is_found_and_bm1684x_has_it():
    assert found(graphs.alone("Floor")) == [("wrong", "Floor y")]
    assert found(graphs.alone("Ceil")) == [("abort", "Ceil y")]
    assert found(graphs.picked()) == [("abort", "ArgMax place")]
    for graph in (graphs.alone("Floor"), graphs.alone("Ceil"), graphs.picked()):
        assert found(graph, *BM) == []
    assert found(graphs.prelu()) == found(graphs.prelu(), *BM) == [("wrong", "PRelu y")]


def test_open_sizes_are_found_first():
    model = load(graphs.block())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    assert found(model.SerializeToString(), "bm1684x", "f16") == [("abort", "input x")]


def test_a_finding_has_the_tap_that_a_person_knows():
    (finding,) = lint(graphs.rms_rsqrt(), "cv181x", "bf16", taps={"y": "layer0.norm1"})
    assert str(finding).startswith("abort: layer0.norm1 (Mul y): RMSNorm by the reciprocal root")


def test_a_finding_has_the_tap_of_the_next_value_when_it_has_none():
    (finding,) = lint(graphs.sine(), "cv181x", "bf16", taps={"y": "layer0.rope"})
    assert finding.tap == "layer0.rope"


def test_a_chip_and_a_mode_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="chip='cv999x'"):
        lint(graphs.block(), "cv999x", "bf16")
    with pytest.raises(UserError, match="has no f16"):
        lint(graphs.block(), "cv181x", "f16")


def damaged(kind: str) -> bytes:
    model = load(graphs.gqa_expand())
    if kind == "no output":
        del model.graph.node[0].output[:]
    else:
        model.graph.initializer[0].dims[:] = [17]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("kind", ["no output", "short weight"])
def test_a_graph_that_is_no_valid_onnx_is_one_sentence(kind):
    with pytest.raises(UserError, match=r"onnx: is no valid graph \(.+\); export it again"):
        lint(damaged(kind), "cv181x", "bf16")


def test_findings_are_plain_data():
    from dataclasses import asdict

    (finding,) = lint(graphs.sine(), "cv181x", "bf16")
    assert Finding(**asdict(finding)) == finding


def test_what_follows_from_shapes_and_constants_is_known():
    """Exporters write a constant shape as a chain of operators."""
    g = Sketch(x=(1, 2, 8, 4))
    shape = g.node("Shape", "x", to="shape")
    batch = g.node("Gather", shape, g.constant("zero", 0), to="batch", axis=0)
    g.node("Expand", "x", g.node("Mul", g.constant("four", [1, 1, 4, 1]), batch, to="to"), to="wide")
    view = View(load(g.model("wide")))
    assert view.shape("shape") == (4,)
    assert view.whole("to") == (1, 1, 4, 1)
    assert "batch" in view.fixed
    assert "wide" not in view.fixed
