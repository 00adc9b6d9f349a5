"""Small ONNX graphs, each one form that a chip takes or does not take. Random but fixed weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Sketch:
    """A graph in the making: `node` returns the name of its output."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
        self._random = np.random.default_rng(0)

    def tokens(self, name: str, shape: tuple[int, ...]) -> str:
        """An input of token ids."""
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Random weights."""
        return self.constant(name, self._random.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5)

    def constant(self, name: str, value: Any) -> str:
        """A constant; whole numbers become int64, others float32."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, to: str, **attributes: Any) -> str:
        """One operator with one output."""
        self.nodes.append(helper.make_node(op, list(inputs), [to], **attributes))
        return to

    def model(self, *outputs: str, opset: int = OPSET, ir: int = 8) -> bytes:
        """The file's bytes."""
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "sketch", self.inputs, ends, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
        return onnx.shape_inference.infer_shapes(made).SerializeToString()


def block() -> bytes:
    """Norm, product with weights, SiLU, softmax, residual: what every chip takes in every mode it has.

    One row, as in a decode step: BM1684 has no int8 for products of several.
    """
    g = Sketch(x=(1, 1, 64))
    g.node(
        "LayerNormalization", "x", g.constant("scale", np.ones(64)), g.constant("shift", np.zeros(64)), to="n"
    )
    g.node("Add", g.node("MatMul", "n", g.weight("w", 64, 128), to="h"), g.weight("b", 128), to="up")
    g.node("Mul", "up", g.node("Sigmoid", "up", to="s"), to="act")
    g.node("Add", g.node("MatMul", "act", g.weight("v", 128, 64), to="d"), g.weight("c", 64), to="down")
    g.node("Add", "x", "down", to="mid")
    g.node("Softmax", "mid", to="y", axis=-1)
    return g.model("mid", "y")


def mlp(
    act: str = "silu", *, normed: bool = True, biased: bool = False, rows: int = 1, end: str = "residual"
) -> bytes:
    """[norm,] product, activation, product [with bias], and what follows: residual, relu, both or nothing."""
    g = Sketch(x=(1, rows, 64))
    n = "x"
    if normed:
        ones, zeros = g.constant("scale", np.ones(64)), g.constant("shift", np.zeros(64))
        n = g.node("LayerNormalization", "x", ones, zeros, to="n")
    h = g.node("Add", g.node("MatMul", n, g.weight("w", 64, 128), to="h"), g.weight("b", 128), to="up")
    if act == "silu":
        h = g.node("Mul", h, g.node("Sigmoid", h, to="s"), to="act")
    elif act == "gelu":
        curve = g.node("Erf", g.node("Div", h, g.constant("root", 2**0.5), to="scaled"), to="curve")
        half = g.node("Mul", h, g.node("Add", curve, g.constant("one", 1.0), to="raised"), to="twice")
        h = g.node("Mul", half, g.constant("half", 0.5), to="act")
    elif act:
        h = g.node(act, h, to="act", **({"alpha": 1.0} if act == "Elu" else {}))
    y = g.node("MatMul", h, g.weight("v", 128, 64), to="down")
    if biased:
        y = g.node("Add", y, g.weight("c", 64), to="shifted")
    if end in ("residual", "both"):
        y = g.node("Add", "x", y, to="mid")
    if end in ("relu", "both"):
        y = g.node("Relu", y, to="cut")
    g.node("Identity", y, to="y")
    return g.model("y")


def rms_rsqrt() -> bytes:
    """RMSNorm as everybody writes it: x * (1 / sqrt(mean(x^2) + eps)) * w."""
    g = Sketch(x=(1, 4, 64))
    mean = g.node("ReduceMean", g.node("Pow", "x", g.constant("two", 2.0), to="sq"), to="mean", axes=[-1])
    root = g.node("Sqrt", g.node("Add", mean, g.constant("eps", 1e-6), to="me"), to="root")
    g.node("Mul", "x", g.node("Div", g.constant("one", 1.0), root, to="inv"), to="n")
    g.node("Mul", g.weight("w", 64), "n", to="y")
    return g.model("y")


