"""What `atc` and the chip are known to do to an ONNX graph, said before anybody compiles it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graph import Graph, constant_values, read_graph
from .plugin import OPSETS

FLOAT, UINT8, INT8 = 1, 2, 3
SOFT_TYPES = (1, 10, 11, 16)

#: Precision modes of `atc` in the vendor's own order of accuracy, with what each does to float32.
PRECISION_MODES = {
    "force_fp32": "computed in fp32 where the chip can",
    "must_keep_origin_dtype": "kept as it is written in the graph",
    "allow_fp32_to_fp16": "kept where an fp32 kernel exists, otherwise fp16",
    "allow_mix_precision": "turned into fp16 for the operators on the vendor's list",
    "force_fp16": "turned into fp16 without a word; this is what atc does by default",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know before compiling. `severity`: abort (atc stops), wrong (other numbers), note."""

    op: str
    tap: str
    what: str
    rewrite: str
    severity: str

    def __str__(self) -> str:
        """In one sentence, for a terminal."""
        return f"{self.severity}: {self.op}: {self.what}; {self.rewrite}"


def lint(name: str, source: bytes | Path, *, precision: str | None = None) -> list[Finding]:
    """Findings on one graph, compiled with a precision mode (None: atc's default), in graph order."""
    return lint_graph(read_graph(name, source), precision)


def lint_graph(graph: Graph, precision: str | None) -> list[Finding]:
    """The same on a graph that was read already."""
    found = [*_precision(graph, precision), *_opset(graph)]
    for node in graph.nodes:
        found += _integer_matmul(graph, node)
        found += _cast(graph, node)
        found += _quantize(graph, node)
    return found


def _finding(graph: Graph, node: Any, severity: str, what: str, rewrite: str) -> Finding:
    taps = [output for output in node.output if output in graph.outputs]
    return Finding(
        f"{node.op_type} {node.name or node.output[0]}", taps[0] if taps else "", what, rewrite, severity
    )


def _precision(graph: Graph, precision: str | None) -> Iterator[Finding]:
    mode = precision or "force_fp16"
    floats = [value.name for value in graph.inputs if graph.type_of(value.name) == FLOAT]
    weights = any(tensor.data_type == FLOAT for tensor in graph.model.graph.initializer)
    if mode in ("force_fp32", "must_keep_origin_dtype") or not (floats or weights):
        return
    yield Finding(
        graph.name,
        "",
        f"float32 is {PRECISION_MODES[mode]}",
        "--precision_mode=must_keep_origin_dtype",
        "wrong",
    )


def _opset(graph: Graph) -> Iterator[Finding]:
    low, high = OPSETS[0], OPSETS[-1]
    if graph.opset in OPSETS:
        return
    integer = any(node.op_type == "MatMulInteger" for node in graph.nodes)
    what = f"opset {graph.opset} lies outside {low} to {high}, which the MatMulInteger plugin registers"
    if integer:
        yield Finding(graph.name, "", what, f"export with opset {low} to {high}", "abort")
    else:
        yield Finding(
            graph.name,
            "",
            f"opset {graph.opset}: not every CANN version parses it (opsets to 15 are safe)",
            "hold it against the operator list of the installed CANN, or export with opset 13",
            "note",
        )


def _integer_matmul(graph: Graph, node: Any) -> Iterator[Finding]:
    if node.op_type != "MatMulInteger":
        return
    yield _finding(
        graph,
        node,
        "abort",
        "atc knows no MatMulInteger until a parser plugin maps it to BatchMatMulV2",
        "install the plugin (steps below)",
    )
    for position, name in ((2, "a_zero_point"), (3, "b_zero_point")):
        if len(node.input) <= position or not node.input[position]:
            continue
        values = constant_values(graph, node.input[position])
        if values is None or any(values):
            told = "is computed" if values is None else "is not zero"
            yield _finding(
                graph,
                node,
                "wrong",
                f"{name} {told}, and the plugin ignores zero points",
                "quantize symmetrically (zero point 0) and leave the input out",
            )
    for position, side in ((0, "A"), (1, "B")):
        if graph.type_of(node.input[position]) == UINT8:
            yield _finding(
                graph,
                node,
                "wrong",
                f"{side} is uint8; the plugin's BatchMatMulV2 is used with int8 alone",
                "quantize to int8",
            )


def _cast(graph: Graph, node: Any) -> Iterator[Finding]:
    if node.op_type != "Cast" or graph.type_of(node.input[0]) not in SOFT_TYPES:
        return
    if not any(item.name == "to" and item.i == INT8 for item in node.attribute):
        return
    yield _finding(
        graph,
        node,
        "wrong",
        "Cast to int8 truncates in torch and ONNX Runtime; the chip's own differs",
        "round before the cast on every side, or put AscendQuant(scale=1, offset=0) there, which rounds",
    )


def _quantize(graph: Graph, node: Any) -> Iterator[Finding]:
    if node.op_type == "DynamicQuantizeLinear":
        yield _finding(
            graph,
            node,
            "wrong",
            "gives uint8 with a zero point, which the MatMulInteger plugin ignores",
            "quantize to int8 by the largest absolute value",
        )
