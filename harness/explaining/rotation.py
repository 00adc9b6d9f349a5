"""Rotary positions inside an attention of which only what goes in and what comes out is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from .maths import attend, frequencies, rotate, rounded, tables
from .op import Memory, Op, Values, Variant, hypothesis
from .rope import BASES, spelled

ATTENTION = frozenset({"attention"})
Turn = Callable[[Values, Values], Values]


def turned_by(
    op: Op,
    *,
    base: float | None = None,
    pairs: bool | None = None,
    sign: float = 1.0,
    shift: int = 0,
    scale: float = 1.0,
    width: int | None = None,
    kind: str = "",
) -> Turn:
    """A rotation of `[M, heads, D]` at positions `[M]`, the op's own but for what is given."""
    own = op.turning
    assert own is not None
    chosen = own.pairs if pairs is None else pairs

    def turn(x: Values, position: Values) -> Values:
        part = width or x.shape[-1]
        frequency = frequencies(own.base if base is None else base, part) * sign * scale
        cos, sin = tables(position + shift, frequency, pairs=chosen)
        if kind:
            cos, sin = rounded(cos, kind), rounded(sin, kind)
        return np.concatenate((rotate(x[..., :part], cos, sin, pairs=chosen), x[..., part:]), -1)

    return turn


def _left(x: Values, position: Values) -> Values:
    return x


def given(op: Op, queries: Turn, keys: Turn) -> Values:
    """The attention with queries and keys rotated otherwise."""
    own = op.turning
    assert own is not None
    assert op.memory is not None
    batch, rows = own.keys.shape[:2]
    flat = own.keys.reshape(batch * rows, *own.keys.shape[2:])
    turned = keys(flat, np.tile(np.arange(rows), batch)).reshape(own.keys.shape)
    memory = Memory(turned, op.memory.values, op.memory.known)
    return attend(replace(op, memory=memory), q=queries(own.queries, op.position))


def everywhere(op: Op, words: str, turn: Turn) -> Iterator[Variant]:
    """A mistake in both, in queries only, in keys only."""
    right = turned_by(op)
    for where, queries, keys in (
        ("", turn, turn),
        (" on queries only", turn, right),
        (" on keys only", right, turn),
    ):
        yield Variant(words + where, given(op, queries, keys))


@hypothesis("rotation", ATTENTION)
def other_partners_inside(op: Op) -> Iterator[Variant]:
    if op.turning is not None:
        kind = "half-split" if op.turning.pairs else "interleaved"
        words = f"{kind} RoPE, base {spelled(op.turning.base)}"
        yield from everywhere(op, words, turned_by(op, pairs=not op.turning.pairs))


@hypothesis("rotation", ATTENTION)
def sign_of_rotation_inside(op: Op) -> Iterator[Variant]:
    if op.turning is not None:
        yield from everywhere(op, "RoPE of the opposite sign", turned_by(op, sign=-1.0))


@hypothesis("rotation", ATTENTION)
def other_base_inside(op: Op) -> Iterator[Variant]:
    for base in BASES if op.turning is not None else ():
        assert op.turning is not None
        if base != op.turning.base:
            yield from everywhere(op, f"RoPE of base {spelled(base)}", turned_by(op, base=base))


@hypothesis("rotation", ATTENTION)
def position_off_inside(op: Op) -> Iterator[Variant]:
    """On one side only: an offset of both changes nothing."""
    for shift in (1, -1, 2, -2) if op.turning is not None else ():
        words, turn = f"RoPE positions off by {shift:+d}", turned_by(op, shift=shift)
        yield from list(everywhere(op, words, turn))[1:]


@hypothesis("rotation", ATTENTION)
def position_scaled_inside(op: Op) -> Iterator[Variant]:
    for scale in (0.5, 2.0, 0.25, 4.0) if op.turning is not None else ():
        yield from everywhere(op, f"RoPE positions times {scale:g}", turned_by(op, scale=scale))


@hypothesis("rotation", ATTENTION)
def no_rotation_inside(op: Op) -> Iterator[Variant]:
    if op.turning is not None:
        yield from everywhere(op, "RoPE left out", _left)


@hypothesis("rotation", ATTENTION)
def partial_rotation_inside(op: Op) -> Iterator[Variant]:
    for share in (2, 4) if op.turning is not None else ():
        width = op.inputs[0].shape[-1]
        if (width // share) % 2 == 0:
            words = f"RoPE on the first {width // share} of {width} channels only"
            yield from everywhere(op, words, turned_by(op, width=width // share))


@hypothesis("rotation", ATTENTION)
def table_rounded_inside(op: Op) -> Iterator[Variant]:
    for kind in ("bfloat16", "float16") if op.turning is not None else ():
        yield from everywhere(op, f"a RoPE table rounded to {kind}", turned_by(op, kind=kind))
