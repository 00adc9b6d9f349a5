"""A comparison as the page's script reads it: columns of numbers, texts stored once, detail of the worst.

2,000 taps at 64 steps are 128,000 records: about 30 bytes each this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from parity.harness.comparison import Comparison, Row

from ..taps import tap_views
from ..words import exact, first_row, index_words, multiple, not_finite, number, percent, visible

if TYPE_CHECKING:
    from parity.harness.metrics import Metrics

#: Records that get a histogram, profiles and worst elements.
DETAILED = 200
#: Most bars of a profile; longer axes show the largest of each bin.
BARS = 128


def pack(comparison: Comparison) -> dict[str, Any]:
    """Plain data of one candidate: `records` in columns, `details` by record number."""
    rows = comparison.records
    taps, statuses, slices, infos = _Table(), _Table(), _Table(), _Table()
    columns: dict[str, list[Any]] = {
        "tap": [taps.index(row.tap) for row in rows],
        "step": [row.step for row in rows],
        "call": [row.call for row in rows],
        "status": [statuses.index(row.status) for row in rows],
        "slice": [slices.index(row.slice) for row in rows],
        "info": [infos.index(_info(row)) for row in rows],
    }
    for name in ("error", "ratio", "local", "local_ratio", "floor"):
        columns[name] = _numbers([getattr(row, name) for row in rows])
    columns["call"] = columns["call"] if any(columns["call"]) else []
    diverges = comparison.verdict == "divergence"
    culprits = {culprit.tap for culprit in comparison.culprits if diverges}
    first = first_row(comparison) if diverges else None
    return {
        "label": visible(comparison.label),
        "reference": visible(comparison.reference.label),
        "taps": [visible(tap) for tap in taps.values],
        "statuses": statuses.values,
        "slices": [visible(text) for text in slices.values],
        "infos": [dict(zip(INFO, map(_shown, info), strict=True)) for info in infos.values],
        "records": columns,
        "culprits": [i for i, tap in enumerate(taps.values) if tap in culprits],
        "first": next((i for i, row in enumerate(rows) if row is first), None),
        "details": {str(i): detail(rows[i]) for i in _detailed(comparison)},
        "seconds": [_numbers(comparison.reference.seconds), _numbers(comparison.candidate.seconds)],
    }


INFO = ("axes", "shape", "dtype", "expected_dtype", "rule", "segment", "reason", "local_reason", "hidden")


def _info(row: Row) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value := getattr(row, name), list) else value for name in INFO)


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


class _Table:
    """Distinct values, each stored once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.numbers: dict[Any, int] = {}

    def index(self, value: Any) -> int:
        found = self.numbers.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found


def _numbers(values: Iterable[float | None]) -> list[Any]:
    """Three digits are enough to see; empty when there is none; Inf and NaN as texts, which JSON can hold."""
    packed = [_packed(value) for value in values]
    return packed if any(value is not None for value in packed) else []


def _packed(value: float | None) -> Any:
    if value is None or value == 0:
        return value if value is None else 0
    return float(f"{value:.3g}") if math.isfinite(value) else str(float(value))


def _detailed(comparison: Comparison) -> list[int]:
    """Records that earn their detail: the worst of each tap, by gravity, then the worst of the rest."""
    rows = comparison.records
    number_of = {id(row): i for i, row in enumerate(rows)}
    worst = {number_of[id(view.worst)] for view in tap_views(comparison)}

    def gravity(i: int) -> tuple[bool, bool, float]:
        return rows[i].failing and i in worst, i in worst, rows[i].ratio or 0.0

    measured = [i for i, row in enumerate(rows) if row.metrics is not None]
    return sorted(sorted(measured, key=gravity, reverse=True)[:DETAILED])


def detail(row: Row) -> dict[str, Any]:
    """Everything measured on one record, ready to be drawn."""
    found = row.metrics
    assert found is not None
    return {
        "facts": [[name, text] for name, text in _facts(row) if text],
        "worst": _worst(row),
        "histogram": _histogram(found),
        "profiles": _profiles(row),
        "logits": _logits(row),
    }


