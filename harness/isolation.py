"""How finely local errors were separated: value by value, or no further than a segment.

In an isolated replay each part is fed the reference's values. Where a value inside a part is *pinned*, all
that comes after it goes on with the reference's value too, so that its error ends there. Where it is not, it
carries on: what comes after it in the same part may be wrong only because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Every tap is pinned but those named; or each segment, or each module, is only fed right inputs.
TAPS, SEGMENTS, MODULES = "taps", "segments", "modules"
#: What a submodule is handed stands under `module:PATH:in.NAME`; the reference's side has this behind it.
HANDED, EXPECTED = ":in", "@reference"


@dataclass(frozen=True)
class Isolation:
    """`kind` is `taps`, `segments` or `modules`, empty where nothing was isolated.

    `unpinned`: tap -> why its error carries on; `refused`: tap -> why it has no local error. `shared`: tap ->
    earlier ones beside or inside it that are made of a value which no tap stands for: one fault shows in all.
    """

    kind: str = ""
    unpinned: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def carries(self, tap: str) -> bool:
        """Whether the error of a tap may be found again in what comes after it."""
        return self.kind != TAPS or tap in self.unpinned

    def to_json(self) -> dict[str, Any]:
        """Plain data, as stored in the isolated run."""
        return asdict(self)


def isolation_of(provenance: Mapping[str, Any]) -> Isolation:
    """What an isolated run says of itself; runs of older versions fed segments and pinned nothing."""
    return Isolation(**provenance.get("isolation", {"kind": SEGMENTS}))


def related(tap: str, earlier: str) -> bool:
    """Whether two taps lie beside each other, or the earlier one inside the other."""
    return earlier.startswith(f"{tap}.") or tap.rpartition(".")[0] == earlier.rpartition(".")[0]


def handed_tap(tap: str) -> str:
    """The tap of the module that is handed `tap`: `module:fc:in.0` -> `module:fc`."""
    return tap.rpartition(HANDED)[0]
