"""The sentences and number formats that every report shares, so that no two reports say it differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parity.harness.comparison import LARGEST, Cause, Comparison, Finding, Onset, Row, Stage, TokenStep
from parity.harness.quantized import QUANTIZED

if TYPE_CHECKING:
    from parity.harness.metrics import Metrics

#: A logit margin below this is a tie: greedy decoding may fall to either side by rounding alone.
TIE = 0.05

#: Order in which counts of statuses are listed: what fails first.
STATUS_ORDER = ("fail", "nonfinite", "shape", "missing", "extra", "skipped", "pass", "equal")


def number(value: float | None, *, digits: int = 2) -> str:
    """`3.2e-07` becomes `3.2e-7`, 0.4133 becomes `0.41`; empty for None."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(float(value))
    if 1e-2 <= abs(value) < 10**digits:
        return f"{float(f'{value:.{digits}g}'):g}"
    if 10**digits <= abs(value) < 1e4:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def exact(value: Any) -> str:
    """A tensor value as a person compares it: 7 significant digits."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def multiple(ratio: float | None) -> str:
    """An error as a multiple of what is allowed: `412×`; beyond LARGEST only that it is."""
    if ratio is not None and ratio > LARGEST:
        return f"> {number(LARGEST, digits=1)}×"
    return "" if ratio is None else f"{number(ratio)}×"


def percent(share: float) -> str:
    """`100 %` and `0 %` only when it is exactly that."""
    for digits in (1, 2, 4):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0.0, 100.0):
            return f"{text.rstrip('0').rstrip('.')} %"
    return {0.0: "0 %", 1.0: "100 %"}.get(share, "< 0.0001 %" if share < 0.5 else "> 99.9999 %")


def visible(text: str, *, keep: str = "") -> str:
    """Text from a file as it may be shown: what could drive a terminal or turn a line around, as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def plural(count: int, noun: str) -> str:
    """`1 record`, `1,204 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counts(found: Mapping[str, int]) -> str:
    """`12 fail, 1,192 pass`, the bad ones first."""
    known = [name for name in STATUS_ORDER if found.get(name)]
    return ", ".join(f"{found[name]:,} {name}" for name in [*known, *sorted(set(found) - set(STATUS_ORDER))])


def place(tap: str, step: int, where: str = "", *, call: int = 0) -> str:
    """`layer2.q, step 3, head 1`."""
    return ", ".join(filter(None, [tap, f"step {step}", f"call {call}" if call else "", where]))


def row_place(row: Row, *, where: bool = True) -> str:
    """The place of a record in words."""
    return place(row.tap, row.step, row.slice if where else "", call=row.call)


def first_row(comparison: Comparison) -> Row | None:
    """The record of the first divergence; without one, the first failing record."""
    first, failing = comparison.first, [row for row in comparison.records if row.failing]
    if first is not None:
        named = [row for row in comparison.records if (row.tap, row.step) == (first.tap, first.step)]
        return next((row for row in named if row.failing), named[0] if named else None)
    return failing[0] if failing else None


def first_place(comparison: Comparison) -> str:
    """Where the candidate first departs; empty when it does not."""
    if comparison.first is not None:
        first = comparison.first
        return place(first.tap, first.step, first.slice, call=first.call)
    row = first_row(comparison)
    return row_place(row) if row else ""


def verdict_sentence(comparison: Comparison, *, as_of: str = "") -> str:
    """The whole answer in one sentence; `as_of` names a candidate of which the same failure is told."""
    label, reference = comparison.label, comparison.reference.label
    if as_of:
        how = "was not run" if comparison.verdict == "refused" else "failed to run"
        return f"{label} {how}, for the same reason as {as_of}."
    if comparison.verdict == "refused":
        return _ended(f"{label} was not run: {comparison.refused}")
    if comparison.verdict == "failed":
        return _ended(f"{label} failed to run: {comparison.failure}")
    if comparison.verdict == "inconclusive":
        return _ended(f"Nothing is proven about {label}: {doubt(comparison)}")
    if comparison.verdict == "divergence":
        return _ended(
            f"{label} departs from {reference} first at {first_place(comparison)}{_how_much(comparison)}"
        )
    return f"{label} agrees with {reference} in every compared record{_closest(comparison)}."


def doubt(comparison: Comparison) -> str:
    """Why an inconclusive comparison is one."""
    return comparison.unsound or comparison.inconclusive or "no record was compared"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _how_much(comparison: Comparison) -> str:
    row = first_row(comparison)
    if row is None:
        return ""
    if row.status != "fail":
        return f": {row.reason or row.status}"
    return f": {multiple(row.ratio)} the tolerance" if row.ratio is not None else ""


def _closest(comparison: Comparison) -> str:
    worst = comparison.worst
    if worst is None or not worst.ratio:
        return "; no value differs" if worst is not None else ""
    return f"; the worst is {row_place(worst, where=False)} at {multiple(worst.ratio)} the tolerance"


def coverage_sentence(comparison: Comparison) -> str:
    """How many of the reference's values were looked at, and where the others went."""
    seen = comparison.coverage
    if not seen.expected:
        return "no value of the reference was checked"
    parts = [f"{percent(seen.share)} of {seen.expected:,} values checked"]
    if seen.hidden:
        parts.append(f"{seen.hidden:,} hidden")
    if seen.skipped:
        parts.append("skipped: " + ", ".join(f"{why} {count:,}" for why, count in seen.skipped.items()))
    if seen.blind_spot:
        parts.append(f"earliest blind spot: {seen.blind_spot}")
    return "; ".join(parts)


