"""Judging one measured record. No I/O: what was measured and what is allowed go in, a status comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .metrics import LogitMetrics, Metrics, Survey
    from .metrics.widen import Format
    from .row_noise import Answering, RowShares
    from .tolerance import Bound
    from .vendors import Vendor

FACTOR = 8.0
"""A row passes up to this multiple of its floor: healthy reordering of sums reaches 3 x by row."""
SCALE_SHARE = 0.1
"""Quieter rows are held against this share of the tensor's RMS: their noise comes from louder rows."""

NO_SHARES = np.zeros((0, 2), np.uint8)

ABOVE = math.nextafter(1.0, 2.0)
"""A failing ratio is never rounded down to 1."""


class Judgement(NamedTuple):
    """`status` in the words of a verdict; `ratio` is the error over what is allowed, above 1 fails.

    `over_floor` is the error over the noise floor, 1.0 at the floor; `row` the worst row's index per axis.
    """

    status: str
    reason: str = ""
    ratio: float | None = None
    over_floor: float | None = None
    row: tuple[int, ...] | None = None

    @property
    def passed(self) -> bool:
        """Whether the record is equal or within what is allowed."""
        return self.status in ("equal", "pass")


EQUAL = Judgement("equal", ratio=0.0, over_floor=0.0)
RESPELLED = Judgement("pass", ratio=0.0, over_floor=0.0)


@dataclass(frozen=True, slots=True)
class Floor:
    """Noise of a tap relative to the scale of a row: of RMS errors, and of largest errors.

    `rest` is the noise of the other values of rows that one value dominates, relative to their own RMS; 0
    where no row is such, or where it was not measured: then they are not judged apart. `rows` say how much
    quieter each row is, where that was measured.
    """

    rms: float
    peak: float
    rest: float = 0.0
    rows: RowShares | Answering | None = field(default=None, compare=False, repr=False)

    @property
    def numbers(self) -> dict[str, float]:
        """What is written of it, rows apart."""
        return {"rms": self.rms, "peak": self.peak, "rest": self.rest}

    def merge(self, other: Floor) -> Floor:
        """The higher of each."""
        return Floor(max(self.rms, other.rms), max(self.peak, other.peak), max(self.rest, other.rest))


def settled(survey: Survey, *, by_bound: bool) -> Iterator[Judgement | None]:
    """Judgements of what needs no second look, as `judge_bound` gives them; None for what does.

    `by_bound`: the bound that was measured decides, no floor.
    """
    clear = (survey.counts("excluded") == 0) & (survey.counts("mismatched") == 0)
    equal = survey.floats("max_abs") == 0.0
    ratios = np.minimum(survey.floats("worst_ratio"), 1.0).tolist()
    for fine, same, ratio in zip(clear.tolist(), equal.tolist(), ratios, strict=True):
        if fine and same:
            yield EQUAL
        else:
            yield Judgement("pass", "", ratio) if fine and by_bound else None


def judge_bound(metrics: Metrics, bound: Bound, allow_nonfinite: bool = False) -> Judgement:
    """|a - e| <= atol + rtol * |e| at every place.

    With the bound that was measured the answer is exact. Another bound is decided from the joint histogram;
    what that cannot show to pass, fails, and the reason says so.
    """
    early = _before_values(metrics, allow_nonfinite)
    if early is not None:
        return early
    if (metrics.atol, metrics.rtol) == (bound.atol, bound.rtol):
        ratio = metrics.worst_ratio
        if metrics.mismatched > metrics.nan_both:
            return _bounded(metrics, bound, max(ratio, ABOVE))
        return Judgement("pass", ratio=min(ratio, 1.0))
    return _rejudged(metrics, bound)


def _bounded(metrics: Metrics, bound: Bound, ratio: float) -> Judgement:
    share = 100.0 * metrics.mismatched / metrics.count
    reason = (
        f"mismatched={metrics.mismatched} of {metrics.count} ({share:.3g} %), but should be 0 "
        f"under atol={bound.atol:g}, rtol={bound.rtol:g}"
    )
    return Judgement("fail", reason, ratio)


