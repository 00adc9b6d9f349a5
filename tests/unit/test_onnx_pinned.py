"""Graphs that are cut at what they show: each value made of the reference's, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parity.harness.errors import CandidateError
from parity.targets.onnx.pinned import PinnedGraph, gap, operate, shared_taps
from parity.targets.onnx.runtime import Runtime

SIZE = 3


def graph(nodes: list[Any], outputs: list[str], path: Path, weights: dict[str, float] | None = None) -> Path:
    """A graph over `x` [3] whose nodes are (op, inputs, output)."""
    made = helper.make_graph(
        [helper.make_node(op, list(inputs), [output]) for op, inputs, output in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE]) for name in outputs],
        [
            helper.make_tensor(name, TensorProto.FLOAT, [SIZE], [value] * SIZE)
            for name, value in (weights or {}).items()
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def full(value: float) -> np.ndarray:
    return np.full(SIZE, value, np.float32)


CHAIN = [("Add", ("x", "one"), "a"), ("Mul", ("a", "two"), "b"), ("Sub", ("b", "a"), "c")]


def run(path: Path, **right: float | None) -> dict[str, float]:
    pinned = PinnedGraph(Runtime(threads=1), path, "g")
    values = {name: None if value is None else full(value) for name, value in right.items()}
    return {name: float(array[0]) for name, array in pinned.run({"x": full(1.0)}, values).items()}


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return graph(CHAIN, ["a", "b", "c"], tmp_path / "chain.onnx", {"one": 1.0, "two": 2.0})


def test_each_value_is_made_of_the_references(chain: Path) -> None:
    assert run(chain, a=2.0, b=4.0, c=2.0) == {"a": 2.0, "b": 4.0, "c": 2.0}
    assert run(chain, a=10.0, b=50.0, c=0.0) == {"a": 2.0, "b": 20.0, "c": 40.0}


def test_two_faults_are_both_wrong_and_nothing_else_is(tmp_path: Path) -> None:
    faulty = graph(CHAIN, ["a", "b", "c"], tmp_path / "faulty.onnx", {"one": 1.5, "two": 2.5})
    assert run(faulty, a=2.0, b=4.0, c=2.0) == {"a": 2.5, "b": 5.0, "c": 2.0}


def test_where_the_reference_has_no_value_the_graphs_own_goes_on(chain: Path) -> None:
    assert run(chain, a=10.0, b=None, c=0.0) == {"a": 2.0, "b": 20.0, "c": 10.0}


def test_a_value_that_is_only_handed_on_is_one_value_and_the_first_name_answers_for_it(
    tmp_path: Path,
) -> None:
    nodes = [*CHAIN[:1], ("Identity", ("a",), "again"), ("Identity", ("x",), "given"), *CHAIN[1:]]
    path = graph(nodes, ["again", "a", "given", "c"], tmp_path / "twice.onnx", {"one": 1.5, "two": 2.0})
    found = run(path, again=2.0, a=2.0, given=1.0, c=2.0)
    assert found == {"again": 2.5, "a": 2.0, "given": 1.0, "c": 2.0}


def test_graphs_inside_read_the_references_value_as_well(tmp_path: Path) -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE])
        return helper.make_graph([helper.make_node(op, ["a", "a"], [name])], name, [], [out])

    choose = helper.make_node(
        "If", ["yes"], ["c"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")
    )
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["a"]), choose],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE]) for name in ("a", "c")],
        [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    path = tmp_path / "inside.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert run(path, a=10.0, c=0.0) == {"a": 2.0, "c": 20.0}


def test_a_value_that_nothing_reads_needs_no_input(chain: Path) -> None:
    surgery = operate(onnx.load(chain), {name: full(0.0) for name in "abc"})
    assert surgery.inputs == {"a": "a@reference", "b": "b@reference"}
    assert [item.name for item in surgery.model.graph.input] == ["x", "a@reference", "b@reference"]


def test_values_with_a_common_node_that_no_cut_hides_may_show_one_fault(tmp_path: Path) -> None:
    nodes = [
        ("Add", ("x", "one"), "mid"),
        ("Mul", ("mid", "two"), "inner"),
        ("Sub", ("inner", "mid"), "outer"),
        ("Add", ("outer", "one"), "next"),
    ]
    path = graph(nodes, ["inner", "outer", "next"], tmp_path / "mid.onnx", {"one": 1.0, "two": 2.0})
    surgery = operate(onnx.load(path), {name: full(0.0) for name in ("inner", "outer", "next")})
    assert surgery.shared == {"outer": ("inner",)}
    pinned = PinnedGraph(Runtime(threads=1), path, "g")
    pinned.run({"x": full(1.0)}, {name: full(0.0) for name in ("inner", "outer", "next")})
    related = {"inner": "module:h.0.norm", "outer": "module:h.0", "next": "module:h.1"}
    assert shared_taps(pinned, related) == {"module:h.0": ["module:h.0.norm"]}
    assert shared_taps(pinned, {**related, "inner": "module:h.7.norm"}) == {}


def test_a_graph_that_cannot_be_loaded_is_the_candidates_failure(tmp_path: Path) -> None:
    path = graph([("Add", ("x", "x"), "a")], ["a"], tmp_path / "bad.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(CandidateError, match="g pinned"):
        run(path, a=1.0)


def test_rounding_of_the_clean_build_is_no_gap() -> None:
    values = np.linspace(1, 2, 8, dtype=np.float32)
    assert gap(values, values) is None
    assert gap(values, np.nextafter(values, np.float32(9))) is None
    found = gap(values * np.float32(1.0005), values)
    assert found is not None
    assert float(found[-1]) == pytest.approx(1e-3, rel=0.01)
