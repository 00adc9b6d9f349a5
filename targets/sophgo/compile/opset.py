"""ONNX newer than what the converter reads, written again in operators of opset 17. Every change is noted.

The converter takes opset 17 and IR 9 at most; newer exporters write 18 and more. Operators that changed only
in the types that they take pass; those listed here are rewritten; anything else is refused by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from parity.harness.errors import UserError

READS = 17
READS_IR = 8

_REDUCE = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)


def lowered(graph: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The same graph in opset 17, and a note per change; as it is where it is old enough.

    UserError for bytes that are no ONNX, weights outside of the file, or an operator without an old form.
    """
    model = load(graph)
    found = opset_of(model)
    if found <= READS and model.ir_version <= READS_IR + 1:
        return graph, ()
    writer = _Writer(model, found)
    writer.rewrite()
    notes = (
        [f"opset {found}, IR {model.ir_version} rewritten to {READS}, {READS_IR}"] if writer.changed else []
    )
    notes += [f"{count} {change}" for change, count in sorted(writer.changed.items())]
    if not writer.changed:
        notes = [f"opset {found}, IR {model.ir_version} relabelled {READS}, {READS_IR}: no operator differs"]
    model.ir_version = READS_IR
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, READS)
    return model.SerializeToString(), tuple(notes)


def load(graph: bytes) -> onnx.ModelProto:
    """Parse a graph; UserError for what is not one."""
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf raises its own kinds
        raise UserError(f"onnx: is not an ONNX file ({str(error).splitlines()[0]})") from error
    if not model.graph.node or not model.opset_import:
        raise UserError("onnx: is not an ONNX file, or holds an empty graph")
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


class _Writer:
    """Rewrites the nodes of a model in place."""

    def __init__(self, model: onnx.ModelProto, found: int) -> None:
        self.graph, self.found = model.graph, found
        self.changed: Counter[str] = Counter()
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t

    def rewrite(self) -> None:
        """Every node, in order."""
        nodes = [new for node in self.graph.node for new in self._rewritten(node)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _rewritten(self, node: NodeProto) -> Sequence[NodeProto]:
        if node.domain not in ("", "ai.onnx"):
            return [node]
        rule = _RULES.get(node.op_type)
        if rule is not None and (made := rule(self, node)) is not None:
            return made
        if rule is None and not _same(node, self.found):
            raise UserError(
                f"onnx: {node.op_type} ({node.output[0]}) of opset {self.found} has no older form here; "
                f"export with opset {READS}"
            )
        return [node]

    def constant(self, node: NodeProto, at: int, what: str) -> list[int] | None:
        """Whole numbers of an input that must be known before the graph runs; None where it is left out."""
        if len(node.input) <= at or not node.input[at]:
            return None
        tensor = self._constants.get(node.input[at])
        if tensor is None:
            raise UserError(
                f"onnx: {node.op_type} ({node.output[0]}): its {what} are computed while the graph runs, "
                f"which opset {READS} cannot say; make them constant"
            )
        return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]

    def keep(self, name: str, values: np.ndarray) -> str:
        """Add a constant of the graph's own."""
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _same(node: NodeProto, found: int) -> bool:
    """Whether a node means the same in both opsets: it uses nothing that was added after the older one."""
    try:
        old, new = (onnx.defs.get_schema(node.op_type, version) for version in (READS, found))
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    names = [port.name for port in old.inputs]
    return (
        names == [port.name for port in new.inputs][: len(names)]
        and len(node.input) <= len(names)
        and all(attribute.name in old.attributes for attribute in node.attribute)
    )


def _drop(node: NodeProto, name: str) -> int | None:
    """Remove an attribute; its whole number."""
    for at, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[at]
            return int(attribute.i)
    return None