def _rejudged(metrics: Metrics, bound: Bound) -> Judgement:
    """Judge from the worst ratio to the bound that was measured, else from the joint histogram.

    The ratio is an upper bound; from the histogram at most twice too high.
    """
    sure = _carried(metrics, bound)
    if sure <= 1.0:
        return Judgement("pass", ratio=sure)
    joint = metrics.joint
    if not joint.count.size:
        return Judgement(
            "fail", "the stored metrics hold no histogram to judge another bound by; compare again"
        )
    low, high = joint.ref_bounds()
    most = _worst(joint.err_max, bound.atol + bound.rtol * low)
    if most <= 1.0:
        return Judgement("pass", ratio=most)
    ceiling = bound.atol + (bound.rtol * high if bound.rtol else 0.0)
    if _worst(joint.err_max, ceiling) > 1.0:
        count = joint.mismatches(bound.atol, bound.rtol)
        reason = (
            f"mismatched={count[0]} to {count[1]} of {metrics.count}, but should be 0 under {_words(bound)}"
        )
        return Judgement("fail", reason, most)
    return Judgement("fail", f"the histogram cannot show that {_words(bound)} holds; compare again", most)


def _carried(metrics: Metrics, bound: Bound) -> float:
    """The worst ratio under another bound, from that under the measured one; inf where none follows."""
    pairs = (metrics.atol, bound.atol), (metrics.rtol, bound.rtol)
    if not all(known > 0.0 and asked > 0.0 for known, asked in pairs):
        return math.inf
    return float(metrics.worst_ratio * max(known / asked for known, asked in pairs))


def _words(bound: Bound) -> str:
    return f"atol={bound.atol:g}, rtol={bound.rtol:g}"


def _worst(errors: np.ndarray[Any, Any], allowed: Any) -> float:
    with np.errstate(divide="ignore"):
        return float((errors / allowed).max())


def judge_vendor(
    metrics: Metrics, logits: LogitMetrics | None, vendor: Vendor, *, allow_nonfinite: bool = False
) -> Judgement:
    """Every limit of a published rule, on the numbers of one record; what it says nothing of is skipped."""
    early = _before_values(metrics, allow_nonfinite)
    if early is not None:
        return early
    if vendor.logits and logits is None:
        return Judgement("skipped", "the rule speaks of logits alone")
    checked = vendor.excess(metrics, logits)
    ratio = max(_times(value, most) for _, value, most in checked)
    failed = [
        f"{name}={value:.3g}, but should be at most {most:.3g}"
        for name, value, most in checked
        if not value <= most
    ]
    if failed:
        return Judgement("fail", "; ".join(failed), max(ratio, ABOVE))
    return Judgement("pass", ratio=min(ratio, 1.0))


def _times(value: float, most: float) -> float:
    if value <= 0.0:
        return 0.0
    return value / most if most > 0.0 else math.inf


def judge_floor(
    metrics: Metrics,
    floor: Floor,
    *,
    dtype: str | None = None,
    factor: float = FACTOR,
    allow_nonfinite: bool = False,
    shares: np.ndarray[Any, Any] | None = None,
) -> Judgement:
    """Each row's RMS and largest error against `factor` times its noise floor.

    Floor of a row = max(level * scale, half an ULP of the row's largest expected value in `dtype`, by default
    the candidate's); scale = max(RMS of the row, 0.1 * RMS of the tensor). Zeros allow no error. Where one
    value holds most of a row's energy, the others are judged without it too: it must not hide them. `shares`
    (`RowShares`) make the level of a row smaller.
    """
    early = _before_values(metrics, allow_nonfinite)
    if early is not None:
        return early
    if len(metrics.raw_rows) != metrics.plan.num_rows:
        return Judgement("fail", "rows were not measured or not kept, as a noise floor needs; compare again")
    if metrics.max_expected == 0.0:
        reason = f"the reference is zero everywhere, but the candidate reaches {metrics.max_actual:g}"
        return Judgement("fail", reason, math.inf, math.inf)
    over, row = _over_floor(metrics, floor, dtype or metrics.dtype_actual, shares)
    ratio = over / factor
    if ratio <= 1.0:
        return Judgement("pass", ratio=ratio, over_floor=over)
    index = (
        tuple(int(i) for i in np.unravel_index(row, metrics.plan.row_shape)) if metrics.plan.row_shape else ()
    )
    place = f" at row {list(index)}" if index else ""
    reason = f"error={over:.3g} times the noise floor{place}, but should be at most {factor:g} times"
    return Judgement("fail", reason, ratio, over, index)


