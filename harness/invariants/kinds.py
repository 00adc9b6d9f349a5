"""One invariant of one target: whether it holds, where it is broken, and how much was looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1

#: Relative size of a row's error that is rounding, by number format; formats that are not here are quantized.
#: Tables of rotations are made in float32, whatever the format is.
ROUNDING = {"float64": 1e-6, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


@dataclass(frozen=True)
class Invariant:
    """`status` is holds, violated or skipped (with the reason); `error` is relative to the row's size."""

    name: str
    status: str
    checked: int = 0
    reason: str = ""
    tap: str = ""
    step: int | None = None
    where: str = ""
    error: float | None = None

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        if self.status == "skipped":
            return f"{self.name}: not checked, {self.reason}"
        if self.status == "holds":
            return f"{self.name}: holds in {self.checked:,} rows"
        place = ", ".join(filter(None, [self.tap, f"step {self.step}", self.where]))
        size = "" if self.error is None else f" (error {self.error:.2g} of the row)"
        return f"{self.name}: broken at {place}{size}; {self.reason}"


@dataclass(frozen=True)
class InvariantReport:
    """All invariants of one target."""

    label: str
    found: tuple[Invariant, ...]
    failure: str = ""
    refused: str = ""

    @property
    def verdict(self) -> str:
        """`parity`, `divergence`, `inconclusive`, `failed` or `refused`, in the words of a comparison."""
        if self.refused or self.failure:
            return "refused" if self.refused else "failed"
        counts = Counter(one.status for one in self.found)
        if counts["violated"]:
            return "divergence"
        return "parity" if counts["holds"] else "inconclusive"

    @property
    def exit_code(self) -> int:
        """As of a run (DESIGN section 8)."""
        return {"parity": 0, "divergence": 1, "refused": 2, "inconclusive": 3, "failed": 4}[self.verdict]

    def __getitem__(self, name: str) -> Invariant:
        return next(one for one in self.found if one.name == name)


@dataclass(frozen=True)
class InvariantsResult:
    """Everything one `parity invariants` found."""

    reports: tuple[InvariantReport, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The gravest of the targets."""
        codes = {report.exit_code for report in self.reports}
        return next((code for code in (2, 4, 1, 3) if code in codes), 0 if codes else 3)

    def to_json(self) -> dict[str, Any]:
        """Plain data under a versioned schema."""
        reports = [
            {"label": report.label, "verdict": report.verdict, "exit_code": report.exit_code}
            | {"failure": report.failure, "refused": report.refused}
            | {"invariants": [asdict(one) | {"sentence": one.sentence} for one in report.found]}
            for report in self.reports
        ]
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "provenance": dict(self.provenance),
            "candidates": reports,
        }
