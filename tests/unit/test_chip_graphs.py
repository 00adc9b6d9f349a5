"""The graphs that go to a chip's compiler: the clean ones are the tapped ones without their taps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import Tensor

from parity.models.klm import find
from parity.targets.onnx.build import Recipe, build
from parity.targets.onnx.observe import examples
from parity.targets.sophgo.graphs import OPSET, ChipGraph, chip_graph

MODEL = find("klm-tiny")
NAMES = [segment.name for segment in MODEL.wiring.segments]
SIZES = {"B": 1, "T": 1, "W": MODEL.window}


def graph_of(name: str, folder: Path, *, masked: bool) -> tuple[ChipGraph, tuple[Tensor, ...]]:
    """A segment as a chip's compiler gets it, and inputs of it."""
    module = MODEL.build()
    MODEL.init_random(module, 0)
    wiring = MODEL.masked_wiring if masked else MODEL.wiring
    segment = next(segment for segment in wiring.segments if segment.name == name)
    part = MODEL.split(module.state_dict(), masked=masked)[name]
    made = build(part, segment, Recipe(SIZES, MODEL.vocab_size, "script", OPSET), folder)
    return chip_graph(segment, made), examples(segment.inputs, SIZES, vocab_size=MODEL.vocab_size)


def outputs_of(graph: bytes, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of it, by name."""
    session = onnxruntime.InferenceSession(graph)
    feed = {pin.name: x.numpy() for pin, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def operators(graph: bytes) -> list[tuple[str, list[bytes]]]:
    """Kinds and attributes in order."""
    nodes = onnx.load_model_from_string(graph).graph.node
    return [(node.op_type, sorted(a.SerializeToString() for a in node.attribute)) for node in nodes]


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", NAMES)
def test_the_clean_graph_is_that_of_an_export_without_taps(name: str, masked: bool, tmp_path: Path) -> None:
    graph, inputs = graph_of(name, tmp_path, masked=masked)
    alone = graph.build.clean.read_bytes()
    assert graph.inner, "without a tap inside there is nothing to take away"
    assert operators(graph.clean) == operators(alone)
    ours, theirs = outputs_of(graph.clean, inputs), outputs_of(alone, inputs)
    assert list(ours) == list(theirs) == list(graph.outputs)
    for value in ours:
        assert ours[value].tobytes() == theirs[value].tobytes(), value
