"""Streams the entries of a dump into a run, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.harness.dtypes import logical_name
from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .core import Contents, Dumped
from .naming import Matching, Naming, Shapes, unpadded

#: The tap of token ids, which alignment asks for.
IDS = "ids"
#: Characters of the longest tap.
LONGEST_TAP = 4096


@dataclass(frozen=True)
class Played:
    """One entry, ready to be recorded."""

    tap: str
    array: np.ndarray
    step: int
    call: int
    axes: str
    positions: np.ndarray | None
    meta: Mapping[str, Any]


@dataclass
class Summary:
    """What a dump holds, as far as it was noted, and what was undone while it was played."""

    matching: Matching
    places: dict[str, set[int]] = field(default_factory=dict)
    """Tap -> steps at which it has a record."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Number formats as the device stored them -> records."""
    dequantized: dict[str, int] = field(default_factory=dict)
    """Those among them whose scale was undone."""
    records: int = 0
    bytes: int = 0
    layouts_undone: int = 0
    transformed: int = 0

    @property
    def absent(self) -> list[str]:
        """Taps of the reference that the dump does not hold."""
        return [tap for tap in self.matching.known or () if tap not in self.places]

    @property
    def steps(self) -> set[int]:
        """Steps of which there is something."""
        return set().union(*self.places.values()) if self.places else set()


class Player:
    """Turns the entries of one dump into records: names resolved, layouts undone, places checked."""

    def __init__(
        self,
        contents: Contents,
        naming: Naming,
        *,
        step_offset: int = 0,
        shapes: Shapes | None = None,
        transforms: bool = True,
    ) -> None:
        """`transforms` does what the map file declares; without it names and arrays stay as they are."""
        self.contents, self.naming = contents, naming
        self.summary = Summary(Matching(naming.known))
        self.fed = {shifted(step, step_offset): tokens for step, tokens in contents.fed.items()}
        self._offset, self._shapes, self._transforms = step_offset, shapes or {}, transforms
        self._seen: dict[tuple[str, int, int], str] = {}

    def step(self, entry: Dumped) -> int:
        """The step of the case that an entry belongs to."""
        return shifted(entry.step, self._offset)

    def note(self, entry: Dumped) -> str:
        """Count an entry and claim its place; its tap. UserError for a place that has a record already."""
        tap, rule = self.naming.tap(entry)
        if not tap or len(tap) > LONGEST_TAP or not tap.isprintable():
            raise UserError(f"tap={tap[:80]!r}: is no name for a tap; rename it in a map file")
        self.summary.matching.add(entry.name, tap, rule)
        place = (tap, self.step(entry), entry.call)
        other = self._seen.get(place)
        if other is not None:
            raise UserError(
                f"tap={tap!r}: has two records at step {place[1]}, call {place[2]} ({other!r}, "
                f"{entry.name!r}): are two dumps in one?"
            )
        self._seen[place] = entry.name
        self._note(entry, tap, place[1])
        return tap

    def _note(self, entry: Dumped, tap: str, step: int) -> None:
        summary, undone = self.summary, entry.meta.get("dequantized")
        stored = str(undone["format"]) if undone else entry.dtype
        summary.dtypes[stored] = summary.dtypes.get(stored, 0) + 1
        if undone:
            summary.dequantized[stored] = summary.dequantized.get(stored, 0) + 1
        summary.places.setdefault(tap, set()).add(step)

    def play(self, entry: Dumped, tap: str) -> Played:
        """Load an entry that was noted."""
        step = self.step(entry)
        array, undone = unpadded(entry, loaded(entry), self._shapes.get((tap, step, entry.call)))
        base, mapping = self.naming.base(entry), self.naming.mapping
        meta = {**entry.meta, **({"layout undone": undone} if undone else {})}
        if self._transforms and mapping.transformed(base):
            array = mapping.apply(base, array)
            meta["transformed"] = mapping.rule(base)
            self.summary.transformed += 1
        axes = mapping.axes(base) or (entry.axes if len(entry.axes.split()) == array.ndim else "")
        if tap != entry.name:
            meta["dump name"] = entry.name
        self.summary.records += 1
        self.summary.bytes += array.nbytes
        self.summary.layouts_undone += bool(undone)
        return Played(tap, array, step, entry.call, axes, entry.positions, meta)


def fed_by(player: Player) -> dict[int, np.ndarray]:
    """Ids `[B, T]` by step of the case, as far as the dump holds them; a prompt stated apart is step 0."""
    prompt = player.contents.tokens
    if prompt is None or 0 in player.contents.fed:
        return dict(player.fed)
    return {0: prompt, **player.fed}


def loaded(entry: Dumped) -> np.ndarray:
    """The values of an entry; UserError where they are not what the reader said of them."""
    array = entry.load()
    if array.shape != entry.shape or logical_name(array) != entry.dtype:
        raise UserError(
            f"entry={entry.name!r}: was {entry.dtype} {list(entry.shape)} and is now {logical_name(array)} "
            f"{list(array.shape)}; the dump changed while it was read"
        )
    return array


def shifted(step: int, offset: int) -> int:
    """The step of the case that a step of the dump is; UserError where that is before the first."""
    if step + offset < 0:
        raise UserError(f"step-offset={offset}: step {step} of the dump would be step {step + offset}")
    return step + offset


#: As `Sink.record`.
Record = Callable[..., None]


def record_all(player: Player, record: Record, progress: Progress) -> Summary:
    """Record every entry, and the ids that each step was fed in front of its first record."""
    entries, count = player.contents.entries, player.contents.count
    if count is None:
        entries = list(entries)
        count = len(entries)
    waiting = sorted(player.fed, reverse=True)
    with progress.stage(f"importing {player.contents.kind}", count) as bar:
        for entry in entries:
            while waiting and waiting[-1] <= player.step(entry):
                _record_ids(player, waiting.pop(), record)
            _record(player, entry, record)
            bar.advance()
    while waiting:
        _record_ids(player, waiting.pop(), record)
    return player.summary


def _record(player: Player, entry: Dumped, record: Record) -> None:
    tap = player.note(entry)
    played = player.play(entry, tap)
    fed = player.fed.get(played.step)
    if tap == IDS and fed is not None:
        check_ids(f"the dump's own record of {IDS}", played.step, played.array, fed)
        return
    record(
        tap,
        played.array,
        step=played.step,
        call=played.call,
        axes=played.axes,
        positions=played.positions,
        meta=played.meta or None,
    )


def _record_ids(player: Player, step: int, record: Record) -> None:
    record(IDS, player.fed[step], step=step, axes="b t")
    player.summary.places.setdefault(IDS, set()).add(step)


def check_ids(what: str, step: int, found: np.ndarray, wanted: np.ndarray) -> None:
    """UserError where ids `[B, T]` are others than those wanted, or so many."""
    found, wanted = np.atleast_2d(found).astype(np.int64), np.atleast_2d(wanted).astype(np.int64)
    if np.array_equal(found, wanted):
        return
    place = ""
    if found.shape == wanted.shape:
        at = tuple(int(index[0]) for index in np.nonzero(found != wanted))
        place = f"; token {at[1]} of sequence {at[0]} is {found[at]}, not {wanted[at]}"
    raise UserError(
        f"tokens: step {step} of {what} was fed {_ids(found)}, but should be {_ids(wanted)}{place}; it is of "
        "another prompt or continued it otherwise"
    )


def _ids(tokens: np.ndarray) -> str:
    shown = " ".join(map(str, tokens.reshape(-1)[:8].tolist()))
    return f"[{shown}{' ...' if tokens.size > 8 else ''}] {list(tokens.shape)}"
