"""Two runs seen so that records answer to every name that they have.

A record keeps one name and lists others as aliases (see alias.py); files of the original tool begin names
with a dot. Each run is shown under the names by which the other one asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Renamed:
    """A record under another of its names, with the call number that it has there."""

    __slots__ = ("_record", "call", "tap")

    def __init__(self, record: Any, tap: str, call: int) -> None:
        self._record, self.tap, self.call = record, tap, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)


class View:
    """A run whose records stand under the names that `asked` knows; what a run is else stays the same."""

    def __init__(self, run: Any, asked: frozenset[str]) -> None:
        self._run = run
        self._by_tap: dict[str, list[Any]] = {}
        for record in run.records():
            shown = _shown(record, asked)
            self._by_tap.setdefault(shown.tap, []).append(shown)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def taps(self) -> list[str]:
        """Tap names in execution order."""
        return list(self._by_tap)

    def records(self, tap: str | None = None) -> Sequence[Any]:
        """Records in execution order, of one tap or of all; none for a tap that the run does not have."""
        if tap is not None:
            return self._by_tap.get(tap, [])
        return [record for records in self._by_tap.values() for record in records]


def facing(reference: Any, candidate: Any) -> tuple[View, View]:
    """Both runs, each under the names that the other one asks for."""
    expected, actual = _names(reference), _names(candidate)
    return View(reference, actual), View(candidate, expected)


def faced(reference: Any, candidate: Any, isolated: Any | None) -> tuple[Any, Any, Any | None]:
    """As `facing`, with the candidate's isolated replay; runs whose names are plain stay as they are."""
    if not any(tap.startswith((".", "module:")) for tap in (*reference.taps, *candidate.taps)):
        return reference, candidate, isolated
    alone = None if isolated is None else facing(reference, isolated)[1]
    return *facing(reference, candidate), alone


def _names(run: Any) -> frozenset[str]:
    """Every name that a record of the run answers to."""
    names = set()
    for record in run.records():
        names |= {record.tap.lstrip("."), *_aliases(record)}
    return frozenset(names)


def _aliases(record: Any) -> dict[str, int]:
    aliases: dict[str, int] = record.meta.get("alias", {})
    return aliases


def _shown(record: Any, asked: frozenset[str]) -> Any:
    plain = record.tap.lstrip(".")
    if plain not in asked:
        for alias, call in _aliases(record).items():
            if alias in asked:
                return Renamed(record, alias, call)
    return record if plain == record.tap else Renamed(record, plain, record.call)
