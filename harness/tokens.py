"""Tokens of both sides: what each would emit, where they part, and whether that was a tie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .case import Scenario, plan
from .comparison import Tokens, TokenStep
from .values import batch_positions, positional, records_of, rows_first

if TYPE_CHECKING:
    from .rules import Rule, Rules
    from .trace import Record, Run


def tokens_of(
    reference: Run, candidate: Run, *, free: bool, output: str = "logits", rules: Rules | None = None
) -> Tokens:
    """Greedy tokens per step and sequence, from the logits of both runs.

    `rules` say how far a logit may move; a flip whose margin that explains is a tie.
    """
    rule = _rule(reference, candidate, output, rules)
    expected, actual = last_logits(reference, output), last_logits(candidate, output)
    flips: list[TokenStep] = []
    compared = agreed = 0
    texts: tuple[list[list[int]], list[list[int]]] = ([], [])
    inside = _inside_a_prompt(reference)
    for step in sorted(expected.keys() & actual.keys()):
        if expected[step].shape != actual[step].shape:
            continue
        for sequence, (theirs, own) in enumerate(zip(expected[step], actual[step], strict=True)):
            if (step, sequence) in inside:
                continue
            for side, logits in zip(texts, (theirs, own), strict=True):
                while len(side) <= sequence:
                    side.append([])
                side[sequence].append(int(logits.argmax()))
            compared += 1
            if np.isnan(theirs).any() or np.isnan(own).any():
                continue
            if theirs.argmax() == own.argmax():
                agreed += 1
            else:
                flips.append(_flip(step, sequence, theirs, own, rule))
    return Tokens(
        compared,
        agreed,
        tuple(flips),
        tuple(_text(reference, ids) for ids in texts[0]),
        tuple(_text(reference, ids) for ids in texts[1]),
        free,
    )


def _inside_a_prompt(run: Run) -> set[tuple[int, int]]:
    """Steps and sequences after which more of the prompt follows: no token is emitted there."""
    said = run.provenance.get("scenario", {})
    if not said.get("chunks"):
        return set()
    scenario = Scenario.from_json(said)
    fed = [step for step in plan(scenario) if step.kind != "decode"]
    ends = [len(row) - 1 for row in scenario.ids]
    return {(step.index, b) for step in fed for b, end in enumerate(ends) if end not in step.positions[b]}


def _rule(reference: Run, candidate: Run, output: str, rules: Rules | None) -> Rule | None:
    """How the logits are judged; None where nobody says."""
    sides = [records_of(run, output) for run in (reference, candidate)]
    if rules is None or not all(sides):
        return None
    return rules.of(output, *(side[0].dtype for side in sides))


def _flip(step: int, sequence: int, theirs: np.ndarray, own: np.ndarray, rule: Rule | None) -> TokenStep:
    from .ties import by_rule

    expected, actual = int(theirs.argmax()), int(own.argmax())
    explained = None if rule is None else by_rule(rule, theirs, expected, actual)
    return TokenStep(step, sequence, expected, actual, _margin(theirs, own), _margin(own, theirs), explained)


def _margin(side: np.ndarray, other: np.ndarray) -> float:
    """How far a side's own choice lies above the other's choice, in its own logits."""
    return float(side.max() - side[other.argmax()])


def last_logits(run: Run, output: str) -> dict[int, np.ndarray]:
    """Step -> logits `[B, V]` of the newest real token of each sequence, over all calls."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for record in records_of(run, output):
        if not record.size or not positional(record) or record.axes.split()[-1] != "v":
            continue
        at, logits = _newest(record)
        before = found.get(record.step)
        if before is not None:
            later = at > before[0]
            at, logits = np.where(later, at, before[0]), np.where(later[:, None], logits, before[1])
        found[record.step] = at, logits
    return {step: logits for step, (_, logits) in found.items()}


def _newest(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Position `[B]` and logits `[B, V]` of the newest token of each sequence in one record."""
    rows = rows_first(record.read(), record.axes)
    positions = batch_positions(record)
    newest = positions.argmax(axis=1)
    sequences = np.arange(len(rows))
    return positions[sequences, newest], rows[sequences, newest].astype(np.float64)


def _text(run: Run, ids: list[int]) -> str:
    """Text where the run says that ids are character codes, else the ids."""
    if run.provenance.get("characters"):
        return "".join(chr(code) for code in ids)
    return " ".join(map(str, ids))
