"""Exported graphs, edited behind the exporter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..patches import Edit, graph
from ..plant import Plant

FAMILY = "graphs"
Graph = onnx.GraphProto


def _nodes(found: Graph, kind: str) -> list[onnx.NodeProto]:
    return [node for node in found.node if node.op_type == kind]


def _initializer(suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(found: Graph) -> None:
        item = next(item for item in found.initializer if item.name.endswith(suffix))
        item.CopyFrom(
            numpy_helper.from_array(
                np.ascontiguousarray(change(numpy_helper.to_array(item).copy())), item.name
            )
        )

    return edit


def _weight(shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray], place: int = 0) -> Edit:
    """The `place`-th weight of a shape, in the order of the graph; exporters transpose them at will."""

    def edit(found: Graph) -> None:
        items = [item for item in found.initializer if tuple(item.dims) in (shape, shape[::-1])]
        item = items[place]
        item.CopyFrom(
            numpy_helper.from_array(
                np.ascontiguousarray(change(numpy_helper.to_array(item).copy())), item.name
            )
        )

    return edit


def _attribute(kind: str, name: str, value: float, place: int = 0) -> Edit:
    def edit(found: Graph) -> None:
        node = _nodes(found, kind)[place]
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def _operands(kind: str, place: int = 0) -> Edit:
    def edit(found: Graph) -> None:
        node = _nodes(found, kind)[place]
        node.input[0], node.input[1] = node.input[1], node.input[0]

    return edit


def _becomes(kind: str, other: str, place: int = 0) -> Edit:
    def edit(found: Graph) -> None:
        _nodes(found, kind)[place].op_type = other

    return edit


def _caches_crossed(found: Graph) -> None:
    """Keys and values have one shape, so nothing else notices."""
    other = {"ks": "vs", "vs": "ks"}
    for node in found.node:
        for place, name in enumerate(node.input):
            node.input[place] = other.get(name, name)


def _weights_crossed(found: Graph) -> None:
    one, two = [item for item in found.initializer if sorted(item.dims) == [128, 384]][:2]
    kept = numpy_helper.to_array(one).copy()
    one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(two).copy(), one.name))
    two.CopyFrom(numpy_helper.from_array(kept, two.name))


def _norm_inputs_crossed(found: Graph) -> None:
    node = _nodes(found, "LayerNormalization")[0]
    node.input[1], node.input[2] = node.input[2], node.input[1]


def _other_norm(found: Graph) -> None:
    """The first norm takes the second's weight and bias."""
    one, two = _nodes(found, "LayerNormalization")[:2]
    one.input[1], one.input[2] = two.input[1], two.input[2]


def _scale_constant(found: Graph) -> None:
    """The factor of the scores, wherever the exporter keeps it."""
    scores = next(node for node in _nodes(found, "Mul") if any("MatMul" in name for name in node.input))
    for node in _nodes(found, "Constant"):
        if node.output[0] in scores.input:
            array = numpy_helper.to_array(node.attribute[0].t)
            node.attribute[0].t.CopyFrom(
                numpy_helper.from_array(np.asarray(array * np.float32(1.05), array.dtype))
            )
            return
    raise AssertionError("no scale in this graph")


def _mask_left_out(found: Graph) -> None:
    node = next(node for node in found.node if "mask" in node.input)
    scores = next(name for name in node.input if name != "mask")
    for other in found.node:
        for place, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[place] = scores


def _one(array: np.ndarray) -> np.ndarray:
    array[7, 5] += 3.0
    return array


def _noise(array: np.ndarray) -> np.ndarray:
    return array * (1 + 1e-3 * np.random.default_rng(0).standard_normal(array.shape)).astype(np.float32)


def _graph(name: str, born: str, segment: str, edit: Edit, says: tuple[str, ...], *, only: str = "") -> Plant:
    return Plant(f"graph-{name}", FAMILY, born, graph(segment, edit, only=only), says, on=("onnx",))


PLANTS = [
    _graph(
        "caches-bound-crosswise", "layer0.attn", "seg_0", _caches_crossed, ("key|value|swap|exchang|cross",)
    ),
    _graph(
        "norm-epsilon", "layer1.norm2", "seg_1", _attribute("LayerNormalization", "epsilon", 1e-3), ("eps",)
    ),
    _graph("softmax-axis", "layer1.attn", "seg_1", _attribute("Softmax", "axis", 1), ("axis|softmax|head",)),
    _graph("difference-turned", "layer1.q", "seg_0", _operands("Sub"), ("sign|negat|minus|half",)),
    _graph("keys-difference-turned", "layer2.k", "seg_1", _operands("Sub", 1), ("sign|negat|minus|half",)),
    _graph(
        "halves-exchanged", "layer1.q", "seg_0", _operands("Concat"), ("half|halves|roll|d slices|order",)
    ),
    _graph("tanh-for-sigmoid", "layer2.act", "seg_2", _becomes("Sigmoid", "Tanh"), ("tanh|activation",)),
    _graph("hard-sigmoid", "layer1.act", "seg_1", _becomes("Sigmoid", "HardSigmoid"), ("hard",)),
    _graph("product-for-sum", "layer2.mid", "seg_2", _becomes("Add", "Mul", 2), ("product|residual|mul",)),
    _graph("weights-crossed", "layer1.act", "seg_1", _weights_crossed, ("gate|up|swap|exchang",)),
    _graph(
        "norm-inputs-crossed", "layer1.norm2", "seg_1", _norm_inputs_crossed, ("weight|bias|swap|exchang",)
    ),
    _graph("norm-of-another", "layer0.norm2", "seg_0", _other_norm, ("norm|weight",)),
    _graph("scores-scaled", "layer2.attn", "seg_2", _scale_constant, ("scale",)),
    _graph("bias-lost", "layer1.o", "seg_1", _initializer("out_proj.bias", np.zeros_like), ("bias",)),
    _graph(
        "weight-scaled",
        "layer2.act",
        "seg_2",
        _weight((384, 128), lambda w: w * np.float32(1.001)),
        ("scale|times|factor|1.001|gate|up",),
    ),
    _graph("one-value", "layer2.mlp", "seg_2", _weight((384, 128), _one, 2), ("weight off by .* at",)),
    _graph("weight-noise", "layer0.o", "seg_0", _weight((128, 128), _noise), ()),
    _graph(
        "vocabulary-scaled",
        "logits",
        "seg_tail",
        _weight((512, 128), lambda w: w * np.float32(1.0005)),
        ("scale|times|factor|1.0005",),
    ),
    _graph(
        "clean-build-alone",
        "logits",
        "seg_tail",
        _weight((512, 128), lambda w: w * np.float32(1.0005)),
        ("scale|times|factor|1.0005",),
        only="clean",
    ),
    Plant(
        "graph-mask-left-out",
        FAMILY,
        "layer0.attn",
        graph("seg_0", _mask_left_out),
        ("mask|hidden|pad|every row|all rows|unfilled",),
        on=("onnx",),
    ),
]
