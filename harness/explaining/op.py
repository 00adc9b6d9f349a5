"""One op of the reference with all that went in and came out, and what a hypothesis about it is.

Shape letters: N rows (one per sequence and token), H heads, G key/value heads, D channels, S cache rows,
B sequences. Arrays are float64 (float32 where a weight is large), row first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

#: Roles by what they compute; a hypothesis says for which of them it makes sense.
ROTATED = frozenset({"rotated_projection"})
LINEAR = frozenset({"linear", "projection", "rotated_projection"})
NORMS = frozenset({"layernorm", "rmsnorm"})
GATED = frozenset({"gated_silu", "gated_gelu"})
PLAIN = frozenset({"silu", "gelu", "relu", "gelu_tanh"})
ANY: frozenset[str] = frozenset()


class Around(Protocol):
    """The reference around an op: what else could have been taken in place of its inputs."""

    @property
    def window(self) -> int | None:
        """Rows that a token may attend to, itself included; None: all."""

    @property
    def slots(self) -> int | None:
        """Cache rows that the candidate hands to an attention, filled or not; None: as many as there are."""

    def rows(self, tap: str, shift: int = 0) -> tuple[Values, npt.NDArray[np.bool_]] | None:
        """A tap at the op's rows, `shift` positions later, and which of them exist; None: no such tap."""

    def before(self, steps: int) -> Values | None:
        """The op's own tap so many steps earlier, where it has no positions."""

    def mixed(self, tap: str) -> Values | None:
        """A tap at the op's positions in the next sequence of the batch; None for one sequence."""

    def others(self) -> Iterable[tuple[str, tuple[Values, ...]]]:
        """Taps of the same kind with their weights, shaped as the op's own."""

    def alike(self) -> Iterable[str]:
        """Taps whose rows are shaped as the op's output, its own and its inputs left out."""

    def weights(self, tap: str) -> tuple[Values, ...]:
        """Weights of the op behind a tap; none where they are not at hand."""

    def inputs(self, tap: str) -> tuple[str, ...]:
        """Taps that the op behind a tap reads."""


@dataclass(frozen=True)
class Memory:
    """Keys and values `[B, S, G, D]` by position 0..S-1, and which of them exist `[B, S]`."""

    keys: Values
    values: Values
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slots:
    """A cache as the candidate hands it on, its hidden slots included.

    `allowed` `[N, slots]` is what each row may attend to, `rows` `[N]` those whose call had these slots.
    `spare`: some slots hold no token.
    """

    memory: Memory
    allowed: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.bool_]
    spare: bool = False

    @property
    def tell(self) -> bool:
        """Whether most rows had these slots, and some of the slots hold no token."""
        return self.spare and bool(self.rows.mean() >= 0.5)


@dataclass(frozen=True)
class Turning:
    """Queries `[N, H, D]` and keys `[B, S, G, D]` before the rotation that an attention makes itself."""

    queries: Values
    keys: Values
    base: float
    pairs: bool


@dataclass(frozen=True)
class Op:
    """What an op was given and what it made of it, at one step.

    `inputs` are `[N, ...]` in the order of the role's `reads`; `expected` is the output `[N, ...]`;
    `sequence` and `position` are `[N]`. `weights` is empty where they are not at hand. `seen` is what the
    candidate made, for mistakes that have a number to be fitted.
    """

    tap: str
    role: str
    inputs: tuple[Values, ...]
    expected: Values
    around: Around
    reads: tuple[str, ...] = ()
    parameters: Mapping[str, float] = field(default_factory=dict)
    weights: tuple[Values, ...] = ()
    sequence: Values = field(default_factory=lambda: np.zeros(0, np.int64))
    position: Values = field(default_factory=lambda: np.zeros(0, np.int64))
    memory: Memory | None = None
    seen: Values = field(default_factory=lambda: np.zeros(0))
    turning: Turning | None = None
    slots: Slots | None = None

    @property
    def x(self) -> Values:
        """The first input as `[N, channels]`."""
        return self.inputs[0].reshape(len(self.inputs[0]), -1)

    @property
    def total(self) -> Values:
        """The sum of all inputs, as a norm over a residual stream takes them."""
        return sum(self.inputs[1:], self.inputs[0])

    @property
    def weight(self) -> Values:
        """The first weight."""
        return self.weights[0]

    @property
    def bias(self) -> Values | float:
        """The second weight, 0 where there is none."""
        return self.weights[1] if len(self.weights) > 1 else 0.0

    def number(self, name: str, default: float) -> float:
        """A parameter of the role."""
        return float(self.parameters.get(name, default))

    def shaped(self, values: Values) -> Values:
        """`[N, channels]` in the shape of the output."""
        return values.reshape(self.expected.shape)


@dataclass(frozen=True)
class Variant:
    """What the op's output would be had `words` happened; `where` `[N]` are the rows it speaks of.

    `fit` are numbers that were fitted to what was seen, where fewer than two samples speak for each: they
    always fit, so other steps must give the same ones.
    """

    words: str
    values: Values
    where: npt.NDArray[np.bool_] | None = None
    fit: tuple[float, ...] = ()


Make = Callable[[Op], Iterator[Variant]]


@dataclass(frozen=True)
class Hypothesis:
    """A known kind of mistake. `make` computes the op with it, in as many variants as it has numbers.

    `roles` are those that it is about, none meaning all; `weights` says that it needs them. One of `rank` 1
    describes an output rather than an op, and is named only where no mistake of the op does as well.
    """

    name: str
    family: str
    make: Make
    roles: frozenset[str] = ANY
    weights: bool = False
    rank: int = 0

    def fits(self, op: Op) -> bool:
        """Whether it can be tried on this op."""
        return (not self.roles or op.role in self.roles) and (bool(op.weights) or not self.weights)


def hypothesis(
    family: str, roles: frozenset[str] = ANY, *, weights: bool = False, rank: int = 0
) -> Callable[[Make], Hypothesis]:
    """Make a function of an op a hypothesis; its name is the function's."""

    def made(make: Make) -> Hypothesis:
        return Hypothesis(make.__name__.strip("_").replace("_", " "), family, make, roles, weights, rank)

    return made