def _facts(row: Row) -> list[tuple[str, str]]:
    found = row.metrics
    assert found is not None
    share = f" ({percent(found.mismatched / found.count)})" if found.count else ""
    fills = f"{found.structural:,} ({percent(found.structural_share)})" if found.structural else ""
    return [
        ("kind", row.kind),
        ("of the arithmetic", number(row.quantization)),
        ("of the implementation", number(row.implementation)),
        ("values", f"{found.count:,}"),
        ("mismatched", f"{found.mismatched:,}{share}"),
        ("worst value", f"{multiple(found.worst_ratio)} of its bound" if found.worst_ratio else ""),
        ("not finite", not_finite(found)),
        ("mask fills", fills),
        ("relative L2", number(found.rel_l2)),
        ("max absolute", number(found.max_abs)),
        ("mean absolute", number(found.mean_abs)),
        ("RMSE", number(found.rmse)),
        ("max relative", f"{number(found.max_rel)} (guard {number(found.rel_guard)})" if found.full else ""),
        ("ULP distance", "" if found.ulp_max is None else f"{found.ulp_max:,}"),
        ("cosine", f"{found.cosine:.9g}"),
        ("SQNR", f"{number(found.sqnr_db)} dB"),
        ("reference RMS", number(found.rms_expected)),
        ("reference max", f"{number(found.max_expected)}; candidate {number(found.max_actual)}"),
        ("quantiles of |error|", _quantiles(found)),
    ]


def _quantiles(found: Metrics) -> str:
    if not _has_histogram(found):
        return ""
    shares = {"50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999}
    return ", ".join(f"{name} {number(found.hist.quantile(share))}" for name, share in shares.items())


def _has_histogram(found: Metrics) -> bool:
    """Stored metrics may have come without: then nothing is in it although there are errors."""
    return bool(found.full and found.hist.count.size)


def _worst(row: Row) -> list[list[str]]:
    """Worst elements: by absolute error with both values, by relative error with its place."""
    found = row.metrics
    assert found is not None
    lines = []
    if found.max_abs and found.max_abs_index >= 0:
        values = (exact(found.actual_at_max), exact(found.expected_at_max), number(found.max_abs))
        lines.append(["absolute error", index_words(found, found.max_abs_index), *values])
    if found.full and found.max_rel and found.max_rel_index >= 0:
        place = index_words(found, found.max_rel_index)
        lines.append(["relative error", place, "", "", number(found.max_rel)])
    return lines


def _histogram(found: Metrics) -> list[Any] | None:
    """[lowest power of two, count per binade], holes filled."""
    if not _has_histogram(found):
        return None
    low, high = int(found.hist.log2[0]), int(found.hist.log2[-1])
    counts = [0] * (high - low + 1)
    for log2, count in zip(found.hist.log2, found.hist.count, strict=True):
        counts[int(log2) - low] = int(count)
    return [low, counts]


AXIS_NAMES = {
    "b": "sequence",
    "h": "head",
    "t": "token",
    "p": "cache position",
    "d": "channel",
    "c": "cos/sin plane",
    "v": "vocabulary entry",
    "z": "real/imaginary part",
}


def _profiles(row: Row) -> list[dict[str, Any]]:
    """RMS of the error per index, as a share of the reference's RMS, for each axis of several indices."""
    found = row.metrics
    assert found is not None
    scale = found.rms_expected or 1.0
    unit = "RMS of the error over the RMS of the reference" if found.rms_expected else "RMS of the error"
    profiles = []
    for axis, profile in found.profiles.items():
        size = profile.err_rms.size
        if size < 2 or not found.max_abs:
            continue
        stride = -(-size // BARS)
        wrong = profile.mismatched + profile.nonfinite
        profiles.append(
            {
                "name": AXIS_NAMES.get(axis, f"axis {axis}"),
                "unit": unit + (f", the largest of each {stride}" if stride > 1 else ""),
                "size": size,
                "stride": stride,
                "values": _numbers(_binned((profile.err_rms / scale).tolist(), stride, max)),
                "bad": [int(count) for count in _binned(wrong.tolist(), stride, sum)],
            }
        )
    return profiles


def _binned(values: Sequence[float], stride: int, reduce: Callable[[Sequence[float]], float]) -> list[float]:
    return [reduce(values[i : i + stride]) for i in range(0, len(values), stride)]


def _logits(row: Row) -> list[list[str]]:
    found = row.logits
    if found is None:
        return []
    facts = [
        ["KL mean", f"{number(found.kl_mean)} nats"],
        ["KL max", f"{number(found.kl_max)} nats at distribution {found.kl_max_place}"],
        ["top-1 agreement", percent(found.top1_agreement)],
        [f"top-{found.k} overlap", percent(found.topk_overlap)],
    ]
    if found.perplexity_difference is not None:
        facts.append(["perplexity", f"{found.perplexity_expected:.4f} became {found.perplexity_actual:.4f}"])
    for flip in found.flips[:5]:
        margins = f"margins {number(flip.expected_margin)} and {number(flip.actual_margin)}"
        facts.append([f"flip at {flip.place}", f"token {flip.expected} became {flip.actual}, {margins}"])
    return facts
