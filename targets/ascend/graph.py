"""What the lints and the command line need to know of an ONNX graph. Weights stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError

#: Elements of a constant that are looked at; a zero point is one number or one per column.
LARGEST_CONSTANT = 1 << 20


@dataclass(frozen=True)
class Graph:
    """An ONNX graph, its default opset, and the element types that shape inference found."""

    name: str
    model: Any
    opset: int
    file: str
    types: Mapping[str, int] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Any]:
        """Nodes of the main graph, in file order."""
        return list(self.model.graph.node)

    @property
    def inputs(self) -> list[Any]:
        """Inputs proper: initializers that old exporters list as inputs are left out."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in weights]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.model.graph.output]

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Value name -> TensorProto, of initializers and Constant nodes."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                found.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
        return found

    def type_of(self, value: str) -> int:
        """The ONNX element type of a value; 0 where nothing says it."""
        return self.types.get(value, 0)

    def consumers(self, value: str) -> list[Any]:
        """Nodes that read a value."""
        return [node for node in self.nodes if value in node.input]


def read_graph(name: str, source: bytes | Path) -> Graph:
    """Parse a graph without its external weights; UserError for what is no ONNX model."""
    import onnx

    file = f"{name}.onnx" if isinstance(source, bytes) else str(source)
    try:
        raw = source if isinstance(source, bytes) else source.read_bytes()
        model = onnx.load_model_from_string(raw)
    except OSError as error:
        raise UserError(f"onnx={file!r}: cannot be read ({error.strerror})") from error
    except Exception as error:  # protobuf's own exception type differs between its versions
        raise UserError(f"onnx={file!r}: is no ONNX model ({type(error).__name__})") from error
    if not model.graph.node:
        raise UserError(f"onnx={file!r}: holds no node; is this the right file?")
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    return Graph(name, model, opset, file, _types(model))


def _types(model: Any) -> dict[str, int]:
    """Element types by value name: declared ones, then those that shape inference adds."""
    import onnx

    known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (ValueError, RuntimeError):  # over 2 GB, or operators of a foreign domain
        graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = value.type.tensor_type.elem_type
    return known


def constant_values(graph: Graph, value: str) -> list[float] | None:
    """The numbers of a small constant; None if it is computed, too large or kept outside the file."""
    import onnx
    from onnx import numpy_helper

    tensor = graph.constants.get(value)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    count = 1
    for size in tensor.dims:
        count *= size
    if not 0 <= count <= LARGEST_CONSTANT:
        return None
    return [float(number) for number in numpy_helper.to_array(tensor).reshape(-1)]