def rms_divided() -> bytes:
    """The same as x / sqrt(mean(x^2) + eps), which CV18xx takes."""
    g = Sketch(x=(1, 4, 64))
    mean = g.node("ReduceMean", g.node("Pow", "x", g.constant("two", 2.0), to="sq"), to="mean", axes=[-1])
    root = g.node("Sqrt", g.node("Add", mean, g.constant("eps", 1e-6), to="me"), to="root")
    g.node("Mul", g.weight("w", 64), g.node("Div", "x", root, to="n"), to="y")
    return g.model("y")


def gqa_expand(rows: int = 16, width: int = 32) -> bytes:
    """Two key heads repeated for eight query heads through a fifth axis."""
    g = Sketch(q=(1, 8, 1, width), ks=(1, 2, rows, width), vs=(1, 2, rows, width))

    def repeated(name: str) -> str:
        up = g.node("Unsqueeze", name, g.constant(f"{name}_axis", [2]), to=f"{name}_5d")
        wide = g.node("Expand", up, g.constant(f"{name}_shape", [1, 2, 4, rows, width]), to=f"{name}_wide")
        return g.node("Reshape", wide, g.constant(f"{name}_flat", [1, 8, rows, width]), to=f"{name}_all")

    keys, values = repeated("ks"), repeated("vs")
    scores = g.node("MatMul", "q", g.node("Transpose", keys, to="kt", perm=[0, 1, 3, 2]), to="scores")
    g.node("MatMul", g.node("Softmax", scores, to="p", axis=-1), values, to="y")
    return g.model("y")


def tiled(shape: tuple[int, ...], repeats: tuple[int, ...]) -> bytes:
    """One activation repeated."""
    g = Sketch(x=shape)
    g.node("Relu", g.node("Tile", "x", g.constant("repeats", list(repeats)), to="t"), to="y")
    return g.model("y")


def head() -> bytes:
    """An embedding, and queries rotated by cosine and sine that are taken out of one input as a whole."""
    g = Sketch(rope=(2, 1, 1, 64))
    g.node("Gather", g.weight("table", 100, 64), g.tokens("ids", (1, 1)), to="embed", axis=0)
    flat = g.node("MatMul", "embed", g.weight("w", 64, 256), to="flat")
    split = g.node("Reshape", flat, g.constant("heads", [1, 1, 4, 64]), to="split")
    g.node("Transpose", split, to="q", perm=[0, 2, 1, 3])

    def taken(source: str, name: str, first: int, last: int, axis: int) -> str:
        ends = (
            g.constant(f"{name}_{part}", [at]) for part, at in (("from", first), ("to", last), ("axis", axis))
        )
        return g.node("Slice", source, *ends, to=name)

    left, right = taken("q", "left", 0, 32, 3), taken("q", "right", 32, 64, 3)
    turned = g.node("Concat", g.node("Neg", right, to="minus"), left, to="turned", axis=-1)
    cos, sin = taken("rope", "cos", 0, 1, 0), taken("rope", "sin", 1, 2, 0)
    g.node("Add", g.node("Mul", "q", cos, to="qc"), g.node("Mul", turned, sin, to="qs"), to="y")
    return g.model("embed", "y")


def gqa_grouped() -> bytes:
    """The same with the queries of a key head stacked: nothing is repeated."""
    g = Sketch(q=(1, 8, 1, 32), ks=(1, 2, 16, 32), vs=(1, 2, 16, 32))
    stacked = g.node("Reshape", "q", g.constant("group", [1, 2, 4, 32]), to="qg")
    scores = g.node("MatMul", stacked, g.node("Transpose", "ks", to="kt", perm=[0, 1, 3, 2]), to="scores")
    mixed = g.node("MatMul", g.node("Softmax", scores, to="p", axis=-1), "vs", to="mixed")
    g.node("Reshape", mixed, g.constant("flat", [1, 8, 1, 32]), to="y")
    return g.model("y")


