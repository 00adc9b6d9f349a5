"""An attention op from whole queries, keys and values of a batch, rotated here."""

from __future__ import annotations

import numpy as np

from .maths import frequencies, rotate, tables
from .op import Memory, Op, Turning, Values


class Alone:
    """Nothing is known around such an op."""

    window = slots = None

    def rows(self, tap: str, shift: int = 0) -> None:
        """No other tap."""

    def before(self, steps: int) -> None:
        """No other step."""

    def mixed(self, tap: str) -> None:
        """No other sequence."""

    def others(self) -> tuple[()]:
        """No other op."""
        return ()

    alike = others

    def weights(self, tap: str) -> tuple[()]:
        """No weights."""
        return ()

    inputs = weights


def attention_op(
    tap: str,
    given: tuple[Values, Values, Values],
    value: Values,
    *,
    heads: int,
    causal: bool,
    turning: tuple[bool, float] | None,
) -> Op:
    """Queries, keys, values `[B, T, heads D]` before rotation; `value` is the output. All rows.

    `turning` is (pairs, base) of a rotary embedding at positions 0..T-1.
    """
    batch, length = value.shape[:2]
    width = given[0].shape[-1] // heads
    split = [part.reshape(batch * length, -1, width) for part in given]
    position = np.tile(np.arange(length), batch)
    own = None
    if turning is not None:
        pairs, base = turning
        cos, sin = tables(position, frequencies(base, width), pairs=pairs)
        own = Turning(split[0], split[1].reshape(batch, length, -1, width), base, pairs)
        split[:2] = [rotate(part, cos, sin, pairs=pairs) for part in split[:2]]
    keys, values = (part.reshape(batch, length, -1, width) for part in split[1:])
    return Op(
        tap,
        "attention",
        (split[0],),
        value.reshape(batch * length, heads, width),
        Alone(),
        (tap,),
        {"num_heads": heads, "head_dim": width, "scale": width**-0.5, "causal": float(causal)},
        sequence=np.repeat(np.arange(batch), length),
        position=position,
        memory=Memory(keys, values, np.ones((batch, length), np.bool_)),
        turning=own,
    )
