"""Forms that CV180x to CV183x do not take: operators that they lack, and some that come out wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from onnx import NodeProto

from .chips import Chip, Mode
from .forms import Found
from .view import View

_FEED = "compute it on the host and feed the result in"
_MASK = "add a float mask that is fed in: 0 where to look, -1e4 where not"
#: Operators on values that are known only at run time -> what to do instead.
_MISSING: dict[str, str] = {
    **dict.fromkeys(("Sin", "Cos", "Tan"), f"{_FEED} (rotary tables as an input)"),
    **dict.fromkeys(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"), _MASK),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), _MASK),
    **dict.fromkeys(("ScatterElements", "ScatterND"), "keep the cache outside of the graph and concatenate"),
    **dict.fromkeys(("Round", "Ceil", "Sign", "Mod", "Trilu"), _FEED),
    **dict.fromkeys(("Sinh", "Cosh", "Acos", "ReduceL1", "ReduceProd"), _FEED),
}
_LACKS_BM1684 = ("ScatterElements", "Less", "Greater", "Equal", "Ceil", "Sinh", "Cosh")
_MISSING_BM1684 = {name: _MISSING[name] for name in _LACKS_BM1684}
_GELU = "write GELU as x * (1 + erf(x / sqrt(2))) * 0.5 in this order, or take its tanh approximation"
#: They only look at a buffer otherwise: no command is made for them.
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
#: Bytes of a block that Tile can copy; its strides have 16 bits.
_TILE_BYTES = 65536
_HALF = 0.5


def missing_operators(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Operators that the chip has only for constants, which the converter folds."""
    return _missing(view, chip, _MISSING)


