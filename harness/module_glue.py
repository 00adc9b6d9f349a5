"""What the code between somebody's modules computes, found by trying: a sum, a gated product, an attention.

Only what reproduces the reference's own values is taken for the op; anything else has no role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import to_array
from .case import Role
from .explaining.maths import ACTIVATIONS
from .isolation import HANDED

if TYPE_CHECKING:
    from .module_calls import Captured

Array = np.ndarray[Any, Any]
#: Values that may be summed, and elements of each that are looked at first.
MOST, LOOK = 256, 64
#: A value is what was tried if they differ by no more than this share of its largest element.
CLOSE = 1e-5


@dataclass(frozen=True)
class Glue:
    """The op that makes a value of others; `others` are its inputs by tap."""

    role: Role
    others: Mapping[str, Array] = field(default_factory=dict)


def glue_of(captured: Captured, tap: str, call: int, linear: Mapping[str, Role]) -> Glue | None:
    """The op behind `module:PATH:in.0`; `linear` are the roles of linear leaves by tap. None: not known."""
    path = tap.removeprefix("module:").rpartition(HANDED)[0]
    held = captured.calls.get((path, call))
    given = None if held is None else next((g for g in held.given if tap.endswith(HANDED + g.suffix)), None)
    if given is None or given.tensor.ndim < 2 or not given.tensor.is_floating_point():
        return None
    value = to_array(given.tensor).astype(np.float64)
    known = dict(_before(captured, path, call, value.shape))
    return _sum(tap, value, known) or _product(tap, value, known, captured, call, linear)


def _before(captured: Captured, path: str, call: int, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Values of this shape that modules were given or returned before, the newest last."""
    calls = list(captured.calls)
    for name, number in calls[: calls.index((path, call))]:
        held = captured.calls[name, number]
        if number != call and number != 0:
            continue
        for given in held.given:
            if tuple(given.tensor.shape) == shape and given.tensor.is_floating_point():
                yield f"module:{name}{HANDED}", to_array(given.tensor).astype(np.float64)
        made = held.returned.get("")
        if made is not None and tuple(made.shape) == shape and made.is_floating_point():
            yield f"module:{name}", to_array(made).astype(np.float64)


def _sum(tap: str, value: Array, known: Mapping[str, Array]) -> Glue | None:
    """Two earlier values whose sum it is."""
    taps = list(known)[-MOST:]
    if len(taps) < 2 or any(_same(known[name], value) for name in taps):
        return None
    size = float(np.abs(value).max())
    look = np.stack([known[name].reshape(-1)[:LOOK] for name in taps])
    rest = value.reshape(-1)[:LOOK] - look
    near = np.abs(rest[:, None] - look[None]).max(-1) <= CLOSE * max(size, 1e-30)
    for one, two in zip(*np.nonzero(near), strict=True):
        if one < two and _same(known[taps[one]] + known[taps[two]], value):
            pair = {taps[at]: known[taps[at]] for at in (one, two)}
            return Glue(Role(tap, "add", tuple(pair)), pair)
    return None


def _product(
    tap: str,
    value: Array,
    known: Mapping[str, Array],
    captured: Captured,
    call: int,
    linear: Mapping[str, Role],
) -> Glue | None:
    """An activated value times another, both linear in one input."""
    made = [name for name in known if name in linear]
    for active in reversed(made):
        for other in reversed(made):
            name = next(
                (n for n, f in ACTIVATIONS.items() if _same(f(known[active]) * known[other], value)), ""
            )
            if active != other and name in ("silu", "gelu"):
                return _gated(tap, name, (active, other), captured, call, linear)
    return None


def _gated(
    tap: str,
    name: str,
    branches: tuple[str, str],
    captured: Captured,
    call: int,
    linear: Mapping[str, Role],
) -> Glue | None:
    inputs = [captured.calls[branch.removeprefix("module:"), call].given[0].tensor for branch in branches]
    keys = tuple(key for branch in branches for key in linear[branch].weights)
    x = to_array(inputs[0]).astype(np.float64)
    if len(keys) not in (2, 4) or inputs[0].shape != inputs[1].shape or not _same(to_array(inputs[1]), x):
        return None
    read = branches[0] + HANDED
    return Glue(Role(tap, f"gated_{name}", (read,), {}, keys), {read: x})


def _same(one: Array, other: Array) -> bool:
    return bool(
        np.abs(one - other).max(initial=0.0) <= CLOSE * max(float(np.abs(other).max(initial=0.0)), 1e-30)
    )
