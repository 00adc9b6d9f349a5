"""Which number formats the compiler really chose, and whether they are what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parity.harness.errors import CandidateError

from .chips import MODES, Chip, Mode
from .mlir import Graph, Op
from .names import is_cast, tensors

#: They move numbers and compute none; the compiler may move before it casts.
_MOVES = frozenset(
    f"tpu.{kind}"
    for kind in (
        *("Cast", "DtypeCast", "Reshape", "Permute", "Slice", "StridedSlice", "Concat", "Tile", "Squeeze"),
        *("Unsqueeze", "Flatten", "Split", "Unpack", "Pad", "Reverse", "Gather", "SwapChannel", "ShapeCast"),
    )
)
_FLOATS = ("f32", "f16", "bf16")
_MATMULS = ("tpu.MatMul", "tpu.A16MatMul")


@dataclass(frozen=True)
class Kept:
    """An operator that computes in another format than asked, and why that is fine."""

    tensor: str
    kind: str
    format: str
    why: str


@dataclass(frozen=True)
class Effective:
    """How many operators compute in which format, and the exceptions."""

    counts: Mapping[str, int]
    kept: tuple[Kept, ...]


def effective(tpu: Graph, top: Graph, chip: Chip, mode: Mode, qtable: Mapping[str, str]) -> Effective:
    """Read the formats back from the lowered graph.

    CandidateError with the list where the compiler put another format in the place of the one asked for;
    what `qtable` (tensor -> format) asks for is none, unless that is replaced itself.
    """
    ops = list(_computing(tpu))
    _check_asked(ops, chip, qtable)
    _check_replaced(ops, mode, chip, qtable)
    _check_weights(ops, top, mode, qtable)
    wanted = _names_of(mode)
    kept = tuple(
        Kept(
            op.name,
            op.kind,
            op.formats[0].name,
            "asked for by the qtable" if op.name in qtable else "kept so by the compiler",
        )
        for op in ops
        if op.formats[0].name not in wanted
    )
    return Effective(Counter(op.formats[0].name for op in ops), kept)


def _names_of(mode: Mode) -> tuple[str, ...]:
    """What counts as the mode's own format; sums of integers are wider."""
    return (
        ("int8", "uint8", "int16", "int32") if mode.calibrated else (mode.format, "int32", "uint16", "int16")
    )


def _computing(graph: Graph) -> Iterable[Op]:
    """Operators of the chip that compute, first results only."""
    return (
        op
        for _, at, op in tensors(graph)
        if at == 0 and op.kind.startswith("tpu.") and op.kind not in _MOVES and not is_cast(op)
    )


def _check_replaced(ops: list[Op], mode: Mode, chip: Chip, qtable: Mapping[str, str]) -> None:
    """Another 16-bit format is a replacement, float32 in its place is care; int8 must be somewhere at all."""
    others = {name for name in _FLOATS if name != mode.format and (name != "f32" or mode.calibrated)}
    replaced = [op for op in ops if op.name not in qtable and op.formats[0].name in others]
    some = mode.calibrated and any(op.formats[0].name in _names_of(mode) for op in ops)
    if replaced and not some:
        raise CandidateError(
            f"mode={mode.name}: the compiler computes {_listed(replaced)} on {chip.name} in "
            f"{replaced[0].formats[0].name} instead of {mode.format}"
        )


def _check_asked(ops: list[Op], chip: Chip, qtable: Mapping[str, str]) -> None:
    """What the qtable names is in the format that it says; float32 in the place of a float is care here."""
    for op in ops:
        if op.name not in qtable:
            continue
        asked = MODES[qtable[op.name].lower()]
        fine = _names_of(asked) if asked.calibrated else (*_names_of(asked), "f32")
        if op.formats[0].name in _FLOATS and op.formats[0].name not in fine:
            raise CandidateError(
                f"qtable: the compiler computes {op.name} on {chip.name} in {op.formats[0].name} instead of "
                f"{asked.format}"
            )


def _check_weights(ops: list[Op], top: Graph, mode: Mode, qtable: Mapping[str, str]) -> None:
    """Products with constant weights must have them in the asked width: all the saving is there."""
    if not mode.calibrated and mode.weight_bits is None:
        return
    weights = {name for op in top.ops if op.kind == "top.Weight" for name in op.names}
    with_weights = {op.name for op in top.ops if op.kind == "top.MatMul" and weights & set(op.operands[1:2])}
    left = [
        op
        for op in ops
        if op.kind in _MATMULS and op.name in with_weights and op.name not in qtable and not _narrow(op, mode)
    ]
    if left:
        remedy = (
            "choose a group size that divides their inputs, or keep them by a qtable"
            if mode.weight_bits
            else "if that is meant, say so by a qtable"
        )
        raise CandidateError(
            f"mode={mode.name}: the compiler left the weights of {_listed(left)} in "
            f"{left[0].formats[0].name}: {remedy}"
        )


def _narrow(op: Op, mode: Mode) -> bool:
    if mode.calibrated:
        return op.formats[0].name in ("int8", "uint8", "int32")
    bits = re.search(r"weight_bits = (\d+)", op.attributes)
    return op.kind == "tpu.A16MatMul" and bits is not None and int(bits[1]) == mode.weight_bits


def _listed(ops: list[Op]) -> str:
    names = [op.name for op in ops]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