def _over_floor(
    metrics: Metrics, floor: Floor, dtype: str, shares: np.ndarray[Any, Any] | None
) -> tuple[float, int]:
    worst_row, grid = _grid(dtype)
    worst, row = worst_row(
        metrics.raw_rows,
        metrics.plan.row_size,
        metrics.rms_expected,
        SCALE_SHARE,
        floor.rms,
        floor.peak,
        floor.rest,
        grid.mantissa if grid.kind == "float" else -1,
        grid.smallest_normal,
        grid.smallest,
        NO_SHARES if shares is None else shares,
    )
    return float(worst), int(row)


@cache
def _grid(dtype: str) -> tuple[Any, Format]:
    """The compiled judge of rows, loaded when first needed, and the grid of a number format."""
    from .metrics.rowjudge import WORST_ROW
    from .metrics.widen import number_format

    return WORST_ROW(), number_format(dtype)


def _before_values(metrics: Metrics, allow_nonfinite: bool) -> Judgement | None:
    """What is settled before any error is looked at: emptiness, NaN, Inf, equality."""
    if not metrics.count:
        return Judgement("skipped", f"empty: shape={list(metrics.shape)} holds no values")
    if metrics.excluded:
        if metrics.nan_mismatch:
            got, want = metrics.nan_actual, metrics.nan_expected
            reason = f"nan={got}, but should be {want}; {metrics.nan_mismatch} on one side only"
            return Judgement("fail", reason, math.inf)
        if metrics.inf_mismatch:
            reason = f"inf={metrics.inf_mismatch} on one side only or of opposite sign"
            return Judgement("fail", reason, math.inf)
        if metrics.nan_both and not allow_nonfinite:
            return Judgement("nonfinite", f"nan={metrics.nan_both} on both sides at the same places")
    if metrics.max_abs == 0.0:
        return RESPELLED if metrics.respelled else EQUAL
    return None


def floor_from(metrics: Metrics) -> Floor:
    """The relative noise that a pair measured with rows shows: the largest of error / scale among rows."""
    assert len(metrics.raw_rows) == metrics.plan.num_rows
    from .metrics.rowjudge import LEVELS

    rms, peak, rest = LEVELS()(metrics.raw_rows, metrics.plan.row_size, metrics.rms_expected, SCALE_SHARE)
    return Floor(float(rms), float(peak), float(rest))


def minimum_tolerance(metrics: Metrics) -> tuple[float, float]:
    """The least (atol, rtol) of equal weight, atol = rtol * RMS of the reference, that is sure to pass.

    Bounded by the joint histogram, so at most twice what the values themselves would need; (inf, inf) when
    something is not finite on one side.
    """
    if metrics.nan_mismatch or metrics.inf_mismatch:
        return math.inf, math.inf
    if metrics.max_abs == 0.0:
        return 0.0, 0.0
    scale = metrics.rms_expected
    if scale == 0.0 or not metrics.joint.count.size:
        return metrics.max_abs, 0.0
    rtol = _worst(metrics.joint.err_max, scale + metrics.joint.ref_bounds()[0]) * (1.0 + 1e-12)
    return rtol * scale, rtol


def least_bound(metrics: Metrics) -> float:
    """The least t for which |a - e| <= t + t * |e| is sure to hold everywhere; inf where none does.

    Exact where the metrics were measured under a bound of atol = rtol.
    """
    if metrics.nan_mismatch or metrics.inf_mismatch:
        return math.inf
    found = [metrics.max_abs]
    if metrics.joint.count.size:
        found.append(_worst(metrics.joint.err_max, 1.0 + metrics.joint.ref_bounds()[0]))
    if min(metrics.atol, metrics.rtol) > 0.0:
        found.append(metrics.worst_ratio * max(metrics.atol, metrics.rtol))
    return float(min(found)) * (1.0 + 1e-12)
