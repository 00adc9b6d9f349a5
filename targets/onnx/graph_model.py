"""An .onnx file of someone's as the model itself: ONNX Runtime is its reference, every value a tap."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from parity.harness.errors import UserError, did_you_mean
from parity.harness.inputs import read_inputs

#: Element types whose values are worth a tap; indices and shapes are not.
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


class OnnxGraph(nn.Module):
    """The graph and its bytes. It is no torch module: targets that take files execute it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.proto = _read(self.path)

    @property
    def data(self) -> bytes:
        """The whole graph, external weights included."""
        return bytes(self.proto.SerializeToString())

    @property
    def digest(self) -> str:
        """Of the whole graph."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the graph is fed."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(value.name for value in self.proto.graph.input if value.name not in weights)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it returns."""
        return tuple(value.name for value in self.proto.graph.output)

    @property
    def values(self) -> dict[str, tuple[int, ...]]:
        """Floating values between inputs and outputs in execution order, with their shapes.

        What does not depend on the inputs is left out: constants have no place in an execution.
        """
        shaped = onnx.shape_inference.infer_shapes(self.proto)
        known = {value.name: value for value in shaped.graph.value_info if _is_tap(value)}
        live = set(self.inputs)
        for node in self.proto.graph.node:
            if live & set(node.input):
                live |= set(node.output)
        made = (name for node in self.proto.graph.node for name in node.output)
        return {n: shape_of(known[n]) for n in made if n in known and n in live and n not in self.outputs}

    def read_inputs(self, source: str | Path | Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Arrays by input name; UserError for one that lacks, or that the graph has not."""
        given = read_inputs(source)
        for name in given:
            if name not in self.inputs:
                near = did_you_mean(name, self.inputs)
                raise UserError(f"inputs: {self.path.name} has no {name!r}. {near}")
        lacking = [name for name in self.inputs if name not in given]
        if lacking:
            raise UserError(f"inputs: {self.path.name} also needs {', '.join(map(repr, lacking))}")
        return given


def with_values(proto: onnx.ModelProto, names: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy that also returns these values."""
    shaped = onnx.shape_inference.infer_shapes(proto)
    known = {value.name: value for value in shaped.graph.value_info}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.extend(known[name] for name in names)
    return tapped


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Sizes of a value whose shape is known."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _is_tap(value: onnx.ValueInfoProto) -> bool:
    """Floating, and of a shape that is known."""
    tensor = value.type.tensor_type
    return tensor.elem_type in FLOATS and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _read(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except FileNotFoundError:
        raise UserError(f"model={str(path)!r}: there is no such file") from None
    except Exception as error:  # protobuf's and onnx's own share no base class
        line = " ".join(str(error).split())[:200]
        raise UserError(f"model={str(path)!r}: cannot be read as an ONNX model ({line})") from error
    return proto
