"""What the argument of a chip says, and what it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parity.harness.errors import UserError
from parity.harness.target import Options
from parity.targets.onnx.graph_model import OnnxGraph
from parity.targets.sophgo.asked import Asked, parse_arg
from parity.targets.sophgo.graphs import plain, without_taps
from parity.targets.sophgo.target import bm1684x, cvi


def asked(arg: str) -> Asked:
    return parse_arg("cvi", arg, chip="cv181x", mode="bf16")


def test_a_bare_name_is_the_chip_in_its_usual_format_on_the_simulator():
    found = asked("")
    assert (found.chip.name, found.mode.name, found.level, found.path) == ("cv181x", "bf16", "sim", None)
    assert bm1684x().asked("").mode.name == "f16"


def test_a_qtable_s_formats_are_checked_before_anything_runs(tmp_path):
    (tmp_path / "q.txt").write_text("y_Softmax F16\n")
    with pytest.raises(
        UserError, match="asks for y_Softmax in F16, which a build for cv181x in int8 has not"
    ):
        asked(f"int8+qtable={tmp_path / 'q.txt'}")
    (tmp_path / "q.txt").write_text("y_Softmax BF16\n")
    assert asked(f"int8+qtable={tmp_path / 'q.txt'}").qtable == tmp_path / "q.txt"


@pytest.mark.parametrize("arg", ["int8+cv180x+tpu", "tpu+int8+cv180x", "cv180x+tpu+INT8"])
def test_words_come_in_any_order(arg):
    found = asked(arg)
    assert (found.chip.name, found.mode.name, found.level) == ("cv180x", "int8", "tpu")


def test_weights_of_few_bits_have_a_group_size():
    assert bm1684x().asked("w4f16").group_size == 64
    assert bm1684x().asked("w4f16+group=32").group_size == 32


@pytest.mark.parametrize(
    ("arg", "computed"),
    [("", "bfloat16"), ("int8", "w8a8"), ("top", "float32"), ("onnx", "float32"), ("int8+tpu", "w8a8")],
)
def test_a_candidate_is_judged_by_what_it_computes_in(arg, computed):
    assert asked(arg).computed_in == computed


@pytest.mark.parametrize(("arg", "computed"), [("w8f16", "w8a16"), ("w4bf16", "w4a16"), ("f32", "float32")])
def test_narrow_weights_are_an_arithmetic_of_their_own(arg, computed):
    assert bm1684x().asked(arg).computed_in == computed


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("int9", "Did you mean 'int8'"),
        ("f16", "would take it and compute bf16"),
        ("w4f16", "no w4f16 for cv181x"),
        ("bm1684x", "another family"),
        ("group=64", "has no groups"),
        ("int8+group=x", "whole number"),
        ("table=nowhere", "no such file"),
        ("scale=2", "'scale' is unknown. Did you mean"),
        ("nowhere/at/all", "no such file"),
    ],
)
def test_what_cannot_be_meant_is_refused(arg, said):
    with pytest.raises(UserError, match=said):
        asked(arg)


def test_a_folder_of_artefacts_may_say_how_they_were_compiled(tmp_path):
    found = asked(f"{tmp_path}+int8")
    assert found.path == Path(tmp_path)
    assert found.mode.name == "int8"
    with pytest.raises(UserError, match="simulator only"):
        asked(f"{tmp_path}+tpu")


def test_a_chips_number_format_is_its_mode_and_its_device_the_cpu():
    with pytest.raises(UserError, match="is its mode"):
        cvi().check("", Options(dtype="bf16"))
    with pytest.raises(UserError, match="runs on the cpu"):
        cvi().check("", Options(device="cuda"))


def test_stages_lead_to_the_candidate_that_was_asked_for():
    assert [arg for arg, _ in cvi().stages("int8")] == [
        "int8+onnx", "int8+top", "int8+tpu", "int8+sim", "int8+tapped"
    ]  # fmt: skip
    with pytest.raises(UserError, match="is one stage itself"):
        cvi().stages("tpu")


def test_the_emulation_of_a_quantized_candidate_is_the_compilers_interpreter():
    assert cvi().emulation("int8+cv180x") == "int8+cv180x+tpu"
    assert cvi().emulation("int8+tapped") == "int8+tpu"
    assert cvi().emulation("int8+tpu") is None


@pytest.fixture
def graph(tmp_path) -> Path:
    """y = relu(x + 1) with a constant beside the path, and an int value."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["sum"]),
        helper.make_node("Mul", ["one", "one"], ["folded"]),
        helper.make_node("Shape", ["sum"], ["shape"]),
        helper.make_node("Relu", ["sum"], ["act"]),
        helper.make_node("Add", ["act", "folded"], ["y"]),
    ]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    body, opset = helper.make_graph(nodes, "g", [x], [y], [one]), helper.make_opsetid("", 17)
    made = helper.make_model(body, opset_imports=[opset], ir_version=8)
    onnx.save(made, str(tmp_path / "g.onnx"))
    return tmp_path / "g.onnx"


def test_the_taps_of_a_graph_are_its_floating_values_on_the_way(graph):
    found = OnnxGraph(graph)
    assert found.values == {"sum": (2, 3), "act": (2, 3)}
    assert (found.inputs, found.outputs) == (("x",), ("y",))


def test_a_graphs_inputs_are_held_against_its_names(graph):
    found = OnnxGraph(graph)
    assert set(found.read_inputs({"x": np.zeros((2, 3), np.float32)})) == {"x"}
    with pytest.raises(UserError, match="has no 'z'"):
        found.read_inputs({"z": np.zeros(1)})


def test_a_graph_loses_its_further_outputs_and_what_only_they_needed(graph):
    model = onnx.load(str(graph))
    model.graph.output.extend([helper.make_tensor_value_info("shape", TensorProto.INT64, [2])])
    clean = without_taps(model, ["y"])
    assert [node.op_type for node in clean.graph.node] == ["Add", "Mul", "Relu", "Add"]
    assert [value.name for value in clean.graph.output] == ["y"]


def test_a_tap_that_is_hit_again_has_one_name():
    assert [plain(name) for name in ("layer0.q", "layer0.q#1", "a#b")] == ["layer0.q", "layer0.q", "a#b"]
