"""One op of a recorded run: its rows, its inputs, and what else stands around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..case import Role
from ..isolation import HANDED
from ..values import batch_positions, positional, records_of, rows_first, token_axis
from .gather import Facing, as_floats
from .op import LINEAR, Memory, Op, Slots, Values

if TYPE_CHECKING:
    from ..trace import Record
    from .gather import Evidence

Bools = npt.NDArray[np.bool_]
#: Multiplications that computing an op once may cost, and the fewest and most rows that are computed.
WORK, FEWEST, MOST = 1 << 20, 8, 64
#: Taps and ops that may be taken for another, nearest first, and values of their weights that are read.
NEIGHBOURS, MOST_WEIGHTS = 48, 1 << 25


def op_of(evidence: Evidence, facing: Facing, role: Role | None, *, whole: bool = False) -> Op | None:
    """The op behind a tap with its inputs; without a role only its output. None where an input is lost."""
    if role is None and HANDED in facing.tap and evidence.ops is not None:
        whole_op = evidence.ops.attention(facing.tap, facing.call)
        if whole_op is not None:
            return _with_seen(whole_op, facing, whole=whole)
    chosen = Chosen.of(facing)
    if not len(chosen.at[0]):
        return None
    known = facing.positions is not None or evidence.ops is not None
    if role is None or not known:
        role = Role(facing.tap, "")
    around = Nearby(evidence, facing, role, chosen)
    if not whole:
        chosen = chosen.fewer(facing, _most(role, evidence.weights(role), facing, around))
        around = Nearby(evidence, facing, role, chosen)
    inputs, reads = around.given()
    if inputs is None:
        return None
    memory = around.memory() if role.role == "attention" else None
    if role.role == "attention" and memory is None:
        return None
    return Op(
        facing.tap, role.role, inputs, chosen.take(facing, facing.expected), around, reads,
        role.parameters, evidence.weights(role), chosen.at[0], around.position, memory,
        chosen.take(facing, facing.seen),
        slots=around.held() if memory is not None else None,
    )  # fmt: skip


def _with_seen(op: Op, facing: Facing, *, whole: bool) -> Op:
    """An attention with what the candidate made; of many rows some, the worst among them."""
    op = replace(op, seen=facing.seen.reshape(op.expected.shape))
    assert op.memory is not None
    cost = 2 * op.memory.keys.shape[1] * op.expected[0].size
    most = int(np.clip(WORK // cost, FEWEST, MOST))
    if whole or len(op.expected) <= most:
        return op
    gap = ((op.seen - op.expected).reshape(len(op.expected), -1) ** 2).sum(1)
    spread = np.linspace(0, len(gap) - 1, most - most // 2).astype(np.int64)
    kept = np.unique(np.concatenate((np.argsort(-gap, kind="stable")[: most // 2], spread)))
    turning = op.turning and replace(op.turning, queries=op.turning.queries[kept])
    return replace(
        op,
        inputs=(op.inputs[0][kept],),
        expected=op.expected[kept],
        seen=op.seen[kept],
        sequence=op.sequence[kept],
        position=op.position[kept],
        turning=turning,
    )


@dataclass(frozen=True)
class Chosen:
    """The rows of a tap that are computed: sequence and token `[N]`, or rows of a matrix."""

    at: tuple[Values, Values]

    @classmethod
    def of(cls, facing: Facing) -> Chosen:
        if facing.positions is None:
            count = facing.expected.size // max(facing.expected.shape[-1], 1) if facing.expected.ndim else 0
            rows = np.arange(count)
            return cls((np.zeros_like(rows), rows))
        there = facing.positions >= 0
        sides = (rows_first(side, facing.axes) for side in (facing.expected, facing.seen))
        finite = [np.isfinite(side).reshape(*there.shape, -1).all(-1) for side in sides]
        there &= finite[0] & finite[1] & (True if facing.found is None else facing.found)
        return cls(np.nonzero(there))  # type: ignore[arg-type]

    def take(self, facing: Facing, values: Values) -> Values:
        """Rows `[N, ...]` of an array in the tap's layout."""
        if facing.positions is None:
            return values.reshape(-1, values.shape[-1])[self.at[1]]
        return np.asarray(rows_first(values, facing.axes)[self.at])

    def fewer(self, facing: Facing, most: int) -> Chosen:
        """At most so many rows: half of them where the candidate is off most, half spread evenly."""
        count = len(self.at[0])
        if count <= most:
            return self
        gap = self.take(facing, facing.seen) - self.take(facing, facing.expected)
        worst = np.argsort(-(gap.reshape(count, -1) ** 2).sum(1), kind="stable")[: most // 2]
        spread = np.linspace(0, count - 1, most - most // 2).astype(np.int64)
        kept = np.unique(np.concatenate((worst, spread)))
        return Chosen((self.at[0][kept], self.at[1][kept]))


def _most(role: Role, weights: tuple[Values, ...], facing: Facing, around: Nearby) -> int:
    """How many rows fit into the work that one hypothesis may cost."""
    if role.role == "cache":
        return 256
    cost = sum(weight.size for weight in weights if weight.ndim == 2 and role.role != "embedding")
    if role.role == "attention":
        cost = (
            2
            * (int(around.position.max(initial=0)) + 1)
            * (facing.expected.size // max(len(around.position), 1))
        )
    return int(np.clip(WORK // max(cost, 1), FEWEST, MOST))


@dataclass
class Nearby:
    """The reference around one op; see `op.Around`."""

    evidence: Evidence
    facing: Facing
    role: Role
    chosen: Chosen

    @property
    def window(self) -> int | None:
        return self.evidence.window

    @property
    def slots(self) -> int | None:
        """Rows of the cache that the candidate handed to an attention at this step."""
        for tap in self.role.inputs[1:2]:
            shapes = (r for r in records_of(self.evidence.candidate, tap) if r.step == self.facing.step)
            for record in reversed(list(shapes)):
                at = token_axis(record.axes)
                return None if at is None else record.shape[at]
        return None

    @property
    def position(self) -> Values:
        """Absolute positions `[N]`; 0 where a tap has none."""
        if self.facing.positions is None:
            return np.zeros(len(self.chosen.at[0]), np.int64)
        return np.asarray(self.facing.positions[self.chosen.at])

    def rows(self, tap: str, shift: int = 0) -> tuple[Values, Bools] | None:
        if self.facing.positions is None:
            plain = None if shift else self._unplaced(tap)
            return None if plain is None else (plain, np.ones(len(plain), np.bool_))
        own = self.role.role == "cache"
        at = np.where(self.facing.positions >= 0, self.facing.positions + shift, -1)
        found = self.evidence.rows(self.evidence.sources.get(tap, tap), self.facing.step, at, own=own)
        if found is None:
            return None
        return as_floats(found[0][self.chosen.at]), found[1][self.chosen.at]

    def before(self, steps: int) -> Values | None:
        """The op's own tap so many steps earlier, where it has no positions."""
        if self.facing.positions is not None:
            return None
        return self._recorded(self.facing.tap, self.facing.step - steps)

    def _unplaced(self, tap: str) -> Values | None:
        """A tap without positions, in rows like the op's own."""
        ops = self.evidence.ops
        value = None if ops is None else ops.value(tap, self.facing.call)
        count = self.facing.expected.size // self.facing.expected.shape[-1]
        if value is not None and value.size and value.size % count == 0:
            whole = value.dtype.kind in "iu" and value.size == count
            rows = value.reshape(count) if whole else value.reshape(count, -1)
            return as_floats(rows[self.chosen.at[1]])
        return self._recorded(tap, self.facing.step)

    def _recorded(self, tap: str, step: int) -> Values | None:
        found = [record for record in records_of(self.evidence.reference, tap) if record.step == step]
        if len(found) != 1 or found[0].shape != self.facing.expected.shape:
            return None
        return self.chosen.take(self.facing, as_floats(found[0].read()))

    def mixed(self, tap: str) -> Values | None:
        positions = self.facing.positions
        if positions is None or len(positions) < 2:
            return None
        found = self.evidence.rows(
            self.evidence.sources.get(tap, tap), self.facing.step, np.roll(positions, 1, 0)
        )
        if found is None or not found[1].all():
            return None
        return as_floats(np.roll(found[0], -1, 0)[self.chosen.at])

    def others(self) -> Iterator[tuple[str, tuple[Values, ...]]]:
        own = self.evidence.weights(self.role)
        shapes = [weight.shape for weight in own]
        room = MOST_WEIGHTS
        for tap, role in self._nearest():
            if tap == self.facing.tap or not role.weights or room < 0:
                continue
            alike = role.role == self.role.role or (role.role in LINEAR and self.role.role in LINEAR)
            if not alike and {role.role, self.role.role} != {"embedding", "linear"}:
                continue
            weights = self.evidence.weights(role)
            room -= sum(weight.size for weight in weights)
            if alike and [weight.shape for weight in weights] == shapes:
                yield tap, weights
            elif not alike and weights and weights[0].shape == shapes[0]:
                yield tap, weights[:1]

    def _nearest(self) -> list[tuple[str, Role]]:
        """Roles of other taps, those of near taps first."""
        items = list(self.evidence.roles.items())
        mine = next((place for place, (tap, _) in enumerate(items) if tap == self.facing.tap), 0)
        order = sorted(range(len(items)), key=lambda place: abs(place - mine))
        return [items[place] for place in order][: 16 * NEIGHBOURS]

    def alike(self) -> Iterator[str]:
        reference = self.evidence.reference
        own = self._width(self.role.inputs[0] if self.role.role == "cache" else self.facing.tap)
        taps = reference.taps
        mine = taps.index(self.facing.tap) if self.facing.tap in taps else 0
        found = 0
        for tap in sorted(taps, key=lambda tap: abs(taps.index(tap) - mine)) if own else ():
            if tap in (self.facing.tap, *self.role.inputs) or tap in self.evidence.sources:
                continue
            if self._width(tap) == own:
                found += 1
                yield tap
            if found == NEIGHBOURS:
                return

    def _width(self, tap: str) -> tuple[int, ...]:
        """Sizes of one row of a tap."""
        records = records_of(self.evidence.reference, tap)
        if not len(records):
            return ()
        if self.facing.positions is None:
            return records[0].shape
        if token_axis(records[0].axes) is None:
            return ()
        record, at = records[0], token_axis(records[0].axes)
        letters = record.axes.split()
        return tuple(size for place, size in enumerate(record.shape) if place != at and letters[place] != "b")

    def weights(self, tap: str) -> tuple[Values, ...]:
        role = self.evidence.roles.get(tap)
        return () if role is None else self.evidence.weights(role)

    def inputs(self, tap: str) -> tuple[str, ...]:
        role = self.evidence.roles.get(tap)
        return () if role is None else tuple(role.inputs)

    def given(self) -> tuple[tuple[Values, ...] | None, tuple[str, ...]]:
        """The op's inputs at its rows, and their taps; None where one is not recorded."""
        reads = self.role.inputs[:1] if self.role.role in ("attention", "rope_table") else self.role.inputs
        inputs = []
        for tap in reads:
            values = self.position if tap == "positions" else self._whole(tap)
            if values is None:
                return None, reads
            inputs.append(values)
        return tuple(inputs), reads

    def _whole(self, tap: str) -> Values | None:
        found = self.rows(tap)
        if found is None or not found[1].all():
            return None
        return found[0].astype(np.int64) if tap == "ids" else found[0]

    def held(self) -> Slots | None:
        """The slots that the candidate's last call of the step had; None where they are not recorded."""
        taps, step = self.role.inputs[:3], self.facing.step
        if len(taps) < 3:
            return None
        found = [[r for r in records_of(self.evidence.candidate, tap) if r.step == step] for tap in taps]
        if any(not records or not positional(records[-1]) for records in found):
            return None
        queries, keys, values = (records[-1] for records in found)
        at, asked = batch_positions(keys), batch_positions(queries)
        sides = [self._filled(record, at) for record in (keys, values)]
        if sides[0] is None or sides[1] is None or len(at) != len(asked):
            return None
        here = self.position[:, None]
        mine = at[self.chosen.at[0]]
        allowed = (mine >= 0) & (mine <= here)
        if self.window is not None:
            allowed &= mine > here - self.window
        rows = (asked[self.chosen.at[0]] == here).any(1) & allowed.any(1)
        return Slots(
            Memory(sides[0], sides[1], np.ones(at.shape, np.bool_)),
            allowed,
            np.asarray(rows),
            bool((at < 0).any()),
        )

    def _filled(self, record: Record, at: Values) -> Values | None:
        """A cache as recorded, the reference's rows where it holds some."""
        own = as_floats(rows_first(record.read(), record.axes)).copy()
        source = self.evidence.sources.get(record.tap, record.tap)
        right = self.evidence.rows(source, self.facing.step, at)
        if right is None or right[0].shape != own.shape or not np.isfinite(own).all():
            return None
        own[right[1]] = right[0][right[1]]
        return own

    def memory(self) -> Memory | None:
        """Keys and values that the tokens of this step may look at."""
        assert self.facing.positions is not None
        last = int(self.facing.positions.max())
        at = np.tile(np.arange(last + 1), (len(self.facing.positions), 1))
        sides = [self.evidence.rows(tap, self.facing.step, at) for tap in self.role.inputs[1:3]]
        if len(sides) != 2 or sides[0] is None or sides[1] is None:
            return None
        return Memory(as_floats(sides[0][0]), as_floats(sides[1][0]), sides[0][1] & sides[1][1])
