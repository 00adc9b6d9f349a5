"""Segments on a chip's simulator, or in the compiler's interpreter, as an `Executor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.harness.errors import CandidateError
from parity.harness.segmented import Recorded

from .compile import Artefact, Interpreter
from .graphs import ChipGraph, plain
from .runner.arrays import folds
from .runner.client import Device, Output

#: What is kept in its own number format; integers are recorded as the real numbers that they stand for.
FLOATS = ("float32", "float16", "bfloat16")


@dataclass
class SimExecutor:
    """Every segment a model on one device.

    Outputs are taken by position, inner tensors by the names that the compiler gave them. `tapped` builds
    have the taps as further outputs. `rank` orders taps by execution.
    """

    graphs: Mapping[str, ChipGraph]
    artefacts: Mapping[str, Artefact]
    device: Device
    rank: Mapping[str, int]
    tapped: bool = False
    _inner: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, artefact in self.artefacts.items():
            graph = self.graphs[name]
            known = tensor_values(artefact, "final")
            self._inner[name] = {
                tensor.name: known[tensor.name]
                for tensor in self.device.inner(name)
                if known.get(tensor.name) in graph.inner
            }

    def shown(self) -> set[str]:
        """Taps that this device shows."""
        found = {port.value for graph in self.graphs.values() for port in graph.segment.outputs}
        for name, graph in self.graphs.items():
            values = graph.inner if self.tapped else self._inner[name].values()
            found |= set(map(plain, values))
        return found

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs and the taps that can be seen, in execution order."""
        graph = self.graphs[segment]
        found = self.device.call(segment, inputs)
        shown = list(self._outputs(graph, found)) + list(self._surviving(graph, found))
        return sorted(shown, key=lambda item: self.rank.get(item.tap, len(self.rank)))

    def _outputs(self, graph: ChipGraph, found: Sequence[Output]) -> Iterator[Recorded]:
        names = (*graph.outputs, *graph.inner) if self.tapped else graph.outputs
        have = len(self.device.outputs(graph.segment.name))
        if have != len(names):
            raise CandidateError(
                f"{graph.segment.name}: the artefact has {have} outputs, its graph has {len(names)}; "
                "compile it again from this graph"
            )
        for name, output in zip(names, found, strict=False):
            yield recorded(graph, name, _numbers(output))

    def _surviving(self, graph: ChipGraph, found: Sequence[Output]) -> Iterator[Recorded]:
        inner = self._inner[graph.segment.name]
        for output in found[len(self.device.outputs(graph.segment.name)) :]:
            if name := inner.get(output.tensor.name):
                yield recorded(graph, name, _numbers(output))

    def parcel(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """The graph with its taps, and what was compiled from it."""
        file = self.artefacts[segment].file
        return {"model.onnx": self.graphs[segment].tapped, file.name: file.read_bytes()}

    def close(self) -> None:
        """End the device."""
        self.device.close()


@dataclass
class InterpreterExecutor:
    """Every segment in an interpreter of its own, at one level of the compiler.

    `held`: segment -> ONNX value -> the tensor that holds it at this level.
    """

    graphs: Mapping[str, ChipGraph]
    held: Mapping[str, Mapping[str, str]]
    interpreters: Mapping[str, Interpreter]
    rank: Mapping[str, int]

    def shown(self) -> set[str]:
        """Taps that have a tensor of their own at this level."""
        found = {port.value for graph in self.graphs.values() for port in graph.segment.outputs}
        for name in self.graphs:
            found |= {plain(value) for value in self._inner(name).values()}
        return found

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs by position, taps by name."""
        graph, held = self.graphs[segment], self.held[segment]
        found = self.interpreters[segment].call({name: _fed(array) for name, array in inputs.items()})
        for value in graph.outputs:
            if held.get(value) not in found:
                raise CandidateError(
                    f"{segment}: its output {value} is no tensor of the compiler's graph but an input or a "
                    "constant itself; leave it away"
                )
        shown = [recorded(graph, value, found[held[value]]) for value in graph.outputs]
        for name, value in self._inner(segment).items():
            if name in found:
                shown.append(recorded(graph, value, found[name]))
        return sorted(shown, key=lambda item: self.rank.get(item.tap, len(self.rank)))

    def _inner(self, segment: str) -> dict[str, str]:
        """Tensor -> the value inside that it holds; of several, the one with a tap that comes first."""
        graph, table = self.graphs[segment], dict[str, str]()
        for value, name in sorted(self.held[segment].items(), key=lambda item: item[0] not in graph.taps):
            table.setdefault(name, value)
        return {name: value for name, value in table.items() if value in graph.inner}

    def parcel(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """The graph with its taps."""
        return {"model.onnx": self.graphs[segment].tapped}

    def close(self) -> None:
        """End every interpreter."""
        for interpreter in self.interpreters.values():
            interpreter.close()


def values_at(artefact: Artefact, level: str) -> dict[str, str]:
    """ONNX value -> the compiler's tensor that holds it at a level (top, tpu, final)."""
    return {row["onnx"]: row[level] for row in artefact.manifest["values"] if row[level] is not None}


def tensor_values(artefact: Artefact, level: str) -> dict[str, str]:
    """The compiler's tensor name at a level (top, tpu, final) -> the ONNX value that it holds.

    Where a tensor holds several, one that is a tap goes first.
    """
    rows = sorted(artefact.manifest["values"], key=lambda row: row["tap"] is None)
    table: dict[str, str] = {}
    for row in rows:
        if row[level] is not None:
            table.setdefault(row[level], row["onnx"])
    return table


def recorded(graph: ChipGraph, value: str, array: np.ndarray) -> Recorded:
    """A tensor under its tap, in the shape that the ONNX graph gives it: chips pad and fold shapes."""
    shape = graph.shapes[value]
    if not folds(array.shape, shape) and not folds(shape, array.shape):
        raise CandidateError(
            f"{graph.segment.name}: {value} has shape {list(array.shape)}, no folding of {list(shape)}"
        )
    return Recorded(plain(value), array.reshape(shape), graph.axes[value])


def _numbers(output: Output) -> np.ndarray:
    return output.raw if output.tensor.format in FLOATS else output.real


def _fed(array: np.ndarray) -> np.ndarray:
    """The interpreter takes every input as float32; token ids up to 2^24 are exact in it."""
    return np.ascontiguousarray(array, dtype=np.float32)
