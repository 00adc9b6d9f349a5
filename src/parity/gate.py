"""The reference is judged before anyone else: run again, it must agree with itself.

Its spread about itself is part of every noise floor. Where it is larger than what is allowed, nothing follows
from a comparison with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.comparison import Comparison, Finding
from parity.harness.judge import Floor
from parity.harness.noise import AGAIN, Noise, unsteady
from parity.harness.progress import Progress

from .floors import dtypes_of, measure_noise, measure_spread
from .twins import STEADY

if TYPE_CHECKING:
    from parity.harness.case import Case, ModuleCase
    from parity.harness.rows import Rules
    from parity.harness.trace import Run


def gated(
    comparison: Comparison,
    case: Case | ModuleCase,
    runs: tuple[Run, Run],
    rules: Rules,
    cache: Path,
    *,
    progress: Progress,
) -> Comparison:
    """The comparison with what the reference's steadiness says of it; `runs` are reference and candidate."""
    own = dtypes_of(runs[0])[0]
    explained: dict[str, Floor] = {}
    spread: dict[str, Noise] = {}
    if rules.floors:
        measured = measure_noise(case, dtypes_of(*runs), cache, progress=progress)
        explained = {tap: noise.floor for tap, noise in measured.explained.items()}
        spread = dict(measured.spread) if own == "float32" else {}
    spread = spread or dict(measure_spread(case, own, cache, progress=progress))
    found = unsteady(comparison.records, spread, rules.tolerance, explained or rules.floors)
    findings = (*comparison.findings, *spread_findings(spread))
    unsound = comparison.unsound or (_unsound(found) if found else "")
    return replace(comparison, findings=findings, unsound=unsound)


def spread_findings(spread: Mapping[str, Noise]) -> list[Finding]:
    """The first tap at which the reference differs from itself, per circumstance."""
    first: dict[str, Noise] = {}
    for noise in spread.values():
        if noise.max_abs > 0.0:
            first.setdefault(noise.cause, noise)
    return [
        Finding(
            "warning" if cause == AGAIN else "note",
            f"the reference run {STEADY[cause]} departs from itself first at {_place(noise)}; "
            "that is part of the noise floor",
        )
        for cause, noise in first.items()
    ]


def _unsound(noise: Noise) -> str:
    return (
        f"the reference is less stable than the tolerance: run {STEADY[noise.cause]}, it departs from "
        f"itself at {_place(noise)}"
    )


def _place(noise: Noise) -> str:
    return f"{noise.tap}, step {noise.step}, by {noise.max_abs:.3g} ({noise.floor.rms:.2g} of the row's RMS)"
