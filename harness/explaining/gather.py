"""What the runs of a comparison hold of a tap, by step and position, and the weights of its op."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import to_array
from ..case import CachePolicy, Role
from ..errors import ParityError
from ..isolation import EXPECTED, HANDED
from ..values import Values as Recorded
from ..values import batch_positions, positional, records_of, rows_back, rows_first
from .op import Op, Values

if TYPE_CHECKING:
    from ..trace import Record, Run

Bools = npt.NDArray[np.bool_]
Weights = Mapping[str, Any]


class Ops(Protocol):
    """What is known of ops beside what was recorded: of somebody's module, from its classes and one call."""

    @property
    def roles(self) -> Mapping[str, Role]:
        """Tap -> role."""

    @property
    def state(self) -> Weights:
        """Weights by key."""

    def value(self, tap: str, call: int) -> Values | None:
        """A tap's value in one call, of taps that no run recorded too."""

    def glue(self, tap: str, call: int) -> Role | None:
        """The op between modules that makes what a module is handed; None: not known."""

    def attention(self, tap: str, call: int) -> Op | None:
        """The attention between modules that makes it, with all its rows; None: there is none."""


#: Larger weights stay float32.
WIDE = 1 << 20


@dataclass(frozen=True)
class Facing:
    """A tap at a step on both sides, in the reference's layout; `positions` `[B, T]` or None."""

    tap: str
    step: int
    expected: Values
    seen: Values
    axes: str
    positions: Values | None
    found: Bools | None = None
    call: int = 0


class Evidence:
    """The runs of a comparison, and the weights where they are at hand."""

    def __init__(
        self, reference: Run, candidate: Run, isolated: Run | None, weights: Weights | Ops | None = None
    ) -> None:
        self.reference, self.candidate, self.isolated = reference, candidate, isolated
        self.ops = None if weights is None or isinstance(weights, Mapping) else weights
        self._weights = weights if isinstance(weights, Mapping) else {}
        wiring = reference.provenance.get("wiring") or candidate.provenance.get("wiring") or {}
        self.sources = {row["cache"]: row["source"] for row in wiring.get("caches", ())}
        self.right = Recorded(reference, derived=self.sources)
        self.own = Recorded(candidate)
        self._arrays: dict[str, Values] = {}
        self._found: dict[tuple[str, int, bytes, bool], tuple[Values, Bools] | None] = {}

    def forget(self) -> None:
        """Let go of what was read for one culprit."""
        self._arrays.clear()
        self._found.clear()

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Tap -> role, for every tap of the reference that has one."""
        table = [_role(data) for data in self.reference.provenance.get("roles", ())]
        plain = {role.taps: role for role in table if "{i}" not in role.taps}
        globs = [role for role in table if "{i}" in role.taps]
        for tap in self.reference.taps if globs else ():
            for role in globs:
                if tap not in plain and (layer := _layer(role.taps, tap)) is not None:
                    plain[tap] = _at_layer(role, layer)
        return plain if self.ops is None else {**self.ops.roles, **plain}

    @property
    def state(self) -> Weights:
        """Weights by key, as far as they are at hand."""
        return self._weights if self.ops is None else self.ops.state

    @property
    def window(self) -> int | None:
        """Of the cache policy."""
        policy = str(self.reference.provenance.get("policy", "none"))
        return None if policy == "none" else CachePolicy.parse(policy).window

    def role(self, tap: str, call: int) -> Role | None:
        """What is known of the op behind a tap, between modules too."""
        if tap not in self.roles and HANDED in tap and self.ops is not None:
            return self.ops.glue(tap, call)
        return self.roles.get(tap)

    def weights(self, role: Role) -> tuple[Values, ...]:
        """The weights of a role as floats; none where one of them is not at hand."""
        if not role.weights or any(key not in self.state for key in role.weights):
            return ()
        found = tuple(self._array(key) for key in role.weights)
        return () if any(weight.dtype.kind == "c" for weight in found) else found

    def _array(self, key: str) -> Values:
        if key not in self._arrays:
            value = self.state[key]
            array = value if isinstance(value, np.ndarray) else to_array(value)
            plain = array.dtype.kind != "c"
            self._arrays[key] = array.astype(np.float32) if plain and array.size > WIDE else wide(array)
        return self._arrays[key]

    def rows(
        self, tap: str, step: int, positions: Values, *, own: bool = False
    ) -> tuple[Values, Bools] | None:
        """Rows `[B, T, ...]` of a tap at positions, and which exist; `own`: of the candidate first."""
        key = tap, step, positions.tobytes(), own
        if key not in self._found:
            right = _rows(self.right, tap, step, positions)
            mine = _rows(self.own, tap, step, positions) if own else None
            self._found[key] = _merged(mine, right)
        return self._found[key]

    def facing(self, tap: str, step: int, call: int = 0, *, alone: bool = True) -> Facing | None:
        """Both sides of a tap at a step: in isolation where that was recorded, else as replayed.

        `alone=False`: as replayed, where a mistake that remembers earlier calls does not show in isolation.
        """
        if tap in self.sources:
            return self._cache(tap, step)
        records = [record for record in records_of(self.reference, tap) if record.step == step]
        if not records or "complex" in records[0].dtype:
            return None
        runs = [run for run in (self.isolated if alone else None, self.candidate) if run is not None]
        if all(map(positional, records)):
            found = (self._by_position(run, tap, step, records) for run in runs)
        else:
            found = (_by_call(run, self.reference, tap, step, call) for run in runs)
        return next((facing for facing in found if facing is not None), None)

    def handed(self, tap: str, step: int, call: int) -> Facing | None:
        """What a module was handed in isolation, and what the reference's module was."""
        return None if self.isolated is None else _by_call(self.isolated, self.isolated, tap, step, call)

    def _by_position(self, run: Run, tap: str, step: int, records: list[Record]) -> Facing | None:
        mine = [record for record in records_of(run, tap) if record.step == step]
        if not mine or not all(map(positional, mine)):
            return None
        positions = np.concatenate([batch_positions(record) for record in records], 1)
        expected, seen = self.rows(tap, step, positions), _rows(Recorded(run), tap, step, positions)
        if expected is None or seen is None or expected[0].shape != seen[0].shape:
            return None
        axes = records[0].axes
        right, own = (rows_back(wide(side[0]), axes) for side in (expected, seen))
        return Facing(tap, step, right, own, axes, positions, expected[1] & seen[1])

    def _cache(self, tap: str, step: int) -> Facing | None:
        """What a cache handed out last in a step, and what should have stood there: the rows it was given."""
        mine = [record for record in records_of(self.candidate, tap) if record.step == step]
        if not mine or not positional(mine[-1]):
            return None
        positions, axes = batch_positions(mine[-1]), mine[-1].axes
        expected = self.rows(self.sources[tap], step, positions, own=True)
        if expected is None:
            return None
        seen = rows_first(mine[-1].read(), axes)
        if expected[0].shape != seen.shape:
            return None
        right, own = (rows_back(wide(side), axes) for side in (expected[0], seen))
        return Facing(tap, step, right, own, axes, positions, expected[1])


