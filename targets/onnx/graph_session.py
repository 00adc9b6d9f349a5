"""A graph that is the model itself, in ONNX Runtime: outputs of the file, values of a tapped copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from parity.harness.case import ModuleCase, Port, Segment, Step
from parity.harness.segmented import Executor
from parity.harness.target import Facts
from parity.harness.tracer import step as mark_step
from parity.harness.tracer import trace_tensor
from parity.harness.values import Values

from .build import Build
from .executor import OnnxExecutor
from .graph_model import OnnxGraph, shape_of, with_values
from .runtime import Runtime

#: The one segment that a whole graph is.
WHOLE = "net"


@dataclass
class GraphSession:
    """One call of a whole graph, whatever executes it."""

    executor: Executor
    feed: Mapping[str, np.ndarray]
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Feed the inputs; there are no tokens to be read and none to be returned."""
        found = self.executor.call(WHOLE, self.feed)
        with mark_step(step.index):
            for item in found:
                trace_tensor(item.tap, item.array, axes=item.axes)
        return None

    def close(self) -> None:
        """Free what executes it."""
        self.executor.close()


def whole_segment(inputs: Sequence[str], outputs: Sequence[str], taps: Sequence[str]) -> Segment:
    """A graph as one segment: ports carry their own names."""
    return Segment(
        WHOLE,
        tuple(Port(name, name, "", ()) for name in inputs),
        tuple(Port(name, name, "", ()) for name in outputs),
        tuple(taps),
    )


def graph_build(graph: OnnxGraph, folder: Path) -> tuple[Segment, Build, dict[str, tuple[int, ...]]]:
    """The file and its tapped copy in `folder`, and the shapes of outputs and values."""
    values = graph.values
    clean, tapped = folder / "clean.onnx", folder / "tapped.onnx"
    clean.write_bytes(graph.data)
    onnx.save(with_values(graph.proto, values), str(tapped))
    opset = next((item.version for item in graph.proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    build = Build(WHOLE, clean, tapped, dict.fromkeys(values, ""), opset, ())
    shapes = {value.name: shape_of(value) for value in graph.proto.graph.output} | values
    return whole_segment(graph.inputs, graph.outputs, list(values)), build, shapes


def graph_session(case: ModuleCase, runtime: Runtime, folder: Path) -> GraphSession:
    """The graph in ONNX Runtime."""
    graph = case.module
    assert isinstance(graph, OnnxGraph)
    segment, build, _ = graph_build(graph, folder)
    executor = OnnxExecutor([segment], {WHOLE: build}, runtime, (*segment.taps, *graph.outputs))
    facts = Facts(
        dtype="float32",
        layout="call",
        details={
            **runtime.facts(),
            "opset": build.opset,
            "file": graph.path.name,
            "observer_effect": executor.observer.effect,
        },
    )
    return GraphSession(executor, dict(case.inputs), facts)