def attention(rows: int = 32) -> bytes:
    """A whole attention layer over its own rows, key heads repeated: chips that fuse it build a kernel."""
    g = Sketch(x=(1, rows, 256))

    def heads(name: str, count: int) -> str:
        flat = g.node("MatMul", "x", g.weight(f"w{name}", 256, count * 64), to=f"{name}_flat")
        shape = g.constant(f"{name}_heads", [1, rows, count, 64])
        split = g.node("Reshape", flat, shape, to=f"{name}_split")
        return g.node("Transpose", split, to=name, perm=[0, 2, 1, 3])

    def repeated(name: str) -> str:
        up = g.node("Unsqueeze", name, g.constant(f"{name}_axis", [2]), to=f"{name}_5d")
        wide = g.node("Expand", up, g.constant(f"{name}_wide", [1, 2, 2, rows, 64]), to=f"{name}_all")
        return g.node("Reshape", wide, g.constant(f"{name}_four", [1, 4, rows, 64]), to=f"{name}_rep")

    q, k, v = heads("q", 4), repeated(heads("k", 2)), repeated(heads("v", 2))
    scores = g.node("MatMul", q, g.node("Transpose", k, to="kt", perm=[0, 1, 3, 2]), to="raw")
    scores = g.node("Mul", scores, g.constant("scale", 0.125), to="scores")
    mixed = g.node("MatMul", g.node("Softmax", scores, to="p", axis=-1), v, to="mixed")
    back = g.node("Transpose", mixed, to="back", perm=[0, 2, 1, 3])
    flat = g.node("Reshape", back, g.constant("flat", [1, rows, 256]), to="joined")
    g.node("MatMul", flat, g.weight("wo", 256, 256), to="y")
    return g.model("y")


def where_mask() -> bytes:
    """Scores hidden by a comparison that is made in the graph."""
    g = Sketch(scores=(1, 4, 8, 8), mask=(1, 1, 8, 8))
    hidden = g.node("Less", "mask", g.constant("half", 0.5), to="hidden")
    g.node("Where", hidden, g.constant("low", -10000.0), "scores", to="masked")
    g.node("Softmax", "masked", to="y", axis=-1)
    return g.model("y")


def runtime_gather() -> bytes:
    """Rows of an activation picked by an index that comes in."""
    g = Sketch(x=(1, 8, 64))
    g.node("Relu", g.node("Gather", "x", g.tokens("index", (2,)), to="rows", axis=1), to="y")
    return g.model("y")


def wide_gather() -> bytes:
    """The same along an axis that leaves no matrix."""
    g = Sketch(x=(1, 2, 8, 64))
    g.node("Relu", g.node("Gather", "x", g.tokens("index", (3,)), to="rows", axis=2), to="y")
    return g.model("y")


def scatter() -> bytes:
    """A row written into a cache inside the graph."""
    g = Sketch(cache=(1, 8, 64), row=(1, 1, 64))
    index = g.constant("index", np.full((1, 1, 64), 3, np.int64))
    g.node("Relu", g.node("ScatterElements", "cache", index, "row", to="written", axis=1), to="y")
    return g.model("y")


def sine() -> bytes:
    """A rotary table computed in the graph."""
    g = Sketch(x=(1, 4, 64))
    g.node("Mul", "x", g.node("Sin", "x", to="sin"), to="y")
    return g.model("y")


def rope_on_axis_0() -> bytes:
    """Cosine and sine taken out of one input along its first axis."""
    g = Sketch(x=(1, 1, 4, 32), rope=(2, 1, 1, 32))

    def taken(name: str, at: int) -> str:
        first, last = g.constant(f"{name}_from", [at]), g.constant(f"{name}_to", [at + 1])
        return g.node("Slice", "rope", first, last, g.constant(f"{name}_axis", [0]), to=name)

    g.node(
        "Add",
        g.node("Mul", "x", taken("cos", 0), to="xc"),
        g.node("Mul", "x", taken("sin", 1), to="xs"),
        to="y",
    )
    return g.model("y")


def unknown_op() -> bytes:
    """An operator that the converter does not know."""
    g = Sketch(x=(1, 4, 64))
    g.node("Relu", g.node("Cast", g.node("IsNaN", "x", to="nan"), to="f", to_=1), to="y")
    g.nodes[1] = helper.make_node("Cast", ["nan"], ["f"], to=1)
    return g.model("y")


def embedding() -> bytes:
    """Rows of a constant table picked by tokens that come in."""
    g = Sketch(x=(1, 4, 64))
    tokens = g.tokens("ids", (1, 4))
    g.node("Add", "x", g.node("Gather", g.weight("table", 100, 64), tokens, to="rows", axis=0), to="y")
    return g.model("y")