def _reduce(writer: _Writer, node: NodeProto) -> Sequence[NodeProto] | None:
    axes = writer.constant(node, 1, "axes")
    idle = _drop(node, "noop_with_empty_axes")
    if axes is None and len(node.input) < 2 and idle is None:
        return None
    del node.input[1:]
    writer.changed[f"{node.op_type}: axes from input to attribute"] += 1
    if not axes and idle:
        return [helper.make_node("Identity", [node.input[0]], list(node.output))]
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))
    return [node]


def _split(writer: _Writer, node: NodeProto) -> Sequence[NodeProto] | None:
    count = _drop(node, "num_outputs")
    if count is None:
        return None
    writer.changed["Split: num_outputs dropped"] += 1
    size = _size_along(writer, node)
    if size is not None and size % count:
        step = math.ceil(size / count)
        parts = [step] * (count - 1) + [size - step * (count - 1)]
        node.input.append(writer.keep(f"{node.output[0]}__parts", np.array(parts, np.int64)))
    return [node]


def _size_along(writer: _Writer, node: NodeProto) -> int | None:
    """Size of the axis that is split, from the declared shapes; None if nobody declared it."""
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
    for value in (*writer.graph.value_info, *writer.graph.input):
        if value.name == node.input[0]:
            dims = value.type.tensor_type.shape.dim
            return int(dims[axis].dim_value) or None
    return None


def _pad(writer: _Writer, node: NodeProto) -> Sequence[NodeProto] | None:
    if len(node.input) > 3 and node.input[3]:
        raise UserError(
            f"onnx: Pad ({node.output[0]}) names axes, which opset {READS} cannot; export with opset {READS}"
        )
    return None


def _cast(writer: _Writer, node: NodeProto) -> Sequence[NodeProto] | None:
    for name in ("saturate", "round_mode"):
        if _drop(node, name) is not None:
            writer.changed["Cast: attributes for 8-bit floats dropped"] += 1
    return None


def _gelu(writer: _Writer, node: NodeProto) -> Sequence[NodeProto]:
    writer.changed["Gelu written out"] += 1
    x, out = node.input[0], node.output[0]
    name = {
        part: f"{out}__{part}" for part in ("half", "one", "scale", "cube", "root", "inner", "curve", "sum")
    }

    def constant(part: str, value: float) -> str:
        return writer.keep(name[part], np.array(value, np.float32))

    half, one = constant("half", 0.5), constant("one", 1.0)
    if any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute):
        root, cube = constant("root", math.sqrt(2 / math.pi)), constant("cube", 0.044715)
        chain = _chain(
            out, [("Mul", x, x), ("Mul", "", x), ("Mul", "", cube), ("Add", "", x), ("Mul", "", root)]
        )
        curve = helper.make_node("Tanh", [chain[-1].output[0]], [name["curve"]])
    else:
        chain = _chain(out, [("Div", x, constant("root", math.sqrt(2.0)))])
        curve = helper.make_node("Erf", [chain[-1].output[0]], [name["curve"]])
    return [
        *chain,
        curve,
        helper.make_node("Add", [name["curve"], one], [name["sum"]]),
        helper.make_node("Mul", [x, name["sum"]], [name["inner"]]),
        helper.make_node("Mul", [name["inner"], half], [out]),
    ]


def _chain(out: str, steps: Sequence[tuple[str, str, str]]) -> list[NodeProto]:
    """Nodes of two inputs each; an empty left input is the result before."""
    nodes: list[NodeProto] = []
    for at, (op, left, right) in enumerate(steps):
        before = left or nodes[-1].output[0]
        nodes.append(helper.make_node(op, [before, right], [f"{out}__{at}"]))
    return nodes


_RULES: dict[str, Callable[[_Writer, NodeProto], Sequence[NodeProto] | None]] = {
    **dict.fromkeys(_REDUCE, _reduce),
    "Split": _split,
    "Pad": _pad,
    "Cast": _cast,
    "CastLike": _cast,
    "Gelu": _gelu,
}