def missing_on_bm1684(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """The same for BM1684."""
    return _missing(view, chip, _MISSING_BM1684)


def _missing(view: View, chip: Chip, table: Mapping[str, str]) -> Iterator[Found]:
    for node in view.nodes:
        if node.op_type in table and view.runtime(node):
            what = f"{chip.name} has no {node.op_type} of values that come in at run time"
            yield Found(node, "abort", what, table[node.op_type])


def chosen_at_run_time(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Where, unless its condition is constant."""
    for node in view.nodes:
        if node.op_type == "Where" and node.input[0] in view.runtime(node):
            what = f"{chip.name} cannot choose by a condition that comes in at run time"
            yield Found(node, "abort", what, _MASK)


def lone_erf(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Erf; inside of GELU, written in one of two orders, the converter knows it."""
    for node in view.nodes:
        if node.op_type == "Erf" and view.runtime(node) and not _inside_gelu(view, node):
            raised = _only(view, node, "Add") is not None
            what = f"{chip.name} has no Erf outside of GELU" + (
                ", and this order is not known as one" * raised
            )
            yield Found(node, "abort", what, _GELU if raised else _FEED)


def _inside_gelu(view: View, erf: NodeProto) -> bool:
    """x * (1 + erf(x / c)) * 0.5 or (x * 0.5) * (1 + erf(x / c)); torch's newer exporter writes neither."""
    scaled, raised = view.maker(erf.input[0], "Div"), _only(view, erf, "Add")
    if scaled is None or raised is None or view.number(_other(raised, erf)) != 1.0:
        return False
    x, product = scaled.input[0], _only(view, raised, "Mul")
    if view.number(scaled.input[1]) is None or product is None:
        return False
    factor = _other(product, raised)
    if factor == x:
        halved = _only(view, product, "Mul")
        return halved is not None and view.number(_other(halved, product)) == _HALF
    half = view.maker(factor, "Mul")
    return half is not None and x in half.input and any(view.number(name) == _HALF for name in half.input)


def _only(view: View, node: NodeProto, op: str) -> NodeProto | None:
    """The only reader of a node if it is an `op`."""
    readers = view.readers.get(node.output[0], [])
    return readers[0] if len(readers) == 1 and readers[0].op_type == op else None


def _other(node: NodeProto, one: NodeProto) -> str:
    """The operand of a node that is not made by `one`."""
    return str(node.input[1] if node.input[0] == one.output[0] else node.input[0])


def picked_before_the_end(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """ArgMax and ArgMin, unless nothing comes behind them."""
    for node in view.nodes:
        if node.op_type in ("ArgMax", "ArgMin") and view.runtime(node) and node.output[0] in view.readers:
            what = f"{chip.name} takes {node.op_type} as the last operator only"
            yield Found(
                node, "abort", what, "hand out what it picks from, or its index, and go on from there"
            )


def wrong_floor(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Floor is compiled and computes nothing of the kind."""
    for node in view.nodes:
        if node.op_type == "Floor" and view.runtime(node):
            yield Found(node, "wrong", f"{chip.name} computes something else for Floor", _FEED)


def fused_rms_norm(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """(x * (1 / sqrt(mean(x * x) + eps))) * w is fused into an operator that the chip lacks."""
    what = f"RMSNorm by the reciprocal root is fused, and {chip.name} has no RMSNorm"
    for node in view.nodes:
        if node.op_type != "Mul" or len(view.runtime(node)) != 1:
            continue
        inner = view.maker(view.runtime(node)[0], "Mul")
        if inner is not None and any(_inverse_rms(view, name) in inner.input for name in inner.input):
            yield Found(node, "abort", what, "write x / sqrt(mean(x * x) + eps) * w")


def _inverse_rms(view: View, name: str) -> str | None:
    """The x of 1 / sqrt(mean(x * x) + eps), if `name` is that."""
    inverse = view.maker(name, "Div", "Reciprocal")
    if inverse is None or (inverse.op_type == "Div" and view.number(inverse.input[0]) != 1.0):
        return None
    root = view.maker(inverse.input[-1], "Sqrt")
    shifted = view.maker(root.input[0], "Add") if root is not None else None
    parts = shifted.input if shifted is not None else ()
    mean = next((found for part in parts if (found := view.maker(part, "ReduceMean"))), None)
    square = view.maker(mean.input[0], "Mul", "Pow") if mean is not None else None
    return square.input[0] if square is not None else None


def wide_gather(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Rows of a matrix are picked by the chip's own processor; nothing else is picked."""
    what = f"{chip.name} picks rows of a matrix by an index from outside, nothing else"
    for node in view.nodes:
        if node.op_type != "Gather" or node.input[1] in view.fixed or node.input[0] in view.fixed:
            continue
        shape, index = view.shape(node.input[0]), view.shape(node.input[1])
        if shape is None or index is None:
            continue
        axis = view.attribute(node, "axis", 0) % len(shape)
        if prod(shape[:axis]) != 1 or len(shape) - axis != 2 or len(index) > 1:
            yield Found(node, "abort", what, f"pick on the host, or reshape {node.input[0]} to a matrix")


def large_repeats(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """Repeated blocks of 64 KiB and more, behind another axis: garbage, or an abort at run time."""
    size = 1 if mode.calibrated else 2
    for node in view.nodes:
        if node.op_type not in ("Expand", "Tile") or node.input[0] in view.fixed:
            continue
        block = size * _repeated(view, node)
        if block >= _TILE_BYTES:
            what = f"repeats {block} bytes at once, and {chip.name} gets that wrong"
            rewrite = "instead of repeating keys and values, stack the queries of a group"
            yield Found(node, "wrong", what, rewrite)


def _repeated(view: View, node: NodeProto) -> int:
    """Elements of the largest block that is repeated behind another axis; 0 if none is."""
    before, after = view.shape(node.input[0]), view.shape(node.output[0])
    if before is None or after is None:
        return 0
    padded = (1,) * (len(after) - len(before)) + before
    blocks = [
        prod(padded[axis:])
        for axis, (old, new) in enumerate(zip(padded, after, strict=True))
        if new != old and prod(padded[:axis]) > 1
    ]
    return max(blocks, default=0)


def empty_program(view: View, chip: Chip, mode: Mode) -> Iterator[Found]:
    """In int8, looking at parts of an input before a step of the chip's own processor makes no command."""
    cpu, early = _before_processor(view)
    if not mode.calibrated or cpu is None or not early or not all(_is_view(view, node) for node in early):
        return
    names = [f"{node.output[0]}_{node.op_type} BF16" for node in early if node.op_type not in _VIEWS]
    yield Found(
        early[0],
        "abort",
        f"in int8 the parts of {early[0].input[0]} need no command, and the runtime aborts on the empty "
        f"program before {cpu.op_type} {cpu.output[0]}",
        f"feed the parts as inputs of their own, or keep them by a qtable: {', '.join(names)}",
    )


def _before_processor(view: View) -> tuple[NodeProto | None, list[NodeProto]]:
    """The first step that the chip's own processor runs, and what does not wait for one."""
    first: NodeProto | None = None
    late: set[str] = set()
    early: list[NodeProto] = []
    for node in view.nodes:
        runtime = view.runtime(node)
        by_processor = node.op_type == "Gather" and node.input[1] in runtime
        if by_processor or late & set(runtime):
            late.update(node.output)
            first = first or (node if by_processor else None)
        elif runtime:
            early.append(node)
    return first, early


def _is_view(view: View, node: NodeProto) -> bool:
    """Whether an operator's result lies inside of its input as it is: slices of the outermost axis do."""
    if node.op_type == "Slice":
        return len(node.input) > 3 and view.whole(node.input[3]) == (0,)
    if node.op_type in ("Gather", "Split"):
        return view.attribute(node, "axis", 0) == 0
    return node.op_type in _VIEWS
