"""Forms that a chip is known to abort on, or to compute wrongly, found in the ONNX graph before compiling.

Each rule was measured on the compiler and the simulator; tests/toolchain holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import NodeProto

from .chips import Chip, Mode, chip_named, mode_for
from .finding import Finding
from .opset import load
from .view import View

#: The first chips of the family: they share one instruction set.
CV18XX = ("cv180x", "cv181x", "cv182x", "cv183x")
#: Chips that compile a kernel for attention at compile time.
FUSING = ("bm1688", "cv186x")

_FEED = "compute it on the host and feed the result in"
_MASK = "add a float mask that is fed in: 0 where to look, -1e4 where not"
#: Operators on values that are known only at run time, which CV18xx has not -> what to do instead.
_NO_CV18XX: dict[str, str] = {
    **dict.fromkeys(("Sin", "Cos", "Tan"), f"{_FEED} (rotary tables as an input)"),
    **dict.fromkeys(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"), _MASK),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), _MASK),
    **dict.fromkeys(("ScatterElements", "ScatterND"), "keep the cache outside of the graph and concatenate"),
    **dict.fromkeys(("Round", "Sign", "Mod", "Trilu"), _FEED),
}
_NO_BM1684 = {name: _NO_CV18XX[name] for name in ("ScatterElements", "ScatterND", "Less", "Greater", "Equal")}
#: They only look at a buffer otherwise: no command is made for them.
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
#: Bytes of a block that Tile can copy on CV18xx; its strides have 16 bits.
_TILE_BYTES = 65536


def lint(
    graph: bytes | onnx.ModelProto, chip: str, mode: str, *, taps: Mapping[str, str] | None = None
) -> list[Finding]:
    """What is known to go wrong with a graph on a chip in a mode, in execution order.

    `taps` maps ONNX values to taps, so that a finding has the name that a person knows.
    """
    row = chip_named(chip)
    view = View(load(graph) if isinstance(graph, bytes) else graph)
    rules = _Rules(view, row, mode_for(row, mode), dict(taps or {}))
    order = {name: at for at, node in enumerate(view.nodes) for name in node.output}
    return sorted(rules.findings(), key=lambda finding: order.get(finding.value, -1))


@dataclass(frozen=True)
class _Rules:
    view: View
    chip: Chip
    mode: Mode
    taps: dict[str, str]

    def findings(self) -> Iterator[Finding]:
        """Every rule of the chip's family."""
        yield from self._open_shapes()
        if self.chip.name in CV18XX:
            yield from self._missing(_NO_CV18XX)
            yield from self._where()
            yield from self._erf()
            yield from self._rms()
            yield from self._gather()
            yield from self._tile()
            if self.mode.calibrated:
                yield from self._empty_program()
        if self.chip.name == "bm1684":
            yield from self._missing(_NO_BM1684)
            yield from self._rms()
        if self.chip.name in FUSING and self.mode.format == "f16":
            yield from self._attention()

    def _found(self, node: NodeProto, severity: str, what: str, rewrite: str) -> Finding:
        value = node.output[0]
        name = f"{node.op_type} {value}"
        return Finding(name, self._tap(value), what, rewrite, severity, value)

    def _tap(self, value: str) -> str | None:
        """The tap on a value, or on the next one that hangs on it alone."""
        for _ in range(3):
            if value in self.taps:
                return self.taps[value]
            readers = self.view.readers.get(value, [])
            if len(readers) != 1:
                return None
            value = readers[0].output[0]
        return None

    def _open_shapes(self) -> Iterator[Finding]:
        for name in self.view.inputs:
            if self.view.shape(name) is None:
                yield Finding(
                    f"input {name}",
                    None,
                    "has open sizes, which the converter refuses",
                    "export with fixed shapes",
                    "abort",
                    name,
                )

    def _missing(self, table: Mapping[str, str]) -> Iterator[Finding]:
        for node in self.view.nodes:
            if node.op_type in table and self.view.runtime(node):
                what = f"{self.chip.name} has no {node.op_type} of values that come in at run time"
                yield self._found(node, "abort", what, table[node.op_type])

    def _where(self) -> Iterator[Finding]:
        for node in self.view.nodes:
            if node.op_type == "Where" and node.input[0] in self.view.runtime(node):
                what = f"{self.chip.name} cannot choose by a condition that comes in at run time"
                yield self._found(node, "abort", what, _MASK)

    def _erf(self) -> Iterator[Finding]:
        """Alone; inside of GELU the converter knows it."""
        for node in self.view.nodes:
            readers = self.view.readers.get(node.output[0], [])
            if node.op_type == "Erf" and not any(reader.op_type == "Add" for reader in readers):
                yield self._found(node, "abort", f"{self.chip.name} has no Erf outside of GELU", _FEED)

    def _rms(self) -> Iterator[Finding]:
        """(x * (1 / sqrt(mean(x * x) + eps))) * w is fused into an operator that the chip lacks."""
        view = self.view
        for node in view.nodes:
            if node.op_type != "Mul" or len(view.runtime(node)) != 1:
                continue
            inner = view.maker(view.runtime(node)[0], "Mul")
            if inner is not None and any(self._inverse_rms(name) in inner.input for name in inner.input):
                yield self._found(
                    node,
                    "abort",
                    f"RMSNorm by the reciprocal root is fused, and {self.chip.name} has no RMSNorm",
                    "write x / sqrt(mean(x * x) + eps) * w",
                )

    def _inverse_rms(self, name: str) -> str | None:
        """The x of 1 / sqrt(mean(x * x) + eps), if `name` is that."""
        view = self.view
        inverse = view.maker(name, "Div", "Reciprocal")
        if inverse is None or (inverse.op_type == "Div" and view.number(inverse.input[0]) != 1.0):
            return None
        root = view.maker(inverse.input[-1], "Sqrt")
        shifted = view.maker(root.input[0], "Add") if root is not None else None
        mean = next(
            (m for part in (shifted.input if shifted else ()) if (m := view.maker(part, "ReduceMean"))), None
        )
        square = view.maker(mean.input[0], "Mul", "Pow") if mean is not None else None
        return square.input[0] if square is not None else None

    def _gather(self) -> Iterator[Finding]:
        """Rows of a table are picked by the chip's own processor; other axes are not."""
        for node in self.view.nodes:
            if node.op_type != "Gather" or node.input[1] in self.view.fixed:
                continue
            shape, index = self.view.shape(node.input[0]), self.view.shape(node.input[1])
            if node.input[0] in self.view.fixed or shape is None or index is None:
                continue
            axis = self.view.attribute(node, "axis", 0) % len(shape)
            if prod(shape[:axis]) != 1 or len(shape) - axis != 2 or len(index) > 1:
                what = f"{self.chip.name} picks rows of a matrix by an index from outside, nothing else"
                yield self._found(
                    node, "abort", what, f"pick on the host, or reshape {node.input[0]} to a matrix"
                )

    def _tile(self) -> Iterator[Finding]:
        size = 1 if self.mode.calibrated else 2
        for node in self.view.nodes:
            if node.op_type not in ("Expand", "Tile") or node.input[0] in self.view.fixed:
                continue
            before, after = self.view.shape(node.input[0]), self.view.shape(node.output[0])
            if before is None or after is None:
                continue
            padded = (1,) * (len(after) - len(before)) + before
            for axis, (old, new) in enumerate(zip(padded, after, strict=True)):
                block = prod(padded[axis:]) * size
                if new != old and prod(padded[:axis]) > 1 and block >= _TILE_BYTES:
                    yield self._found(
                        node,
                        "wrong",
                        f"repeats {block} bytes at once, and {self.chip.name} gets that wrong",
                        "instead of repeating keys and values, stack the queries of a group",
                    )
                    break

    def _empty_program(self) -> Iterator[Finding]:
        """Looking at parts of an input before a step of the chip's own processor is an empty program."""
        late: set[str] = set()
        early: list[NodeProto] = []
        cpu: NodeProto | None = None
        for node in self.view.nodes:
            runtime = self.view.runtime(node)
            if not runtime:
                continue
            if node.op_type == "Gather" and node.input[1] in runtime:
                cpu = cpu or node
                late.update(node.output)
            elif late & set(runtime):
                late.update(node.output)
            else:
                early.append(node)
        if cpu is None or not early or not all(map(self._is_view, early)):
            return
        names = [f"{node.output[0]}_{node.op_type} BF16" for node in early if node.op_type not in _VIEWS]
        yield self._found(
            early[0],
            "abort",
            f"in int8 the parts of {early[0].input[0]} need no command, and the runtime aborts on the "
            f"empty program before {cpu.op_type} {cpu.output[0]}",
            f"feed the parts as inputs of their own, or keep them by a qtable: {', '.join(names)}",
        )

    def _is_view(self, node: NodeProto) -> bool:
        """Whether an operator's result lies inside of its input as it is: slices of the outermost axis do."""
        if node.op_type in _VIEWS:
            return True
        if node.op_type == "Slice":
            axes = self.view.whole(node.input[3]) if len(node.input) > 3 else None
            return axes == (0,)
        if node.op_type in ("Gather", "Split"):
            return self.view.attribute(node, "axis", 0) == 0
        return False

    def _attention(self) -> Iterator[Finding]:
        """Product, scale, [mask,] softmax, product: fused into a kernel that is built at compile time."""
        for node in self.view.nodes:
            if node.op_type != "Softmax":
                continue
            scores = self.view.producer.get(node.input[0])
            while scores is not None and scores.op_type in ("Add", "Mul", "Div", "Reshape"):
                scores = self.view.producer.get(self.view.runtime(scores)[0])
            readers = self.view.readers.get(node.output[0], [])
            if (
                scores is not None
                and scores.op_type == "MatMul"
                and any(r.op_type == "MatMul" for r in readers)
            ):
                yield self._found(
                    node,
                    "note",
                    f"f16 attention becomes a kernel on {self.chip.name}, which fails for some shapes",
                    "if it does, use bf16",
                )