def evidence(row: Row) -> list[str]:
    """What one record shows: got and wanted, count and percent, worst values with index, the rule."""
    lines = [_error_line(row)] if row.error is not None else []
    if row.reason:
        lines.append(row.reason)
    if row.metrics is not None and row.metrics.count:
        lines += _metric_lines(row.metrics)
    if row.quantization is not None:
        parts = f"of the arithmetic itself={number(row.quantization)}, of the implementation besides"
        lines.append(f"error {parts}={number(row.implementation)}")
    if row.local is not None:
        said = f"local error={number(row.local)} ({multiple(row.local_ratio)} the tolerance)"
        lines.append(f"{said} on the reference's inputs")
    elif row.local_reason:
        lines.append(f"local error n/a ({row.local_reason})")
    return lines


def _error_line(row: Row) -> str:
    said = f"relative error={number(row.error)}"
    if row.ratio:
        allowed = (row.error or 0.0) / row.ratio
        verb = "but should be at most" if row.ratio > 1 else "of an allowed"
        said += f", {verb} {number(allowed)} ({multiple(row.ratio)})"
    return f"{said} [{row_place(row, where=False)}]"


def _metric_lines(found: Metrics) -> list[str]:
    share = percent(found.mismatched / found.count)
    lines = [f"{found.mismatched:,} of {found.count:,} values mismatched ({share})"]
    if found.max_abs and found.max_abs_index >= 0:
        worst = f"worst absolute error {number(found.max_abs)} at {index_words(found, found.max_abs_index)}"
        values = f"got {exact(found.actual_at_max)}, want {exact(found.expected_at_max)}"
        relative = f"; worst relative {number(found.max_rel)}" if found.full else ""
        lines.append(f"{worst}: {values}{relative}")
    nonfinite = not_finite(found)
    return lines + [nonfinite] * bool(nonfinite)


def not_finite(found: Metrics) -> str:
    """`NaN: 3 in the candidate, 0 in the reference`; empty when every value is finite."""
    kinds = {
        "NaN": (found.nan_actual, found.nan_expected),
        "+Inf": (found.posinf_actual, found.posinf_expected),
        "-Inf": (found.neginf_actual, found.neginf_expected),
    }
    found_kinds = {kind: pair for kind, pair in kinds.items() if any(pair)}
    return "; ".join(
        f"{kind}: {a:,} in the candidate, {e:,} in the reference" for kind, (a, e) in found_kinds.items()
    )


def parts_sentence(comparison: Comparison) -> str:
    """Which share of the squared error is the arithmetic's own, and where each part is worst.

    Empty where no emulation was run, and where nothing differs.
    """
    told = [row for row in comparison.records if row.quantization is not None]
    parts = {"quantization": "quantization", "implementation": "implementation"}
    sums = {part: sum(getattr(row, part) ** 2 for row in told) for part in parts}
    if not any(sums.values()):
        return ""
    if comparison.candidate.provenance.get("dtype") not in QUANTIZED:
        parts["quantization"] = "rounding"
    worst = {part: max(told, key=lambda row: getattr(row, part)) for part in parts}
    said = [
        f"worst {number(getattr(row, part))} at {row_place(row, where=False)}" if sums[part] else "none"
        for part, row in worst.items()
    ]
    share = percent(sums["quantization"] / sum(sums.values()))
    return f"{share} of its error is {parts['quantization']}: {said[0]}; implementation: {said[1]}"


def index_words(found: Metrics, flat: int) -> str:
    """A flat index as `[b 0, h 1, t 5, d 17]`, or `[0, 1, 5, 17]` when the axes have no names."""
    index, axes = found.unravel(flat), found.axes.split()
    if len(axes) != len(index):
        return str(list(index))
    return "[" + ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True)) + "]"


def stage_sentence(stage: Stage) -> str:
    """What one stage changed, held against the stage before."""
    sides = f"{stage.name} ({stage.earlier} to {stage.later})"
    if stage.verdict == "failed":
        return f"{sides}: {stage.reason}"
    if stage.verdict == "inconclusive":
        return f"{sides}: nothing is proven, {stage.reason}"
    where = place(stage.tap, stage.step, stage.slice) if stage.tap else "nowhere"
    size = f"worst {multiple(stage.ratio)}, relative error {stage.error or 0.0:.2g}"
    if stage.verdict == "divergence":
        return f"{sides}: departs first at {where}; {size}"
    return f"{sides}: within tolerance in {plural(stage.compared, 'record')}; {size}, at {where}"


