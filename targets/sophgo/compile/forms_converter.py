"""Forms that go wrong on the way to every chip: the converter has them not, or misreads them."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from .chips import Chip, Mode
from .forms import Found
from .view import View

_SUBGRAPHS = ("If", "Loop", "Scan")
#: Operators -> attributes whose default the converter has wrong, and what that is in ONNX.
_DEFAULTS = {"Elu": ("alpha", "1.0"), "HardSigmoid": ("alpha", "0.2")}
#: They hand on what they get.
_SAME = ("Identity", "Cast", "Dropout")


def outputs_of_nothing(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Outputs that are an input as it comes in, or a constant: nothing is computed for them."""
    for name in view.outputs:
        node = view.producer.get(name)
        if node is None:
            continue
        if name in view.fixed:
            what = "the output is a constant, which the compiler drops"
            yield Found(node, "abort", what, "leave it away; its value is known without the chip")
        elif (source := _source(view, node)) in view.inputs:
            what = f"the output is the input {source} as it comes in, which the converter cannot hand out"
            yield Found(node, "abort", what, "leave it away and read the input, or add 0 in the graph")


def _source(view: View, node: NodeProto | None) -> str | None:
    """The value that a chain of operators which change nothing begins with."""
    name = None
    while node is not None and (node.op_type in _SAME or _lone_part(node)):
        name = node.input[0]
        node = view.producer.get(name)
    return name


def _lone_part(node: NodeProto) -> bool:
    return node.op_type == "Concat" and len(node.input) == 1


def branches(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Graphs inside of graphs: a branch is taken by BM1684X alone, a loop by nothing."""
    for node in view.nodes:
        if node.op_type not in _SUBGRAPHS or (node.op_type == "If" and node.input[0] in view.fixed):
            continue
        if node.op_type == "If":
            if chip.name != "bm1684x":
                what = f"{chip.name} cannot branch on what comes in at run time"
                yield Found(node, "abort", what, "export a graph per branch and choose on the host")
        else:
            what = f"the compiler aborts on {node.op_type}"
            yield Found(node, "abort", what, "unroll it, or call the graph once per turn from the host")


def attributes_left_out(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Where ONNX has a default the converter has another."""
    for node in view.nodes:
        name, value = _DEFAULTS.get(node.op_type, ("", ""))
        if name and all(attribute.name != name for attribute in node.attribute):
            what = f"has no {name}, for which the converter takes another value than ONNX"
            yield Found(node, "wrong", what, f"write the attribute {name} ({value}) into the graph")


def slopes_from_outside(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """PRelu by slopes that are no weights."""
    for node in view.nodes:
        if node.op_type == "PRelu" and node.input[1] in view.runtime(node):
            what = "computes garbage with slopes that come in at run time"
            yield Found(node, "wrong", what, "write max(x, 0) + slope * min(x, 0)")