def _rows(values: Recorded, tap: str, step: int, positions: Values) -> tuple[Values, Bools] | None:
    """None for a tap that has no rows by position."""
    records = records_of(values.run, tap)
    if not len(records) and tap not in values._derived:
        return None
    if len(records) and not positional(records[0]):
        return None
    try:
        return values.rows(tap).at(step, positions)
    except ParityError:
        return None


def _merged(
    mine: tuple[Values, Bools] | None, right: tuple[Values, Bools] | None
) -> tuple[Values, Bools] | None:
    """The candidate's rows where it has them, else the reference's."""
    if mine is None or right is None or mine[0].shape != right[0].shape:
        return mine or right
    rows = np.where(mine[1].reshape(*mine[1].shape, *[1] * (mine[0].ndim - 2)), mine[0], right[0])
    return rows, mine[1] | right[1]


def _by_call(run: Run, reference: Run, tap: str, step: int, call: int) -> Facing | None:
    """Records without positions: the same call of both sides."""
    right = tap + EXPECTED if run is reference else tap
    mine, theirs = (
        [record for record in records_of(side, name) if (record.step, record.call) == (step, call)]
        for side, name in ((run, tap), (reference, right))
    )
    if len(mine) != 1 or len(theirs) != 1 or mine[0].shape != theirs[0].shape or theirs[0].size < 2:
        return None
    expected, seen = wide(theirs[0].read()), wide(mine[0].read())
    if expected.dtype.kind == "c" or seen.dtype.kind == "c":
        return None
    if not (np.isfinite(expected).all() and np.isfinite(seen).all()):
        return None
    return Facing(tap, step, expected, seen, theirs[0].axes, None, call=call)


def as_floats(values: Values) -> Values:
    """float64, but whole numbers as they are; truth values are 0 and 1."""
    return wide(values) if values.dtype.kind not in "iu" else values


def wide(values: Values) -> Values:
    """float64, complex values complex128: squares of short whole numbers would wrap round."""
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64, copy=False)


def _role(data: Mapping[str, Any]) -> Role:
    return Role(
        str(data["taps"]), str(data["role"]), tuple(data.get("inputs", ())), dict(data.get("parameters", {})),
        tuple(data.get("weights", ())),
    )  # fmt: skip


def _layer(glob: str, tap: str) -> int | None:
    match = re.fullmatch(re.escape(glob).replace(r"\{i\}", r"(\d+)"), tap)
    return int(match[1]) if match else None


def _at_layer(role: Role, layer: int) -> Role:
    def named(text: str) -> str:
        return text.replace("{i}", str(layer))

    return Role(
        named(role.taps),
        role.role,
        tuple(map(named, role.inputs)),
        role.parameters,
        tuple(map(named, role.weights)),
    )
