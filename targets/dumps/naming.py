"""Which tap an entry of a dump is: by declared rules alone, and what is left over on either side.

In this order: the user's map file; the tap that the dump itself names; the very name of a tap, or one that
the original programs used for it, by the dump or by the value that the `atc` json ties to an entry. What no
rule names keeps its own name and is listed. Where the reference's taps are not known, every name is taken as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from parity.harness.errors import UserError
from parity.harness.mapping import TapMap

from .core import Dumped
from .cvi import FOUR_DIMENSIONS, four_dimensions

#: Shape of a reference's record, by tap, step and call.
Shapes = Mapping[tuple[str, int, int], tuple[int, ...]]


def _nothing(name: str) -> str | None:
    """No table of a compiler."""


@dataclass(frozen=True)
class Naming:
    """What is known of names.

    `known` are the reference's taps (None: not known), `originals` names of other programs -> tap, and
    `origin` says which value of the original graph an entry of a compiled one is (None: none).
    """

    mapping: TapMap = field(default_factory=TapMap)
    known: Collection[str] | None = None
    originals: Mapping[str, str] = field(default_factory=dict)
    origin: Callable[[str], str | None] = _nothing

    def base(self, entry: Dumped) -> str:
        """The name that the map file's left side means: whichever it has, else the one that says most."""
        names = self._names(entry)
        return next(filter(self._mapped, names), names[0])

    def tap(self, entry: Dumped) -> tuple[str, str]:
        """The tap of an entry and the rule that named it; the rule is empty where none did."""
        base = self.base(entry)
        if self._mapped(base):
            return self.mapping.rename(base), f"renamed by {self.mapping.source}"
        if entry.tap and self._fits(entry.tap):
            return entry.tap, "named by the dump"
        for name in self._names(entry):
            rule = "" if name in (entry.name, entry.tap) else ", through the atc json"
            if self.known is not None and name in self.known:
                return name, f"of the same name{rule}"
            if name in self.originals:
                return self.originals[name], f"by their names in the original programs{rule}"
            if rule and self.known is None:
                return name, "named by the atc json"
        return base, ""

    def recorded(self, entry: Dumped) -> str:
        """The name for a run whose comparison applies the map file itself."""
        base = self.base(entry)
        return base if self._mapped(base) else self.tap(entry)[0]

    def _names(self, entry: Dumped) -> list[str]:
        found = (entry.tap, self.origin(entry.name), entry.name)
        return [name for name in found if name]

    def _mapped(self, name: str) -> bool:
        return bool(self.mapping.renames) and self.mapping.rename(name) != name

    def _fits(self, tap: str) -> bool:
        return self.known is None or tap in self.known


@dataclass
class Matching:
    """How the names of a dump and of a reference met, entry by entry."""

    known: Collection[str] | None = None
    rules: dict[str, int] = field(default_factory=dict)
    """How many entries each rule named."""
    taps: dict[str, str] = field(default_factory=dict)
    """Tap -> name in the dump, in execution order."""
    unmatched: dict[str, int] = field(default_factory=dict)
    """Names that no rule named -> how many entries they have."""

    def add(self, name: str, tap: str, rule: str) -> None:
        """Count an entry; UserError for a second name that ends up at the same tap."""
        other = self.taps.setdefault(tap, name)
        if other != name:
            raise UserError(
                f"tap={tap!r}: {other!r} and {name!r} of the dump are both named so; tell them apart in a "
                "map file"
            )
        if rule:
            self.rules[rule] = self.rules.get(rule, 0) + 1
        else:
            self.unmatched[name] = self.unmatched.get(name, 0) + 1


def unpadded(entry: Dumped, array: np.ndarray, wanted: tuple[int, ...] | None) -> tuple[np.ndarray, str]:
    """Undo the four dimensions of a CVI tensor where the reference's shape says what they were; the rule."""
    if wanted is None or entry.meta.get("layout") != FOUR_DIMENSIONS or wanted == array.shape:
        return array, ""
    if four_dimensions(wanted) != array.shape:
        return array, ""
    return array.reshape(wanted), f"{FOUR_DIMENSIONS}: {list(array.shape)} -> {list(wanted)}"