def gelu(order: str) -> bytes:
    """GELU: `known` x (1 + erf) 0.5, `halved` (x 0.5) (1 + erf), `dynamo` x (0.5 (1 + erf)), `scaled` x."""
    g = Sketch(x=(1, 4, 64))
    up = g.node("MatMul", "x", g.weight("w", 64, 64), to="up")
    half = g.constant("half", 0.5)
    if order == "scaled":
        inner = g.node("Mul", up, g.constant("root", 0.5**0.5), to="inner")
    else:
        inner = g.node("Div", up, g.constant("root", 2**0.5), to="inner")
    raised = g.node("Add", g.node("Erf", inner, to="curve"), g.constant("one", 1.0), to="raised")
    if order == "dynamo":
        g.node("Mul", up, g.node("Mul", half, raised, to="mid"), to="y")
    elif order == "halved":
        g.node("Mul", g.node("Mul", up, half, to="mid"), raised, to="y")
    else:
        g.node("Mul", g.node("Mul", up, raised, to="mid"), half, to="y")
    return g.model("y")


def bare_output(kind: str) -> bytes:
    """A second output for which nothing is computed, or hardly anything (`sum`, `reshape`, `twice`)."""
    g = Sketch(x=(1, 4, 64))
    g.node("Relu", "x", to="y")
    if kind == "input":
        return g.model("y", "x")
    if kind == "weight":
        g.constant("z", np.ones((1, 4, 64)))
        return g.model("y", "z")
    if kind == "identity":
        g.node("Identity", "x", to="z")
    elif kind == "cast":
        g.nodes.append(helper.make_node("Cast", ["x"], ["z"], to=1))
    elif kind == "joined":
        g.node("Concat", "x", to="z", axis=1)
    elif kind == "constant":
        g.node("Relu", g.constant("k", np.ones((1, 4, 64))), to="z")
    elif kind == "reshape":
        g.node("Reshape", "x", g.constant("shape", [1, 8, 32]), to="z")
    elif kind == "twice":
        g.node("Identity", "y", to="z")
    else:
        g.node("Add", "x", g.constant("zero", 0.0), to="z")
    return g.model("y", "z")


def branch(*, fixed: bool) -> bytes:
    """If, by a constant or by what comes in; its branches read the input."""

    def way(op: str) -> onnx.GraphProto:
        end = helper.make_tensor_value_info(f"by_{op}", TensorProto.FLOAT, (1, 4, 64))
        return helper.make_graph([helper.make_node(op, ["x"], [end.name])], op, [], [end])

    g = Sketch(x=(1, 4, 64))
    if fixed:
        g.weights.append(numpy_helper.from_array(np.array(True), "which"))
    else:
        g.inputs.append(helper.make_tensor_value_info("flag", TensorProto.FLOAT, ()))
        g.nodes.append(helper.make_node("Cast", ["flag"], ["which"], to=TensorProto.BOOL))
    g.node("If", "which", to="chosen", then_branch=way("Relu"), else_branch=way("Neg"))
    g.node("Sigmoid", "chosen", to="y")
    return g.model("y")


def loop() -> bytes:
    """Three turns of a product."""

    def value(name: str, kind: int, shape: tuple[int, ...] = ()) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["v", "v"], ["w"])]
    ins = [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("v", 1, (1, 4, 64))]
    body = helper.make_graph(nodes, "turn", ins, [value("on", TensorProto.BOOL), value("w", 1, (1, 4, 64))])
    g = Sketch(x=(1, 4, 64))
    g.weights.append(numpy_helper.from_array(np.array(True), "first"))
    g.node("Loop", g.constant("turns", 3), "first", "x", to="last", body=body)
    g.node("Relu", "last", to="y")
    return g.model("y")


def alone(op: str, **attributes: Any) -> bytes:
    """One operator on the input."""
    g = Sketch(x=(1, 4, 64))
    g.node(op, "x", to="y", **attributes)
    return g.model("y")


def prelu() -> bytes:
    """Slopes that come in."""
    g = Sketch(x=(1, 4, 64), slope=(1, 4, 64))
    g.node("PRelu", "x", "slope", to="y")
    return g.model("y")


def picked() -> bytes:
    """The place of the largest value, used further."""
    g = Sketch(x=(1, 4, 64))
    g.node("ArgMax", "x", to="place", axis=-1, keepdims=0)
    g.nodes.append(helper.make_node("Cast", ["place"], ["number"], to=TensorProto.FLOAT))
    g.node("Add", "number", g.constant("one", 1.0), to="y")
    return g.model("y")
