"""What is put into a manifest: the graph's ends, tensors with their names, effective formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from .formats import Effective
from .job import sha256
from .manifest import KIND, VERSION
from .names import Names, tensors


def describe_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """Inputs, outputs and the names of all computed values, as the ONNX file has them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    made = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name]
    return {
        "inputs": [_value(value) for value in inputs],
        "outputs": [_value(value) for value in model.graph.output],
        "computed": [*(value.name for value in inputs), *made],
    }


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "unknown"
    return {
        "name": value.name,
        "shape": [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim],
        "dtype": {"float": "float32", "double": "float64"}.get(dtype, dtype),
    }


def compose(
    graph: Mapping[str, Any], names: Names, formats: Effective, facts: Mapping[str, Any], artefact: Path
) -> dict[str, Any]:
    """Everything that is known of an artefact. Outputs are in the graph's order, which is the runtime's."""
    data = artefact.read_bytes()
    ends = dict(zip(names.outputs, names.final.list_of("outputs"), strict=True))
    own = {name: op.formats[at].name for name, at, op in tensors(names.final) if op.kind == "top.Input"}
    return {
        "format": KIND,
        "version": VERSION,
        **facts,
        "file": artefact.name,
        "sha256": sha256(data),
        "size": len(data),
        "inputs": [{**entry, "artefact_format": own.get(entry["name"])} for entry in graph["inputs"]],
        "outputs": [
            {
                "onnx": entry["name"],
                "mlir": ends[entry["name"]],
                "tap": names.taps.get(entry["name"]),
                "shape": entry["shape"],
                "dtype": entry["dtype"],
            }
            for entry in graph["outputs"]
        ],
        "formats": dict(formats.counts),
        "kept": [asdict(item) for item in formats.kept],
        "values": [{**asdict(chain), "status": chain.status} for chain in names.chains()],
        "tensors": names.described(),
    }
