"""The score as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .score import AIMS, Outcome, Score

SHARES = ("detected", "exact", "part", "explained")
HEADING = ("family", "bugs", "runs", "detected", "exact", "segment", "explained", "s/run")


def lines(score: Score) -> list[str]:
    """The table by family, then every single thing that is not as it should be."""
    told: list[str] = []
    if score.bugs:
        families = [*score.families().items(), ("all", list(score.bugs))]
        told += _columns([HEADING, *(_family(name, outcomes) for name, outcomes in families)])
    if score.harmless:
        told += ["", _harmless(score)]
    if score.bugs and score.harmless:
        told += ["", *_rules(score)]
    told += _listed("missed", [_missed(one) for one in score.bugs if one.missed])
    told += _listed(
        "located elsewhere", [_elsewhere(one) for one in score.bugs if one.detected and not one.exact]
    )
    told += _listed("not explained", _unexplained(score))
    told += _listed(
        "under the floor: nobody can tell them from rounding",
        [_under(one) for one in score.bugs if one.undetectable],
    )
    told += _listed(
        "nothing is planted there", [f"{one.name} on {one.cand}" for one in score.bugs if one.idle]
    )
    told += _listed(
        "flagged though harmless",
        [f"{one.name} on {one.cand}: {one.verdict}, {one.said}" for one in score.false_alarms],
    )
    told += [
        f"{name.replace('_', ' ')}: {value:.3g}"
        for name, value in score.facts.items()
        if isinstance(value, float)
    ]
    aims = score.missed_aims()
    return [*told, "", *(f"AIM MISSED  {aim}" for aim in aims)] if aims else [*told, "", _reached()]


def _family(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    above = [outcome for outcome in outcomes if outcome.detected or outcome.missed]
    shares = (f"{sum(getattr(one, what) for one in above)}/{len(above)}" for what in SHARES)
    count = len({outcome.name for outcome in outcomes})
    seconds = median(outcome.seconds for outcome in outcomes)
    return (name, str(count), str(len(outcomes)), *shares, f"{seconds:.2f}")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"{title} ({len(items)})", *(f"  {item}" for item in items)] if items else []


def _harmless(score: Score) -> str:
    names = len({alarm.name for alarm in score.harmless})
    return f"harmless changes: {names}, runs {len(score.harmless)}, false alarms {len(score.false_alarms)}"


def _rules(score: Score) -> list[str]:
    """The same traces by other tools' published rules; ours first."""
    rows = [("the same traces by", "detected", "located first", "false alarms", "under the floor")]
    rows += [
        (name, f"{rule.detected:.1%}", f"{rule.located:.1%}", str(rule.false_alarms), str(rule.under))
        for name, rule in score.rules().items()
    ]
    return _columns(rows)


def _missed(one: Outcome) -> str:
    size = "" if one.size is None else f", {one.size:.3g} times what is allowed"
    return f"{one.name} on {one.cand}: {one.verdict}{size} {one.error}".rstrip()


def _elsewhere(one: Outcome) -> str:
    return f"{one.name} on {one.cand}: at {one.tap}, step {one.step}; born at {one.expected}"


def _unexplained(score: Score) -> list[str]:
    """By name: a bug is listed once, with what was said of it."""
    found: dict[str, str] = {}
    for one in score.bugs:
        if one.detected and not one.explained:
            found.setdefault(one.name, one.why or "nothing was said")
    return [f"{name}: {why}" for name, why in found.items()]


def _under(one: Outcome) -> str:
    return f"{one.name} on {one.cand}: {one.size:.2g} times what is allowed"


def _reached() -> str:
    shares = ", ".join(f"{what} at least {aim:.0%}" for what, aim in AIMS.items())
    return f"every aim is reached: {shares}, no false alarm"
