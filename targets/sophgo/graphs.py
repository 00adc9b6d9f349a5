"""The ONNX graphs that go to a chip's compiler: opset 17, inner values named after taps.

The compiler keeps ONNX names, so taps keep theirs in every later stage. The *clean* graph is the tapped one
without its further outputs; what only served them falls away with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from parity.harness.case import Case, Segment, Wiring

from ..onnx.build import Build, Recipe, build

#: The newest operators that the compiler's converter reads.
OPSET = 17


@dataclass(frozen=True)
class ChipGraph:
    """One segment's graphs. `axes` and `shapes` are those of its outputs and taps, by ONNX value.

    A tap that is hit again in a segment is the value `TAP#1`.
    """

    segment: Segment
    build: Build
    clean: bytes
    tapped: bytes
    axes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def outputs(self) -> tuple[str, ...]:
        """ONNX values of the segment's outputs, in order."""
        return tuple(port.value for port in self.segment.outputs)

    @property
    def inner(self) -> tuple[str, ...]:
        """ONNX values of the taps inside, in execution order."""
        return tuple(name for name in self.axes if name not in self.outputs)

    @property
    def taps(self) -> dict[str, str]:
        """ONNX value -> tap, outputs included."""
        return {name: plain(name) for name in self.axes}


def graphs(
    case: Case, wiring: Wiring, chosen: set[str], *, masked: bool, rows: int, cache: Path
) -> dict[str, ChipGraph]:
    """Export the chosen segments, or take them from the cache of exports."""
    modules = case.model.split(case.state, masked=masked)
    sizes = {"B": case.scenario.batch, "T": 1, "W": rows}
    recipe = Recipe(sizes, case.model.vocab_size, "script", OPSET)
    segments = (segment for segment in wiring.segments if segment.name in chosen)
    return {s.name: chip_graph(s, build(modules[s.name], s, recipe, cache)) for s in segments}


def chip_graph(segment: Segment, made: Build) -> ChipGraph:
    """The graphs of one export."""
    tapped = made.tapped.read_bytes()
    model = onnx.load_model_from_string(tapped)
    shapes = {value.name: _shape(value) for value in model.graph.output}
    axes = {port.value: port.axes for port in segment.outputs} | dict(made.axes)
    outputs = [port.value for port in segment.outputs]
    return ChipGraph(segment, made, without_taps(model, outputs).SerializeToString(), tapped, axes, shapes)


def without_taps(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph with these outputs alone, and nothing in it that they do not need."""
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    wanted = {"initializer": needed, "value_info": needed, "output": set(outputs)}
    for field, names in wanted.items():
        del getattr(clean.graph, field)[:]
        getattr(clean.graph, field).extend(i for i in getattr(model.graph, field) if i.name in names)
    del clean.graph.node[:]
    clean.graph.node.extend(reversed(nodes))
    onnx.checker.check_model(clean)
    return clean


def with_taps(graph: ChipGraph, kept: Collection[str]) -> ChipGraph:
    """The same graph with those of its taps alone that are in `kept`, or a copy of what is."""
    model = onnx.load_model_from_string(graph.tapped)
    copies = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}

    def source(name: str) -> str:
        while name in copies:
            name = copies[name]
        return name

    known = {source(name) for name in (*kept, *graph.outputs)}
    lost = {name for name in graph.inner if name not in kept and source(name) not in known}
    outputs = [value for value in model.graph.output if value.name not in lost]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    axes = {name: axis for name, axis in graph.axes.items() if name not in lost}
    return replace(graph, tapped=model.SerializeToString(), axes=axes)


def plain(value: str) -> str:
    """`layer0.q#1` -> `layer0.q`."""
    name, mark, number = value.rpartition("#")
    return name if mark and number.isdecimal() else value


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
