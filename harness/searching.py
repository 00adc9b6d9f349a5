"""The smallest sets of parts that make a run fail, found by running subsets, and the log of those runs.

A *trial* takes some parts from the candidate and all others from the reference. Each culprit costs about
2 log2(n) trials (QuickXplain, Junker 2004), also where several parts fail only together. Every outcome is
kept in a file, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InconclusiveError, UserError
from .progress import Progress, Silent

GOOD, BAD, UNKNOWN = "good", "bad", "cannot tell"
#: What runs one trial: the parts taken from the candidate -> GOOD, BAD or UNKNOWN.
Oracle = Callable[[tuple[str, ...]], str]


@dataclass
class Trials:
    """An oracle that is asked about each subset once; outcomes live in `path` where one is given.

    `identity` says what the outcomes belong to; a file of another identity is refused.
    """

    items: tuple[str, ...]
    oracle: Oracle
    path: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    tried: dict[tuple[str, ...], str] = field(default_factory=dict)
    #: Trials that were executed now, not read from the file.
    executed: int = 0

    def bad(self, taken: Sequence[str]) -> bool:
        """Whether a run with these parts from the candidate fails; a trial that cannot tell is no failure."""
        return self.ask(taken) == BAD

    def ask(self, taken: Sequence[str]) -> str:
        """The outcome of one subset, from the log or executed now and written down."""
        chosen = set(taken)
        subset = tuple(item for item in self.items if item in chosen)
        if subset not in self.tried:
            outcome = self.oracle(subset)
            self.executed += 1
            self.tried[subset] = outcome
            self.progress.say(f"trial {len(self.tried)}: {shown(subset, self.items)}: {outcome}")
            self._write()
        return self.tried[subset]

    def resume(self) -> None:
        """Take the outcomes of a search that was stopped, if there is one; UserError for another search's."""
        if self.path is None or not self.path.exists():
            return
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            known = {tuple(row["taken"]): str(row["outcome"]) for row in data["trials"]}
            identity = data["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"resume: {self.path} is no log of a search ({error}); remove it") from error
        differ = [key for key, value in self._identity().items() if identity.get(key) != value]
        if differ:
            raise UserError(
                f"resume: {self.path} belongs to another search ({', '.join(differ)} differ); "
                "name another --out"
            )
        self.tried.update(known)

    def _identity(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps({"items": self.items, **self.identity}, default=str))
        return plain

    def _write(self) -> None:
        """The whole log beside, then renamed: a kill leaves the old one or the new one."""
        if self.path is None:
            return
        rows = [{"taken": list(taken), "outcome": outcome} for taken, outcome in self.tried.items()]
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump({"identity": self._identity(), "trials": rows}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """What a search came to: groups of parts, each of which fails alone with all else from the reference.

    A group of several parts fails only as a whole. `repaired`: with all of them from the reference and
    everything else from the candidate the run passes. `alone`: each group was seen to fail by itself.
    """

    groups: tuple[tuple[str, ...], ...]
    repaired: bool
    alone: bool = True
    unsure: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Every culprit, in the order of the groups."""
        return tuple(part for group in self.groups for part in group)

    @property
    def proven(self) -> bool:
        """Whether exactly these parts explain the failure: each fails alone, without them the run passes."""
        return bool(self.groups) and self.repaired and self.alone


def search(trials: Trials, items: Sequence[str] | None = None) -> Found:
    """Every culprit among `items`; no group where all of them from the candidate pass.

    Raises InconclusiveError where the whole candidate, or the reference itself, cannot be judged.
    """
    rest = tuple(items if items is not None else trials.items)
    whole = trials.ask(rest)
    if whole == UNKNOWN:
        raise InconclusiveError(
            "the check cannot tell anything of the whole candidate; nothing can be searched"
        )
    if whole == GOOD:
        return Found((), repaired=True)
    if trials.ask(()) != GOOD:
        raise InconclusiveError(
            "the run fails with every part from the reference: the fault lies in what is around the parts, "
            "or in the check itself"
        )
    groups: list[tuple[str, ...]] = []
    while rest and trials.bad(rest):
        group = smallest(trials, rest)
        groups.append(group)
        rest = tuple(item for item in rest if item not in group)
    ranked = tuple(sorted(groups, key=lambda group: trials.items.index(group[0])))
    repaired, alone = trials.ask(rest) == GOOD, [trials.bad(group) for group in ranked]
    return Found(ranked, repaired, all(alone), unsure=UNKNOWN in trials.tried.values())


def smallest(trials: Trials, items: Sequence[str]) -> tuple[str, ...]:
    """A smallest failing subset of `items`, which fail together: no part of it can be left out."""
    found = _needed(trials, (), False, tuple(items))
    return tuple(item for item in items if item in found)


def _needed(trials: Trials, given: tuple[str, ...], grown: bool, items: tuple[str, ...]) -> tuple[str, ...]:
    """What of `items` is needed beside `given`, so that the run still fails."""
    if grown and trials.bad(given):
        return ()
    if len(items) == 1:
        return items
    middle = len(items) // 2
    first, second = items[:middle], items[middle:]
    later = _needed(trials, (*given, *first), True, second)
    earlier = _needed(trials, (*given, *later), bool(later), first)
    return (*earlier, *later)


def tree(tried: Mapping[tuple[str, ...], str], items: Sequence[str]) -> list[str]:
    """What was tried, as lines: each subset under the smallest failing one before it that holds it."""
    children: dict[tuple[str, ...] | None, list[tuple[str, ...]]] = {}
    seen: list[tuple[str, ...]] = []
    for taken, outcome in tried.items():
        above = [other for other in seen if set(taken) < set(other)]
        children.setdefault(min(above, key=len) if above else None, []).append(taken)
        if outcome == BAD:
            seen.append(taken)
    return [f"{lead}{shown(taken, items)}: {tried[taken]}" for lead, taken in _branches(children, None, "")]


def _branches(
    children: Mapping[tuple[str, ...] | None, Sequence[tuple[str, ...]]],
    parent: tuple[str, ...] | None,
    indent: str,
) -> list[tuple[str, tuple[str, ...]]]:
    """Every node below `parent` with the strokes before it."""
    lines: list[tuple[str, tuple[str, ...]]] = []
    below = children.get(parent, ())
    for taken in below:
        last = taken == below[-1]
        stroke, deeper = ("", "") if parent is None else ("└─ ", "   ") if last else ("├─ ", "│  ")
        lines.append((indent + stroke, taken))
        lines += _branches(children, taken, indent + deeper)
    return lines


def shown(taken: Sequence[str], items: Sequence[str], limit: int = 6) -> str:
    """A subset in words, runs of neighbours as `a..b`."""
    if not taken:
        return "nothing from the candidate"
    if len(taken) == len(items):
        return "everything from the candidate"
    places = [items.index(item) for item in taken]
    parts: list[str] = []
    begin = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            first, last = taken[begin], taken[at - 1]
            parts.append(first if first == last else f"{first}..{last}")
            begin = at
    return ", ".join(parts[:limit]) + (f" and {len(parts) - limit} more" if len(parts) > limit else "")