def onset_sentence(onset: Onset) -> str:
    """`from step 7 on; the cache brought it: layer1.ks, position 12, was wrong first`."""
    when = "from the first step on" if onset.first_step else f"from step {onset.step} on"
    if onset.wrong < onset.steps:
        when += f", at {onset.wrong} of {onset.steps} steps"
    what = {"computation": "the computation itself"}.get(onset.brought, f"the {onset.brought}")
    where = f", {onset.where}," if onset.where and len(onset.where) <= 60 else ""
    told = f" ({onset.detail})" if onset.detail else ""
    return f"{when}; {what} brought it: {onset.tap}{where} was wrong first{told}"


def cause_sentence(cause: Cause) -> str:
    """A named cause, its place and evidence."""
    if cause.residual is not None:
        return f"at {cause.tap}, {cause.evidence}"
    where = f" at {cause.tap}" if cause.tap else ""
    return f"{cause.name}{where}: {cause.evidence}"


def next_step(comparison: Comparison) -> str:
    """One sentence on what to do now."""
    if comparison.verdict == "refused":
        return "Mend what the sentence names, then run again; nothing was judged."
    if comparison.verdict == "failed":
        return "Make the candidate run, then compare again; nothing was judged."
    if comparison.verdict == "inconclusive":
        return "Raise what is compared (taps, steps, a stable reference) and run again; this is not a pass."
    if comparison.verdict == "parity":
        return "Nothing to do."
    if comparison.causes:
        return _ended(f"Look at {comparison.causes[0].tap} for: {comparison.causes[0].name}")
    if comparison.culprits:
        born = comparison.culprits[0]
        inside = f"inside {born.segment} " if born.segment else ""
        return _ended(f"Look {inside}at {born.tap}, step {born.step}: {born.evidence}")
    return _next_without_culprit(comparison)


def _next_without_culprit(comparison: Comparison) -> str:
    row = first_row(comparison)
    before = comparison.first.before if comparison.first else ""
    if row is not None and row.status == "missing":
        return f"Make the candidate record {row.tap}, or declare that it cannot observe it."
    if row is not None and row.status == "shape":
        return f"Declare the layout of {row.tap} (a map), or correct it."
    between = f"between {before} and {row.tap}" if before and row else f"at {first_place(comparison)}"
    return f"Look {between}; no segment was convicted in isolation."


def agreement(comparison: Comparison) -> str:
    """`tokens agree 14/16 (forced)`; empty when no token was compared."""
    tokens = comparison.tokens
    if not tokens.compared:
        return ""
    replay = "free" if tokens.free else "forced"
    ties = sum(flip.tie is True for flip in tokens.flips)
    tied = f", {plural(ties, 'flip')} {'is a tie' if ties == 1 else 'are ties'}" if ties else ""
    return f"{tokens.agreed:,} of {tokens.compared:,} tokens agree ({replay} replay){tied}"


def flip_sentence(flip: TokenStep, *, batch: bool) -> str:
    """Where the tokens part, with both margins, and whether what is allowed explains it: a tie.

    Where nobody says what is allowed, a margin below TIE on either side is called one.
    """
    where = f"step {flip.step}" + (f", sequence {flip.sequence}" if batch else "")
    expected, actual = number(flip.expected_margin), number(flip.actual_margin)
    small = min(abs(flip.expected_margin), abs(flip.actual_margin)) < TIE
    tie = small if flip.tie is None else flip.tie
    said = f"{where}: token {flip.expected} became {flip.actual}"
    said += f"; margin {expected} in the reference, {actual} in the candidate"
    if flip.explained is not None and not tie:
        said += f"; the format explains {number(flip.explained)}"
    return said + (": a tie, not a fault by itself" if tie else "")


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested provenance as dotted names and texts."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            listed = isinstance(value, list | tuple)
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if listed else str(value)
    return flat


def provenance_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(name, reference, candidate) of both sides; what differs comes first."""
    left, right = flatten(comparison.reference.provenance), flatten(comparison.candidate.provenance)
    keys = sorted({**left, **right}, key=lambda key: left.get(key) == right.get(key))
    return [(key, left.get(key, ""), right.get(key, "")) for key in keys]


def findings(comparison: Comparison) -> list[Finding]:
    """Errors, then warnings, then notes; what would make a pass inconclusive qualifies a divergence too."""
    order = {"error": 0, "warning": 1}
    found = sorted(comparison.findings, key=lambda finding: order.get(finding.level, 2))
    if comparison.verdict == "divergence" and comparison.inconclusive:
        found.insert(0, Finding("warning", comparison.inconclusive))
    return found


def common_prefix(left: str, right: str) -> int:
    """Characters that two texts share from the start."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
