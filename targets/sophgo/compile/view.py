"""An ONNX graph to look things up in: who makes a value, who reads it, its shape, whether it is constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

#: Constants larger than this are weights, which no shape hangs on.
_SMALL = 4096
#: What depends on shapes alone is constant where shapes are fixed.
_OF_SHAPES = ("Shape", "Size")


class View:
    """`constants` holds small constants by value, `fixed` the names of all values that no input changes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.inputs = self._inputs(model)
        self.outputs = [value.name for value in model.graph.output]
        self.constants = self._given(model)
        self.fixed = {tensor.name for tensor in model.graph.initializer} | set(self.constants)
        self.shapes = self._shapes(self._light(model))
        self._fold()
        self.shapes |= self._shapes(self._light(model))
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a value; None where a size is open or unknown."""
        return self.shapes.get(name)

    def maker(self, name: str, *ops: str) -> NodeProto | None:
        """The node behind a value if it is one of `ops`."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type in ops else None

    def number(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def whole(self, name: str) -> tuple[int, ...] | None:
        """The whole numbers of a small constant."""
        value = self.constants.get(name)
        return None if value is None else tuple(int(number) for number in value.reshape(-1))

    def runtime(self, node: NodeProto) -> list[str]:
        """Inputs that are only known when the graph runs."""
        return [name for name in node.input if name and name not in self.fixed]

    def attribute(self, node: NodeProto, name: str, default: int) -> int:
        """A whole number among a node's attributes."""
        return next((int(a.i) for a in node.attribute if a.name == name), default)

    def _inputs(self, model: onnx.ModelProto) -> list[str]:
        weights = {tensor.name for tensor in model.graph.initializer}
        return [value.name for value in model.graph.input if value.name not in weights]

    def _given(self, model: onnx.ModelProto) -> dict[str, np.ndarray]:
        small = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if int(np.prod(tensor.dims)) <= _SMALL
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                small[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        return small

    def _fold(self) -> None:
        """Compute what follows from constants: exporters write shapes as chains of small operators."""
        for node in self.nodes:
            if node.op_type == "Constant":
                self.fixed.update(node.output)
            elif node.op_type in _OF_SHAPES and self.shape(node.input[0]) is not None:
                size = np.array(self.shape(node.input[0]), np.int64)
                self._know(node, [size if node.op_type == "Shape" else size.prod()])
            elif not self.runtime(node) and node.input and not _holds_graphs(node):
                self.fixed.update(node.output)
                if all(not name or name in self.constants for name in node.input):
                    self._know(node, self._computed(node))

    def _computed(self, node: NodeProto) -> Sequence[np.ndarray]:
        from onnx.reference import ReferenceEvaluator

        feed = {name: self.constants[name] for name in node.input if name}
        try:
            return [np.asarray(value) for value in ReferenceEvaluator(node).run(None, feed)]
        except Exception:  # an operator that the reference lacks: its value stays unknown, it is still fixed
            return []

    def _know(self, node: NodeProto, values: Sequence[np.ndarray]) -> None:
        self.fixed.update(node.output)
        for name, value in zip(node.output, values, strict=False):
            if value.size <= _SMALL:
                self.constants[name] = np.asarray(value)

    def _light(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph without its weights, which shape inference would copy: their shapes alone."""
        light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        light.graph.name = model.graph.name
        light.graph.node.extend(node for node in self.nodes if node.output[0] not in self.constants)
        light.graph.output.extend(model.graph.output)
        light.graph.value_info.extend(model.graph.value_info)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        light.graph.input.extend(value for value in model.graph.input if value.name not in weights)
        for name, tensor in weights.items():
            if name not in self.constants:
                light.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        light.graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in self.constants.items()
        )
        return light

    def _shapes(self, model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:  # a graph that shape inference refuses keeps what it declares
            inferred = model
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        found = {value.name: _sizes(value) for value in values}
        found |= {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
        return {name: sizes for name, sizes in found.items() if sizes is not None}


def _holds_graphs(node: NodeProto) -> bool:
    """Whether a node has branches, which read values that are none of its inputs."""
    return any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return None if None in dims else tuple(dims)  # type: ignore[arg-type]
