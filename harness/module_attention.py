"""An attention that somebody wrote between linear layers: heads, mask and rotation are found by trying.

Taken for one only if it gives the reference's own values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import to_array
from .explaining.attention_op import attention_op
from .explaining.maths import attend
from .explaining.op import Op
from .explaining.rope import BASES

if TYPE_CHECKING:
    from .module_calls import Captured

Array = np.ndarray[Any, Any]
#: Heads that are tried, and the rows on which each try is made.
HEADS, LOOK = (
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 25, 28, 32, 36, 40, 48, 64, 71, 96, 128),
    6,
)
#: Largest relative difference of what was found from the reference.
CLOSE = 1e-5


def attention_of(
    captured: Captured, tap: str, call: int, linear: Mapping[str, Any], value: Array
) -> Op | None:
    """The attention whose output `[B, T, H D]` is handed to a module, as an op with all its rows."""
    for q, k, v in _projections(captured, tap, call, linear, value):
        for op in _tries(tap, q, k, v, value):
            rows = np.unique(np.linspace(0, len(op.expected) - 1, LOOK).astype(np.int64))
            few = replace(
                op,
                inputs=(op.inputs[0][rows],),
                expected=op.expected[rows],
                sequence=op.sequence[rows],
                position=op.position[rows],
            )
            gap = np.abs(attend(few) - few.expected).max()
            if gap <= CLOSE * np.abs(few.expected).max():
                return op
    return None


def _projections(
    captured: Captured, tap: str, call: int, linear: Mapping[str, Any], value: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """Outputs of the linear layers just before, as queries, keys and values."""
    path = tap.removeprefix("module:").rpartition(":in")[0]
    names = list(captured.calls)
    before = names[: names.index((path, call))]
    made = [name for name, number in before if number == call and f"module:{name}" in linear]
    width = value.shape[-1]
    last = [_returned(captured, name, call) for name in made[-3:]]
    if len(last) == 3 and all(one is not None and one.shape[:-1] == value.shape[:-1] for one in last):
        q, k, v = last
        assert q is not None
        assert k is not None
        assert v is not None
        if q.shape[-1] == width and k.shape == v.shape:
            yield q, k, v
    packed = _returned(captured, made[-1], call) if made else None
    if packed is not None and packed.shape[:-1] == value.shape[:-1] and packed.shape[-1] > width:
        rest = (packed.shape[-1] - width) // 2
        yield packed[..., :width], packed[..., width : width + rest], packed[..., width + rest :]


def _returned(captured: Captured, name: str, call: int) -> Array | None:
    tensor = captured.calls[name, call].returned.get("")
    return None if tensor is None or tensor.ndim != 3 else to_array(tensor).astype(np.float64)


def _tries(tap: str, q: Array, k: Array, v: Array, value: Array) -> Iterator[Op]:
    """Every split into heads, causal or not, without rotation first."""
    turnings: list[tuple[bool, float] | None] = [None]
    turnings += [
        (pairs, base)
        for base in sorted(BASES, key=lambda base: abs(np.log(base / 1e4)))
        for pairs in (False, True)
    ]
    for turning in turnings:
        for heads in HEADS:
            width = q.shape[-1] // heads
            if q.shape[-1] % heads or k.shape[-1] % width or (turning is not None and width % 2):
                continue
            for causal in (True, False):
                yield attention_op(tap, (q, k, v), value, heads=heads, causal=causal, turning=turning)
