"""Matrix products that the compiler rewrites wrongly together with what follows them, and attention."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from onnx import NodeProto

from .chips import Chip, Mode
from .forms import Found
from .view import View

_PRODUCTS = ("MatMul", "Gemm")
#: Elementwise operators that activations are made of.
_ELEMENTWISE = ("Mul", "Add", "Div", "Pow", "Sigmoid", "Tanh", "Erf", "Elu", "Softplus", "HardSigmoid")
#: One of these makes a chain of them an activation; Relu, LeakyRelu and Exp are left alone, and GELU is
#: by all chips but BM1684X.
_CURVES = frozenset(("Sigmoid", "Tanh", "Erf", "Elu", "Softplus", "HardSigmoid"))
_APART = "give the second product a bias (zeros will do)"


def relu_on_halves(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """act(x W) V with a Relu behind it is computed in two halves, each cut off before they are added."""
    for product in _mlps(view, chip, mode):
        relu = _only_reader(view, _biased(view, product), "Relu")
        if relu is not None:
            what = f"{chip.name} splits the product {product.output[0]} and applies the Relu to each half"
            yield Found(relu, "wrong", what, "put something between the product and the Relu, or use f32")


def residual_twice(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """act(x W) V + residual of one row is computed in two halves, and the residual added to each."""
    for product in _mlps(view, chip, mode):
        added = _only_reader(view, product, "Add")
        if added is not None and len(view.runtime(added)) == 2 and _one_row(view, product):
            what = f"{chip.name} splits the product {product.output[0]} and adds the residual to each half"
            yield Found(added, "wrong", what, f"{_APART}, or use f32")


def lost_relu(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """x W + residual of one row becomes a product with a bias, and a Relu behind it is forgotten."""
    if mode.weight_bits is not None:
        return
    for product in _products(view):
        added = _only_reader(view, product, "Add")
        if added is None or len(view.runtime(added)) != 2 or not _one_row(view, product):
            continue
        relu = _only_reader(view, added, "Relu")
        if relu is not None:
            what = f"the sum becomes a bias of {product.output[0]}, and the Relu behind it is lost"
            yield Found(relu, "wrong", what, _APART)


def attention_kernel(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Product, scale, [mask,] softmax, product: in f16 fused into a kernel that is built at compile time."""
    if mode.format != "f16":
        return
    for node in view.nodes:
        if node.op_type != "Softmax":
            continue
        scores = view.producer.get(node.input[0])
        while scores is not None and scores.op_type in ("Add", "Mul", "Div", "Reshape"):
            scores = view.producer.get(view.runtime(scores)[0])
        mixed = any(reader.op_type == "MatMul" for reader in view.readers.get(node.output[0], []))
        if scores is not None and scores.op_type == "MatMul" and mixed:
            what = f"f16 attention is a kernel on {chip.name}, built while compiling with cmake, make and g++"
            yield Found(node, "note", what, "where they are missing, use bf16")


def _products(view: View) -> Iterator[NodeProto]:
    """Products with constant weights."""
    for node in view.nodes:
        if node.op_type in _PRODUCTS and view.runtime(node) == [node.input[0]]:
            yield node


def _mlps(view: View, chip: Chip, mode: Mode) -> Iterator[NodeProto]:
    """The second product of each act(x W) V that is split; only 16-bit floats are."""
    if mode.format not in ("f16", "bf16") or mode.weight_bits is not None:
        return
    for product in _products(view):
        curves = _CURVES if chip.name == "bm1684x" else _CURVES - {"Erf"}
        first = _before_activation(view, product.input[0], curves)
        if first is not None and len(view.readers[first.input[0]]) == 1:
            yield product


def _before_activation(view: View, value: str, curves: frozenset[str]) -> NodeProto | None:
    """The only product behind a value, through elementwise operators of which one is a curve."""
    waiting, ops, sources = [value], set(), {}
    while waiting:
        node = view.producer.get(waiting.pop())
        if node is None:
            return None
        if node.op_type in _PRODUCTS:
            sources[node.output[0]] = node
        elif node.op_type in _ELEMENTWISE:
            ops.add(node.op_type)
            waiting += view.runtime(node)
        else:
            return None
    (first, *others) = sources.values()
    whole = view.runtime(first) == [first.input[0]]
    return first if not others and whole and ops & curves else None


def _biased(view: View, product: NodeProto) -> NodeProto:
    """The Add of a constant behind a product, or the product itself."""
    added = _only_reader(view, product, "Add")
    return added if added is not None and len(view.runtime(added)) == 1 else product


def _only_reader(view: View, node: NodeProto, op: str) -> NodeProto | None:
    readers = view.readers.get(node.output[0], [])
    return readers[0] if len(readers) == 1 and readers[0].op_type == op else None


def _one_row(view: View, node: NodeProto) -> bool:
    shape = view.shape(node.output[0])
    return shape is not None and prod(shape[:-1]) == 1
