"""The op as its role says it is: only where this gives the reference's own output can mistakes be tried."""

from __future__ import annotations

from collections.abc import Callable

from .linear import made
from .maths import attend
from .mlp import gated
from .norms import norm
from .op import GATED, LINEAR, NORMS, PLAIN, Op, Values

_PLAIN: dict[str, Callable[[Op], Values]] = {
    "add": lambda op: op.total,
    "copy": lambda op: op.inputs[0],
    "cache": lambda op: op.inputs[0],
    "attention": attend,
    "rope_table": lambda op: op.expected,
    **dict.fromkeys(PLAIN, gated),
}
_WEIGHTED: dict[str, Callable[[Op], Values]] = {
    "embedding": lambda op: op.weight[op.inputs[0]],
    **dict.fromkeys(LINEAR, lambda op: made(op, op.weight)),
    **dict.fromkeys(NORMS, norm),
    **dict.fromkeys(GATED, gated),
}
#: Roles that are understood.
ROLES = frozenset({*_PLAIN, *_WEIGHTED})


def unchanged(op: Op) -> Values | None:
    """The op's output as computed here, in the output's shape; None where its weights are not at hand."""
    compute = _PLAIN.get(op.role) or (_WEIGHTED.get(op.role) if op.weights else None)
    return None if compute is None else op.shaped(compute(op))
