"""How far narrow arithmetic may depart where no floor was measured, and quantized arithmetic ever.

A format explains errors up to a ceiling. A quantized candidate must besides stay close to its emulation,
which runs the same scales in exact integer arithmetic: what is left is the implementation. Rows are judged,
as by any noise floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .judge import FACTOR, Floor

if TYPE_CHECKING:
    from .trace import Run

#: Largest relative error of a row (RMS) that each arithmetic explains. Seen on healthy builds of KLM at the
#: worst head of the worst layer: 0.26, 0.05, 0.4; bf16 0.02.
CEILINGS = {"w8a8": 0.5, "w8a16": 0.2, "w4a16": 0.8, "bfloat16": 0.1, "float16": 0.0125}
QUANTIZED = ("w8a8", "w8a16", "w4a16")
#: The largest error of a row over the RMS that is allowed; gated activations have heavy tails, 4.1 was seen.
PEAK = 8.0
#: A row may be so many times as far from the reference as its emulation on the whole; 2.8 was seen.
CLOSE = 4.0


def ceiling(profile: str) -> Floor:
    """The floor, of which `FACTOR` times is what the format explains at most."""
    rms = CEILINGS[profile] / FACTOR
    return Floor(rms, PEAK * rms)


def ceilings(profile: str, runs: Iterable[Run]) -> dict[str, Floor]:
    """The ceiling at every tap of floating values; integers (token ids) are exact."""
    found: dict[str, Floor] = {}
    for run in runs:
        for tap in run.taps:
            exact = "float" not in run.records(tap)[0].dtype
            found.setdefault(tap, Floor(0.0, 0.0) if exact else ceiling(profile))
    return found


def around(emulated: Mapping[str, Floor], profile: str) -> dict[str, Floor]:
    """`CLOSE` times the emulation's own distance from the reference, under the ceiling."""
    top, share = ceiling(profile), CLOSE / FACTOR
    return {
        tap: Floor(min(share * floor.rms, top.rms), min(share * floor.peak, top.peak))
        for tap, floor in emulated.items()
    }
