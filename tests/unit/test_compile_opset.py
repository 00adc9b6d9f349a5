"""Graphs of newer opsets in operators of opset 17: the same numbers, every change said."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from parity.harness.errors import UserError
from parity.targets.sophgo.compile.opset import load, lowered, opset_of


def graph(*nodes: onnx.NodeProto, opset: int = 18, ir: int = 10, **constants: np.ndarray) -> bytes:
    """Nodes from `x` [2, 3, 8] to `y`."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def value(data: bytes) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    return np.asarray(onnxruntime.InferenceSession(data).run(["y"], {"x": x})[0])


def check(data: bytes, *changes: str) -> None:
    """Old enough for the converter, the same numbers, and these changes noted."""
    old, notes = lowered(data)
    model = load(old)
    onnx.checker.check_model(model)
    assert opset_of(model) == 17
    assert model.ir_version == 8
    assert notes[1:] == changes
    np.testing.assert_allclose(value(old), value(data), rtol=1e-6, atol=1e-6)


def node(op: str, *inputs: str, to: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [to], **attributes)


AXES = np.array([-1], np.int64)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp"])
def test_axes_become_an_attribute(op):
    check(graph(node(op, "x", "axes"), axes=AXES), f"1 {op}: axes from input to attribute")


def test_axes_that_a_node_gives_as_a_constant_are_taken_too():
    constant = helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(AXES, "v"))
    check(
        graph(constant, node("ReduceMean", "x", "axes", keepdims=0)),
        "1 ReduceMean: axes from input to attribute",
    )


def test_a_reduction_over_everything_and_one_over_nothing():
    check(
        graph(node("ReduceMean", "x", noop_with_empty_axes=0)), "1 ReduceMean: axes from input to attribute"
    )
    check(
        graph(node("ReduceMean", "x", noop_with_empty_axes=1)), "1 ReduceMean: axes from input to attribute"
    )


def test_reduce_sum_was_old_already():
    check(graph(node("ReduceSum", "x", "axes"), axes=AXES))


@pytest.mark.parametrize("count", [2, 3])
def test_a_split_into_even_and_uneven_parts(count):
    parts = [f"p{at}" for at in range(count)]
    split = helper.make_node("Split", ["x"], parts, axis=2, num_outputs=count)
    check(graph(split, node("Concat", *reversed(parts), axis=2)), "1 Split: num_outputs dropped")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_written_out(approximate):
    check(graph(node("Gelu", "x", approximate=approximate), opset=20), "1 Gelu written out")


def test_attributes_of_8_bit_floats_go():
    cast = node("Cast", "x", to="h")
    cast = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16, saturate=1)
    back = helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT, saturate=1)
    check(graph(cast, back, opset=19), "2 Cast: attributes for 8-bit floats dropped")


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_operators_that_only_take_more_types_pass(opset):
    nodes = [
        node("MatMul", "x", "w", to="m"),
        node("Reshape", "m", "shape", to="r"),
        node("Transpose", "r", to="t", perm=[0, 2, 1]),
        node("Softmax", "t", axis=-1),
    ]
    made = graph(*nodes, opset=opset, w=np.eye(8, dtype=np.float32), shape=np.array([2, 3, 8]))
    assert lowered(made)[1] == (f"opset {opset}, IR 10 relabelled 17, 8: no operator differs",)
    check(made)


def test_an_old_graph_stays_as_it_is_byte_by_byte():
    data = graph(node("Relu", "x"), opset=17, ir=8)
    assert lowered(data) == (data, ())


def test_an_operator_without_an_older_form_is_refused_by_name():
    made = graph(
        node("GroupNormalization", "x", "s", "s", num_groups=3, epsilon=1e-5),
        opset=21,
        s=np.ones(3, np.float32),
    )
    with pytest.raises(
        UserError, match=r"GroupNormalization \(y\) of opset 21 has no older form here; export with"
    ):
        lowered(made)


def test_axes_that_are_only_known_at_run_time_are_refused():
    made = graph(node("Cast", "x", to="c"), node("ReduceMean", "x", "axes"), opset=18)
    model = load(made)
    del model.graph.node[0]
    model.graph.input.append(helper.make_tensor_value_info("axes", TensorProto.INT64, (1,)))
    with pytest.raises(UserError, match="its axes are computed while the graph runs"):
        lowered(model.SerializeToString())


def test_padding_by_axes_is_refused():
    made = graph(node("Pad", "x", "pads", "", "axes"), pads=np.array([1, 1], np.int64), axes=AXES, opset=18)
    with pytest.raises(UserError, match=r"Pad .* names axes"):
        lowered(made)


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x08"])
def test_what_is_no_graph_is_refused(data):
    with pytest.raises(UserError, match="is not an ONNX file"):
        lowered(data)
