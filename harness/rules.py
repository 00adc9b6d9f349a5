"""What is allowed at each tap: a bound, a noise floor or a vendor's rule; and what an error is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .judge import Floor, Judgement, judge_bound, judge_floor, judge_vendor
from .measuring import Asked
from .quantized import CEILINGS, QUANTIZED, ceiling
from .row_noise import Answering

if TYPE_CHECKING:
    from .metrics import LogitMetrics, Metrics
    from .pairs import Pair
    from .series import Series
    from .tolerance import Bound, Tolerance
    from .vendors import Vendor

#: The three classes of what differs.
ROUNDING, QUANTIZATION, BUG = "rounding", "quantization", "bug"


@dataclass(frozen=True)
class Rules:
    """How records are judged: the tolerance, and the noise floor per tap where one is known.

    `narrow` is the narrow arithmetic that a side was computed in, if one was; `warnings` what a reader must
    know of the tolerance.
    """

    tolerance: Tolerance
    floors: Mapping[str, Floor]
    narrow: str = ""
    warnings: tuple[str, ...] = ()

    def of(self, tap: str, expected: str, actual: str) -> Rule:
        """What holds for the records of a tap in these number formats; whole numbers have no noise."""
        bound, own = self.tolerance.bound(tap, expected, actual), self.tolerance.overrides(tap)
        whole = not any(kind in expected for kind in ("float", "complex"))
        floor = None if whole or own else self.floors.get(tap)
        asked = Asked(bound.atol, bound.rtol, rows=floor is not None)
        vendor = None if own else self.tolerance.vendor
        return Rule(bound, floor, self.tolerance.allows_nonfinite(tap), asked, vendor, self.narrow)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed at one tap, the floor before the bound, and what must be measured to judge it."""

    bound: Bound
    floor: Floor | None
    nonfinite: bool
    asked: Asked
    vendor: Vendor | None = None
    narrow: str = ""

    @property
    def by_bound(self) -> bool:
        """Whether the bound alone decides."""
        return self.floor is None and self.vendor is None

    def judge(
        self,
        metrics: Metrics,
        logits: LogitMetrics | None = None,
        of: tuple[Series | Pair, int] | None = None,
    ) -> Judgement:
        """The judgement of one measured record: `of` a source, the pair in this place."""
        if self.vendor is not None:
            return judge_vendor(metrics, logits, self.vendor, allow_nonfinite=self.nonfinite)
        if self.floor is None:
            return judge_bound(metrics, self.bound, allow_nonfinite=self.nonfinite)
        rows = self.floor.rows
        shares = rows.of(*of, metrics.plan) if isinstance(rows, Answering) and of is not None else None
        return judge_floor(
            metrics,
            self.floor,
            dtype=metrics.dtype_actual,
            allow_nonfinite=self.nonfinite,
            shares=shares,
        )

    def kind(self, judgement: Judgement, metrics: Metrics) -> str:
        """What an error is: rounding, quantization or a bug; empty where there is none, or no telling.

        Beyond a measured floor it is a bug, within it what the arithmetic does. Under another rule a failure
        is no bug where the narrow arithmetic of a side explains as much.
        """
        explained = QUANTIZATION if self.narrow in QUANTIZED else ROUNDING
        if judgement.status == "pass" and self.floor is not None:
            return explained
        if judgement.status != "fail":
            return ""
        if self.floor is not None:
            return BUG
        if self.narrow not in CEILINGS or len(metrics.raw_rows) != metrics.plan.num_rows:
            return ""
        return explained if judge_floor(metrics, ceiling(self.narrow)).passed else BUG
