"""The chain tap -> ONNX value -> tensor of the Top, TPU and final graph -> output of the artefact.

Nothing is guessed from spelling: the converter says which tensor a value became, later graphs keep that
name as long as the tensor lives, casts are known by their operator, and outputs go by position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .mlir import Graph, Op

#: Copies between memories and brackets around groups: no tensor of their own.
_HELPERS = ("tpu.Load", "tpu.Store", "tpu.Group", "tpu.Yield", "tpu.Move", "top.Weight", "top.None")
_CASTS = ("tpu.Cast", "tpu.DtypeCast")


def tensors(graph: Graph) -> Iterator[tuple[str, int, Op]]:
    """Name, number of the result and operator of every tensor that is computed or handed in, each once."""
    seen: set[str] = set()
    for op in graph.ops:
        if op.kind in _HELPERS:
            continue
        for at, name in enumerate(op.names[: len(op.formats)]):
            if name not in seen:
                seen.add(name)
                yield name, at, op


def is_cast(op: Op) -> bool:
    """Whether an operator only changes the number format; some casts are run by the chip's own processor."""
    return op.kind in _CASTS or (op.kind == "tpu.GenericCpu" and '"quant"' in op.attributes)


@dataclass(frozen=True)
class Chain:
    """One ONNX value and the tensor that holds it at each level; None where it was fused away."""

    onnx: str
    tap: str | None
    top: str | None
    tpu: str | None
    final: str | None

    @property
    def status(self) -> str:
        """`present` in the artefact, or `fused` into another operator."""
        return "fused" if self.final is None else "present"


@dataclass(frozen=True)
class Names:
    """`computed` are the ONNX graph's inputs and computed values in order, `bound` what the converter made of
    them (value -> Top tensor), `outputs` the graph's outputs in order, `taps` ONNX value -> tap."""

    computed: tuple[str, ...]
    bound: Mapping[str, str]
    outputs: tuple[str, ...]
    taps: Mapping[str, str]
    top: Graph
    tpu: Graph
    final: Graph

    def chains(self) -> list[Chain]:
        """Every value of the ONNX graph, in its order."""
        held = {level: {name for name, *_ in tensors(graph)} for level, graph in self._levels.items()}
        return [
            Chain(
                value, self.taps.get(value), *(self._at(value, level, held[level]) for level in self._levels)
            )
            for value in self.computed
        ]

    def onnx_of(self) -> dict[str, str]:
        """Top tensor -> ONNX value; of several under one tensor, the one with a tap, then an output."""
        rank = sorted(self.computed, key=lambda value: (value not in self.taps, value not in self.outputs))
        table: dict[str, str] = {}
        for value in rank:
            if value in self.bound:
                table.setdefault(self.bound[value], value)
        return table

    def described(self) -> list[dict[str, Any]]:
        """One entry per tensor of the final graph, then one per value that is no tensor there."""
        onnx_of = self.onnx_of()
        cast_of: dict[str, str] = {}
        entries = []
        outputs = dict(zip(self.final.list_of("outputs"), self.outputs, strict=False))
        for name, at, op in tensors(self.final):
            source = self._source(op, cast_of) if is_cast(op) else None
            if source is not None:
                cast_of[name] = source
            value = outputs.get(name) or onnx_of.get(name) or onnx_of.get(source or "")
            form = op.formats[at]
            entries.append(
                {
                    "mlir": name,
                    "onnx": value,
                    "tap": self.taps.get(value or ""),
                    "kind": op.kind,
                    "cast_of": source,
                    "format": form.name,
                    "scale": form.scale,
                    "zero_point": form.zero_point,
                    "shape": None if form.shape is None else list(form.shape),
                    "status": "present",
                }
            )
        return entries + [_fused(chain) for chain in self.chains() if chain.final is None]

    @property
    def _levels(self) -> dict[str, Graph]:
        return {"top": self.top, "tpu": self.tpu, "final": self.final}

    def _at(self, value: str, level: str, held: set[str]) -> str | None:
        """By the tensor's own name; an output also by its place, where its name was lost in a cast."""
        if self.bound.get(value) in held:
            return self.bound[value]
        return _output(self._levels[level], self.outputs.index(value)) if value in self.outputs else None

    def _source(self, op: Op, cast_of: Mapping[str, str]) -> str | None:
        """What a cast casts: through loads, which copy, and casts of casts."""
        loads = {name: load.operands[:1] for load in self._loads for name in load.names}
        name = op.operands[0] if op.operands else ""
        while name in loads and loads[name] and loads[name][0] != name:
            name = loads[name][0]
        return cast_of.get(name, name) or None

    @cached_property
    def _loads(self) -> list[Op]:
        return [op for op in self.final.ops if op.kind == "tpu.Load"]


def holding(graph: Graph, bound: Mapping[str, str], outputs: Sequence[str]) -> dict[str, str]:
    """ONNX value -> the tensor that holds it in a graph, as `Names` would say of that graph alone."""
    known = {name for name, *_ in tensors(graph)}
    found = {value: name for value, name in bound.items() if name in known}
    for at, value in enumerate(outputs):
        if value not in found and (name := _output(graph, at)) is not None:
            found[value] = name
    return found


def _output(graph: Graph, at: int) -> str | None:
    names = graph.list_of("outputs") or graph.returns
    return names[at] if at < len(names) else None


def _fused(chain: Chain) -> dict[str, Any]:
    blank = dict.fromkeys(("kind", "cast_of", "format", "scale", "zero_point", "shape"))
    return {"mlir": None, "onnx": chain.onnx, "tap": chain.tap, **blank, "status": "fused"}
