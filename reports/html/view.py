"""What the template shows of one comparison: sentences and small tables, no numbers to compute."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from parity.harness.comparison import Comparison, Side

from .. import words
from ..said import Said

#: Longest text shown of a side; the place where the texts part is always inside.
TEXT_LIMIT = 2400
FLIP_LIMIT = 40
#: Longest value of a provenance field.
VALUE_LIMIT = 240


def view(comparison: Comparison, said: Said) -> Mapping[str, Any]:
    """The names that the template uses; `said`: failures that another candidate's verdict tells."""
    row = words.first_row(comparison) if comparison.verdict == "divergence" else None
    return {
        "label": comparison.label,
        "reference": comparison.reference.label,
        "verdict": comparison.verdict,
        "sentence": words.verdict_sentence(comparison, as_of=said.elsewhere(comparison)),
        "claim": comparison.first.claim if comparison.first and row else "",
        "before": comparison.first.before if comparison.first and row else "",
        "first": words.first_place(comparison) if row else "",
        "evidence": words.evidence(row) if row else [],
        "culprits": comparison.culprits if row else (),
        "causes": [said.cause(comparison, cause) for cause in comparison.causes],
        "onset": words.onset_sentence(comparison.onset) if comparison.onset is not None else "",
        "stages": [(stage.verdict, said.stage(stage)) for stage in comparison.stages],
        "next": words.next_step(comparison),
        "counts": words.counts(comparison.counts),
        "records": words.plural(len(comparison.records), "record"),
        "share": comparison.coverage.share,
        "coverage": words.coverage_sentence(comparison),
        "parts": words.parts_sentence(comparison),
        "worst": _worst(comparison),
        "findings": words.findings(comparison),
        "agreement": words.agreement(comparison),
        "flips": _flips(comparison),
        "more_flips": max(0, len(comparison.tokens.flips) - FLIP_LIMIT),
        "texts": _texts(comparison),
        "replay": comparison.replay,
        "tolerance": comparison.tolerance,
        "rules": sorted(comparison.rules.items(), key=lambda item: -item[1]),
        "provenance": [
            _provenance(*row, both=bool(comparison.candidate.provenance))
            for row in words.provenance_rows(comparison)
        ],
        "sides": (comparison.reference, comparison.candidate),
        "times": [_times(side) for side in (comparison.reference, comparison.candidate) if side.seconds],
        "multiple": words.multiple,
    }


def _provenance(name: str, left: str, right: str, *, both: bool) -> Mapping[str, Any]:
    """Long values (a whole wiring table) are cut; whether they differ is known of the whole.

    A candidate that never ran has no provenance (not `both`), which is no difference.
    """
    cut = [
        text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]} … ({len(text):,} characters)"
        for text in (left, right)
    ]
    return {"name": name, "left": cut[0], "right": cut[1], "differs": both and left != right}


def _worst(comparison: Comparison) -> str:
    worst = comparison.worst
    if worst is None:
        return ""
    return f"{words.row_place(worst, where=False)}: {words.multiple(worst.ratio)} the tolerance"


def _flips(comparison: Comparison) -> list[str]:
    batch = len(comparison.tokens.expected_text) > 1
    return [words.flip_sentence(flip, batch=batch) for flip in comparison.tokens.flips[:FLIP_LIMIT]]


def _texts(comparison: Comparison) -> list[Mapping[str, str | int]]:
    tokens = comparison.tokens
    return [
        _pair(i, *pair) for i, pair in enumerate(zip(tokens.expected_text, tokens.actual_text, strict=False))
    ]


def _pair(sequence: int, expected: str, actual: str) -> Mapping[str, str | int]:
    """Both texts, split where they part and cut around that place."""
    same = words.common_prefix(expected, actual)
    start = max(0, same - TEXT_LIMIT // 2)
    return {
        "sequence": sequence,
        "same": ("… " if start else "") + expected[start:same],
        "expected": _cut(expected[same:]),
        "actual": _cut(actual[same:]),
    }


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT // 2 else text[: TEXT_LIMIT // 2] + " …"


def _times(side: Side) -> Mapping[str, str]:
    return {
        "label": side.label,
        "total": _seconds(sum(side.seconds)),
        "median": _seconds(median(side.seconds)),
        "slowest": f"step {side.seconds.index(max(side.seconds))}, {_seconds(max(side.seconds))}",
    }


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"
