"""A graph that goes on with the reference's value wherever it shows one.

Every reader of a shown value reads a new graph input, `VALUE@reference`, in its place, while the value itself
stays an output. One call then tells the errors of all values apart: none of them is inherited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from parity.harness.errors import CandidateError
from parity.harness.isolation import related

from .runtime import Graph, Runtime

SUFFIX = "@reference"


@dataclass(frozen=True)
class Surgery:
    """The graph, and value -> the new input that its readers take.

    `once_more`: a value -> the one before it that is the same value under another name. `shared`: a value ->
    those before it that some node which both are made of makes.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    once_more: Mapping[str, str]
    shared: Mapping[str, tuple[str, ...]]


def operate(model: onnx.ModelProto, right: Mapping[str, np.ndarray]) -> Surgery:
    """Cut a copy of `model` at outputs of it, given in execution order with values of their number formats.

    A value that nothing reads, or that does not depend on anything, needs no input.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    roots = _Roots(made.graph)
    own, once_more, cut = dict[str, str](), dict[str, str](), dict[str, str]()
    for value in right:
        root = roots.of(value)
        if root in roots.given:
            continue
        if root in own:
            once_more[value] = own[root]
        else:
            own[root], cut[root] = value, value + SUFFIX
    read = set(_reroute(made.graph, roots, cut))
    inputs = {own[root]: name for root, name in cut.items() if name in read}
    for value, name in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(right[value].dtype)
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * right[value].ndim))
    return Surgery(
        made, inputs, once_more, _shared(made.graph, [value for value in right if value not in once_more])
    )


def _shared(graph: onnx.GraphProto, values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Which values are made by common nodes, behind which no input was cut; sizes and constants apart."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    varying = _varying(graph)
    owners: dict[int, list[str]] = {}
    found = {}
    for value in values:
        nodes, waiting = set[int](), [value]
        while waiting:
            name = waiting.pop()
            at = makers.get(name)
            if at is None or at in nodes or name not in varying:
                continue
            nodes.add(at)
            waiting += graph.node[at].input
        found[value] = tuple(dict.fromkeys(other for at in nodes for other in owners.get(at, ())))
        for at in nodes:
            owners.setdefault(at, []).append(value)
    return {value: others for value, others in found.items() if others}


def _varying(graph: onnx.GraphProto) -> set[str]:
    """Names of what depends on the values that the graph is fed."""
    weights = {tensor.name for tensor in graph.initializer}
    varying = {item.name for item in graph.input} - weights
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and varying & set(node.input):
            varying |= set(node.output)
    return varying


class _Roots:
    """What a value really is, behind nodes that only hand it on; `given` are inputs and constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._handed_on = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        made = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
        self.given = _AllBut(made)

    def of(self, value: str) -> str:
        """The value that a node computes."""
        while value in self._handed_on:
            value = self._handed_on[value]
        return value


@dataclass(frozen=True)
class _AllBut:
    """Names that no node computes."""

    made: set[str]

    def __contains__(self, name: str) -> bool:
        return name not in self.made


def _reroute(graph: onnx.GraphProto, roots: _Roots, cut: Mapping[str, str]) -> Iterator[str]:
    """Let nodes, those of graphs inside too, read the new inputs; which of them are read."""
    for node in graph.node:
        if node.op_type != "Identity":
            for place, name in enumerate(node.input):
                new = cut.get(roots.of(name))
                if new is not None:
                    node.input[place] = new
                    yield new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _reroute(inner, roots, cut)


@dataclass
class PinnedGraph:
    """A file in ONNX Runtime, cut at those of its outputs of which the reference has a value."""

    runtime: Runtime
    path: Path
    where: str
    _cut: dict[tuple[str, ...], tuple[Graph, Surgery]] = field(default_factory=dict)

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        """As of the surgery; known once it has run."""
        return {
            value: others for _, surgery in self._cut.values() for value, others in surgery.shared.items()
        }

    def run(
        self, feed: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray | None]
    ) -> dict[str, np.ndarray]:
        """Every value in the order of `right`, as it is made of the reference's values; where that has
        None, of the graph's own. CandidateError where the graph cannot be cut."""
        known = {value: array for value, array in right.items() if array is not None}
        graph, surgery = self._cut.get(tuple(known)) or self._cut.setdefault(tuple(known), self._made(known))
        fed = {name: known[value] for value, name in surgery.inputs.items()}
        wanted = [value for value in right if value not in surgery.once_more]
        found = dict(zip(wanted, graph.run({**feed, **fed}, wanted), strict=True))
        return {value: found[value] if value in found else known[value] for value in right}

    def _made(self, right: Mapping[str, np.ndarray]) -> tuple[Graph, Surgery]:
        surgery = operate(onnx.load(self.path), right)
        try:
            data = surgery.model.SerializeToString()
        except ValueError as error:
            raise CandidateError(f"{self.where}: the graph is too large to be cut in memory") from error
        return Graph(self.runtime, data, f"{self.where} pinned"), surgery


def gap(clean: np.ndarray, tapped: np.ndarray) -> np.ndarray | None:
    """What the build without taps does otherwise on the same inputs, where that is more than rounding."""
    if clean.tobytes() == tapped.tobytes() or clean.dtype.kind != "f":
        return None
    with np.errstate(invalid="ignore"):
        found = clean - tapped
    finite = np.abs(clean[np.isfinite(clean)]).max(initial=0.0)
    noise = 64.0 * float(np.finfo(clean.dtype).eps) * float(finite)
    return None if np.abs(found).max(initial=0.0) <= noise else found


def shared_taps(graph: PinnedGraph, taps: Mapping[str, str]) -> dict[str, list[str]]:
    """Taps that may show one and the same fault: of values with common nodes, those that are related."""
    named = {taps[value]: [taps[other] for other in others] for value, others in graph.shared.items()}
    found = {tap: [other for other in others if related(tap, other)] for tap, others in named.items()}
    return {tap: others for tap, others in found.items() if others}
