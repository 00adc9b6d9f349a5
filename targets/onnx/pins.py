"""What a graph says of its inputs and outputs: name, number format, shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from parity.harness.case import Port
from parity.harness.errors import CandidateError, UserError


@dataclass(frozen=True)
class Pin:
    """One input or output. A size that the graph leaves open is a name, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{[size if size is not None else '?' for size in self.shape]}"

    def takes(self, dtype: str, shape: Sequence[int | str | None]) -> bool:
        """Whether a value of this format and shape fits: fixed sizes must agree, open ones take anything."""
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(
                mine == other or not isinstance(mine, int)
                for mine, other in zip(self.shape, shape, strict=True)
            )
        )


def load(path: Path) -> onnx.ModelProto:
    """Read a graph; UserError for what is not there or not ONNX."""
    if not path.is_file():
        raise UserError(f"onnx={path}: there is no such file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf raises its own kinds, onnx others
        raise UserError(f"onnx={path}: is not an ONNX file ({_line(error)})") from error
    if not model.graph.node or not model.opset_import:
        raise UserError(f"onnx={path}: is not an ONNX file, or holds an empty graph")
    return model


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def inputs(model: onnx.ModelProto) -> list[Pin]:
    """What must be fed; weights that old files list among the inputs are left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [_pin(value) for value in model.graph.input if value.name not in weights]


def outputs(model: onnx.ModelProto) -> list[Pin]:
    """What comes out."""
    return [_pin(value) for value in model.graph.output]


def of_port(port: Port, name: str, sizes: Mapping[str, int], dynamic: Sequence[int | str] = ()) -> Pin:
    """A port of the wiring under a graph's name, with B, T, W filled in unless they stay open."""
    shape = tuple(
        size if size in dynamic else sizes[size] if isinstance(size, str) else size for size in port.shape
    )
    return Pin(name, port.dtype, shape)


def check(
    where: str, kind: str, actual: Sequence[Pin], expected: Sequence[Pin], *, exact: bool = True
) -> None:
    """Names, their order, formats and sizes must be the expected ones; CandidateError says what is not.

    Without `exact`, sizes that the graph leaves open are no difference.
    """
    if [pin.name for pin in actual] != [pin.name for pin in expected]:
        raise CandidateError(
            f"{where}: {kind}s are {_names(actual)}, should be {_names(expected)}; "
            "the exporter renamed, dropped or added some"
        )
    for have, want in zip(actual, expected, strict=True):
        fixed = tuple(size if isinstance(size, int) else None for size in want.shape)
        shape = tuple(
            size if exact or isinstance(size, int) else mine
            for size, mine in zip(have.shape, fixed, strict=False)
        )
        if len(have.shape) != len(fixed) or not Pin(want.name, want.dtype, fixed).takes(have.dtype, shape):
            raise CandidateError(f"{where}: {kind} {have}, should be {want}")


def _names(pins: Sequence[Pin]) -> str:
    return ", ".join(pin.name for pin in pins) or "none"


def _pin(value: Any) -> Pin:
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "unknown"
    return Pin(value.name, FORMATS.get(name, name), tuple(_size(dim) for dim in tensor.shape.dim))


#: Names that ONNX writes otherwise than we do.
FORMATS = {"float": "float32", "double": "float64"}


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.HasField("dim_param") else None


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
