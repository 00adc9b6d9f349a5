"""Which weight of a candidate is which of the reference: by content, by name where content decides nothing.

Sketches (quantiles of magnitudes) choose the few tensors that are really held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..progress import Progress, Silent
from .pieces import pieces_of, told
from .relate import FAULT, NOTE, OK, Relation, differing, plain, relate
from .weight import QUANTILES, Weight, sketch

#: Tensors whose sketches are nearest, that are looked at in full.
NEAREST = 8
#: Sketches further apart than this are of other values, whatever was done; codes may lie thrice as far.
FAR = 0.35
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class Row:
    """One tensor of the candidate and what it was found to be; no `reference`: nothing that is known."""

    candidate: str
    reference: str
    relation: Relation
    dtype: str = ""
    shape: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        relation = {
            "relation": self.relation.kind,
            "detail": self.relation.detail,
            "level": self.relation.level,
        }
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            **relation,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


@dataclass(frozen=True)
class Report:
    """Rows in the candidate's order, then what the reference has and the candidate lacks."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def faults(self) -> tuple[Row, ...]:
        """What is wrong with a tensor that is there."""
        return tuple(row for row in self.rows if row.relation.level == FAULT)

    @property
    def matched(self) -> int:
        """Tensors of the candidate that are known."""
        return sum(bool(row.reference) for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 every weight is there and right, 1 faults, 3 nothing could be matched."""
        return 3 if not self.matched else 1 if self.faults or self.missing else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "missing": list(self.missing),
            "absent": list(self.absent),
            "tied": [list(names) for names in self.tied],
            "matched": self.matched,
            "exit_code": self.exit_code,
        }


def match(
    weights: Sequence[Weight],
    reference: Mapping[str, np.ndarray[Any, Any]],
    *,
    expected: Mapping[str, str] | None = None,
    optional: Iterable[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Hold every weight against the reference's tensors.

    `expected` maps a weight's label (without the prefixes of wrappers) to the reference's name where that is
    known; else equal names go together. A tensor in `optional` (a table that is no weight) may be lacking.
    """
    return _Match(weights, reference, dict(expected or {}), set(optional), progress or Silent()).report()


@dataclass
class _Match:
    weights: Sequence[Weight]
    reference: Mapping[str, np.ndarray[Any, Any]]
    expected: dict[str, str]
    optional: set[str]
    progress: Progress
    used: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {name: np.asarray(array, np.float32) for name, array in self.reference.items()}
        self.names = list(self.tensors)
        made = [sketch(array) for array in self.tensors.values()]
        self.sketches = np.array(made, np.float32).reshape(-1, QUANTILES)
        self.sizes = np.array([array.size for array in self.tensors.values()])
        self.plain_names = {_bare(name): name for name in self.names}
        self.tied = self._ties()

    def report(self) -> Report:
        """Every weight in the plain ways first; what is left may have been altered, joined or cut."""
        rows: dict[int, Row] = {}
        with self.progress.stage("matching weights", len(self.weights)) as bar:
            for at, weight in enumerate(self.weights):
                found = self._same(weight)
                if found is not None:
                    rows[at] = self._row(weight, *found)
                    bar.advance()
            for at, weight in enumerate(self.weights):
                if at not in rows:
                    rows[at] = self._left(weight)
                    bar.advance()
        ordered = self._turned(self._in_order([rows[at] for at in range(len(self.weights))]))
        held = {other for name in self.used for other in self.tied.get(name, (name,))}
        lacking = [name for name in self.names if name not in held]
        return Report(
            tuple(self._twice(self._swapped(ordered))),
            tuple(name for name in lacking if name not in self.optional),
            tuple(name for name in lacking if name in self.optional),
            tuple(dict.fromkeys(names for names in self.tied.values() if self._told(names))),
        )

    def _told(self, names: tuple[str, ...]) -> bool:
        """Whether equal tensors are tied: ones and zeros are equal by their nature."""
        array = self.tensors[names[0]]
        return len(names) > 1 and array.size > 1 and bool(np.ptp(array))

    def _ties(self) -> dict[str, tuple[str, ...]]:
        """Name -> all names of tensors with the same bits, itself among them."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, array in self.tensors.items():
            groups.setdefault((array.shape, hash(array.tobytes())), []).append(name)
        return {name: tuple(names) for names in groups.values() for name in names}

    def _want(self, weight: Weight) -> str | None:
        label = f"{weight.place}:{_bare(weight.name)}" if weight.place else _bare(weight.name)
        found = self.expected.get(label) or self.plain_names.get(_bare(weight.name))
        return found if found in self.tensors else None

    def _near(self, weight: Weight) -> list[str]:
        """The reference's tensors of this size, the most similar first; the one of the name before all."""
        places, far = np.flatnonzero(self.sizes == weight.values.size), (1 + 2 * weight.quantized) * FAR
        apart = np.abs(self.sketches[places] - weight.sketch).max(axis=1) if len(places) else np.zeros(0)
        ranked = [self.names[places[i]] for i in np.argsort(apart, kind="stable") if apart[i] < far]
        want, similar = self._want(weight), ranked[:NEAREST]
        return list(dict.fromkeys([*([want] if want else []), *similar]))

    def _same(self, weight: Weight) -> tuple[str, Relation] | None:
        """The tensor whose values these are; of several that are equal the one of the name."""
        fits = [
            (name, found)
            for name in self._near(weight)
            if (found := plain(weight, self.tensors[name])) is not None
        ]
        if not fits:
            return None
        want = self._want(weight)

        def rank(fit: tuple[str, Relation]) -> tuple[bool, bool, bool, int]:
            name, relation = fit
            return name != want, relation.level != OK, name in self.used, -_alike(weight.name, name)

        return min(fits, key=rank)

    def _left(self, weight: Weight) -> Row:
        """One that equals nothing: altered, put together of parts, or unknown."""
        want = self._want(weight)
        free = [name for name in self._near(weight) if name == want or name not in self.used]
        for name in free:
            found = relate(weight, self.tensors[name])
            if found is not None and (name == want or weight.values.size > 3):
                return self._row(weight, name, found)
        parts = pieces_of(weight, self.tensors)
        if parts:
            for piece in parts:
                self.used.setdefault(piece.name, []).append(weight.label)
            return _line(weight, ", ".join(dict.fromkeys(p.name for p in parts)), told(parts, self.tensors))
        if want is not None:
            return self._row(weight, want, differing(weight, self.tensors[want]))
        return _line(weight, "", Relation("unused", "is no tensor of the reference", NOTE))

    def _row(self, weight: Weight, name: str, relation: Relation) -> Row:
        self.used.setdefault(name, []).append(weight.label)
        return _line(weight, name, relation)

    def _swapped(self, rows: Iterable[Row]) -> Iterable[Row]:
        """Right values under another's name: the two were swapped, or one was copied."""
        rows = list(rows)
        holds = {row.candidate: row.reference for row in rows}
        wants = {w.label: want for w in self.weights if (want := self._want(w)) is not None}
        for row in rows:
            want = wants.get(row.candidate)
            if want is None or row.reference in ("", *self.tied[want]) or row.reference not in self.tensors:
                yield row
                continue
            other = next((k for k, v in wants.items() if v == row.reference and holds.get(k) == want), None)
            told = f"with {other}" if other else f"holds {row.reference}, should hold {want}"
            detail = f"{told} ({row.relation.kind})" if row.relation.kind != "equal" else told
            kind = "swapped" if other else "wrong place"
            yield Row(row.candidate, row.reference, Relation(kind, detail, FAULT), row.dtype, row.shape)

    def _twice(self, rows: Iterable[Row]) -> Iterable[Row]:
        """A tensor that several weights hold, where the reference has it once; the one of the name may."""
        own = {weight.label for weight in self.weights if self._want(weight) is not None}
        for row in rows:
            users = self.used.get(row.reference, [])
            more = len(users) > len(self.tied.get(row.reference, ()))
            if more and row.relation.level == OK and row.candidate not in own:
                others = ", ".join(label for label in users if label != row.candidate)
                relation = Relation("used twice", f"{others} holds it too ({row.relation.kind})", NOTE)
                row = Row(row.candidate, row.reference, relation, row.dtype, row.shape)
            yield row

    def _turned(self, rows: list[Row]) -> list[Row]:
        """A transposed square matrix is right where matrices of other shapes are transposed too."""
        by_label = {weight.label: weight for weight in self.weights}
        flat = [row for row in rows if row.reference in self.tensors and len(row.shape) == 2]
        oblong = [row for row in flat if row.shape[0] != row.shape[1]]
        for kind in (True, False):
            votes = [_is_turned(row) for row in oblong if by_label[row.candidate].turned == kind]
            common = sum(votes) * 2 > len(votes)
            for row in flat:
                if by_label[row.candidate].turned != kind or row.relation.level == FAULT:
                    continue
                if _is_turned(row) == common or row in oblong:
                    continue
                why = "transposed, as no other is" if _is_turned(row) else "not transposed, as the others are"
                fault = Relation("transposed", f"{why} ({row.relation.detail or row.relation.kind})", FAULT)
                rows[rows.index(row)] = Row(row.candidate, row.reference, fault, row.dtype, row.shape)
        return rows

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """Parts of one tensor of the reference must come in its order."""
        starts: dict[str, list[tuple[int, int]]] = {}
        for at, row in enumerate(rows):
            if row.relation.kind == "part" and row.reference in self.tensors:
                first = int(row.relation.detail.split("..")[0].split()[-1])
                starts.setdefault(row.reference, []).append((at, first))
        for name, found in starts.items():
            if [first for _, first in found] != sorted(first for _, first in found):
                for at, _ in found:
                    row = rows[at]
                    told = Relation("split in another order", f"{row.relation.detail} of {name}", FAULT)
                    rows[at] = Row(row.candidate, name, told, row.dtype, row.shape)
        return rows


def _line(weight: Weight, name: str, relation: Relation) -> Row:
    return Row(weight.label, name, relation, weight.dtype, weight.values.shape)


def _is_turned(row: Row) -> bool:
    return row.relation.kind == "transposed"


def _bare(name: str) -> str:
    """Without the prefixes that wrappers put in front."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _alike(own: str, other: str) -> int:
    """How many of the last words of two dotted names agree."""
    count = 0
    for mine, theirs in zip(reversed(own.split(".")), reversed(other.split(".")), strict=False):
        if mine != theirs:
            break
        count += 1
    return count
