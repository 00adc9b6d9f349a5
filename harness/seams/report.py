"""What the seam suite found for one target, and the sentence that names the seam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class WayResult:
    """One way: `status` is pass, fail, skipped or failed.

    `tap`, `where` and `position` are its first departure, `seam` the seam before it; `ratio` the worst error
    over what is allowed, `compared` the taps that were held.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    seam: str = ""
    tap: str = ""
    where: str = ""
    position: int | None = None
    ratio: float | None = None
    compared: int = 0
    seams: tuple[int, ...] = field(default=(), repr=False)

    @property
    def place(self) -> str:
        """`layer0.vs, head 1, position 16`."""
        return ", ".join(filter(None, [self.tap, self.where]))


@dataclass(frozen=True)
class SeamReport:
    """All ways of one target."""

    label: str
    ways: tuple[WayResult, ...]
    failure: str = ""
    refused: str = ""

    @property
    def verdict(self) -> str:
        """`parity`, `divergence`, `inconclusive`, `failed` or `refused`."""
        if self.refused or self.failure:
            return "refused" if self.refused else "failed"
        found = Counter(way.status for way in self.ways)
        if found["failed"]:
            return "failed"
        if found["fail"]:
            return "divergence"
        return "parity" if found["pass"] > 1 else "inconclusive"

    @property
    def exit_code(self) -> int:
        """As of a run (DESIGN section 8)."""
        return {"parity": 0, "divergence": 1, "refused": 2, "inconclusive": 3, "failed": 4}[self.verdict]

    @property
    def sentence(self) -> str:
        """The answer, with the seam where there is one."""
        if self.verdict in ("failed", "refused"):
            broken = next((way for way in self.ways if way.status == "failed"), None)
            return self.failure or self.refused or (f"{broken.name}: {broken.reason}" if broken else "")
        passed = sum(way.status == "pass" for way in self.ways)
        if self.verdict == "inconclusive":
            reasons = list(dict.fromkeys(way.reason for way in self.ways if way.status == "skipped"))
            return f"nothing is proven: {passed} way was run; {'; '.join(reasons[:3])}"
        if self.verdict == "parity":
            return f"no seam: {passed} ways agree with one plain prefill"
        return self._divergence()

    def _divergence(self) -> str:
        wrong = [way for way in self.ways if way.status == "fail"]
        if wrong[0].kind == "whole":
            return f"no seam: one prefill departs already, at {wrong[0].place}; look with `parity run`"
        named = _common(wrong, [way for way in self.ways if way.status == "pass"])
        first, told = named or (wrong[0], f"{len(wrong)} of {len(self.ran)} ways depart")
        return f"{first.seam}: {first.place} ({first.name}); {told}"

    @property
    def ran(self) -> Sequence[WayResult]:
        """The ways that were held."""
        return [way for way in self.ways if way.status in ("pass", "fail")]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "label": self.label,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "ways": [asdict(way) for way in self.ways],
        }


def _common(wrong: Sequence[WayResult], right: Sequence[WayResult]) -> tuple[WayResult, str] | None:
    """The seam that all wrong ways have and no right one: the way to show it by, and the words."""
    if not wrong[0].seams:
        return None
    starts = [seam for seam in wrong[0].seams if all(seam in way.seams for way in wrong)]
    only = [seam for seam in starts if not any(seam in way.seams for way in right)]
    shown = next((way for way in wrong if way.position in only), None)
    if shown is None:
        return None
    count = f"all {len(wrong)} ways" if len(wrong) > 1 else "the only way"
    return shown, f"{count} that begin{'s' if len(wrong) == 1 else ''} a piece there, and no other"


@dataclass(frozen=True)
class SeamsResult:
    """Everything one `parity seams` found."""

    reports: tuple[SeamReport, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, label: str) -> SeamReport:
        for report in self.reports:
            if report.label == label:
                return report
        raise KeyError(f"no candidate {label!r}; there are {[report.label for report in self.reports]}")

    @property
    def exit_code(self) -> int:
        """The gravest of the candidates."""
        codes = {report.exit_code for report in self.reports}
        return next((code for code in (2, 4, 1, 3) if code in codes), 0 if codes else 3)

    def to_json(self) -> dict[str, Any]:
        """Plain data under a versioned schema."""
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "provenance": dict(self.provenance),
            "candidates": [report.to_json() for report in self.reports],
        }
