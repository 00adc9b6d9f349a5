"""What the catalogue holds: planted bugs and harmless changes, each a small named patch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

Apply = Callable[[pytest.MonkeyPatch], None]

#: Where code of the torch segments runs: the two targets of every day, and the rest of the matrix.
CODE = ("segmented", "prefilled")
WEIGHTS = ("segmented", "onnx")
MATRIX = ("segmented", "prefilled", "onnx", "segmented:grow", "segmented:recompute", "segmented:bf16")

#: Targets that compile what was exported: whatever is planted into exported code reaches them too.
CHIPS = ("cvi", "bm1684x")

#: What a tap of the cache belongs to, in the words of the report.
CACHE = re.compile(r"layer\d+\.[kv]s$")


@dataclass(frozen=True)
class Birth:
    """Tap and step at which a bug first shows."""

    tap: str
    step: int

    @classmethod
    def read(cls, text: str) -> Birth:
        """`layer0.q`, or `rope@1` for a later step than the prompt's."""
        tap, _, step = text.partition("@")
        return cls(tap, int(step or 0))


@dataclass(frozen=True)
class Plant:
    """One bug.

    `apply` patches it in, for the duration of one run. `born` is where, as `Birth.read` takes it; `where`
    says it for a target that shows it elsewhere. `on` are the targets of every day, the home first, `also`
    those of the whole matrix. `says` are patterns of which each must be found in the explanation.
    """

    name: str
    family: str
    born: str
    apply: Apply
    says: tuple[str, ...] = ()
    setting: str = "brief"
    on: tuple[str, ...] = CODE
    also: tuple[str, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)

    def birth(self, cand: str) -> Birth:
        """Where it is born in this target; one that starts from a shipped prompt has no step 0."""
        found = Birth.read(self.where.get(cand, self.born))
        if cand.startswith(("prefilled", *CHIPS)) and cand not in self.where:
            return Birth(found.tap, max(found.step, 1))
        return found

    def case(self, cand: str) -> str:
        """The setting; a chip's builds have no mask, so that their prompt fills the window."""
        return "chip" if cand.startswith(CHIPS) else self.setting

    def reaches(self, cand: str) -> bool:
        """Whether it can be planted there at all."""
        known = self.targets(full=True)
        return cand in known or (cand.startswith(CHIPS) and "onnx" in known)

    def targets(self, *, full: bool) -> tuple[str, ...]:
        """Where it is planted."""
        return tuple(dict.fromkeys((*self.on, *self.also))) if full else self.on


@dataclass(frozen=True)
class Harmless:
    """A change of bits that is none of meaning; `options` are those of the run beyond its setting's."""

    name: str
    family: str
    apply: Apply = lambda patch: None
    setting: str = "brief"
    on: tuple[str, ...] = ("segmented",)
    options: Mapping[str, object] = field(default_factory=dict)


def part_of(tap: str) -> str:
    """The part that a tap lies in: a segment of ours, the cache, or a layer of someone's module."""
    if CACHE.match(tap):
        return "cache"
    if tap.startswith("module:"):
        found = re.match(r"module:.*?\.\d+(?=\.|$)", tap)
        return found[0] if found else tap
    from parity.models import find_model

    return find_model("klm-tiny").wiring.producer(tap) or tap
