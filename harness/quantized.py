"""How far quantized arithmetic may depart: no further than its format explains, and close to its emulation.

An emulation runs the same scales in exact integer arithmetic, so what is left is the implementation: little.
Where there is none, the ceiling of the format alone decides. Rows are judged, as by any noise floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .judge import FACTOR, Floor

if TYPE_CHECKING:
    from .trace import Run

#: Largest relative error of a row (RMS) that each arithmetic explains. Measured on healthy builds of KLM, at
#: the worst head of the worst layer: 0.26, 0.05, 0.4.
CEILINGS = {"w8a8": 0.5, "w8a16": 0.2, "w4a16": 0.8}
#: The largest error of a row is so many times its RMS; 4 is one value in 16,000 of a normal distribution.
PEAK = 4.0
#: A candidate may be so many times as far from the reference as its emulation is.
CLOSE = 2.0


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
