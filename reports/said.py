"""Failures that several candidates of one result share, each said in full once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from parity.harness.comparison import Cause, Comparison, Stage

from . import words

#: In place of a sentence that was said before.
ABOVE = "failed as said above"
#: What comes before the path of a log in the sentences of the compilers' failures.
LOG = "; the whole log: "


class Said:
    """Verdicts stand first: there every failure is said, of the first candidate that has it."""

    def __init__(self, comparisons: Iterable[Comparison]) -> None:
        self._first: dict[str, str] = {}
        for comparison in comparisons:
            if failure := comparison.failure or comparison.refused:
                self._first.setdefault(_reason(failure), comparison.label)

    def elsewhere(self, comparison: Comparison) -> str:
        """The candidate before this one that failed alike; empty for none."""
        failure = comparison.failure or comparison.refused
        first = self._first[_reason(failure)] if failure else comparison.label
        return "" if first == comparison.label else first

    def stage(self, stage: Stage) -> str:
        """What a stage changed, or that it failed as said above."""
        failed = stage.verdict == "failed" and _reason(stage.reason) in self._first
        return words.stage_sentence(replace(stage, reason=ABOVE) if failed else stage)

    def cause(self, comparison: Comparison, cause: Cause) -> str:
        """A named cause, without what its failed stage was said to fail of."""
        told = words.cause_sentence(cause)
        for stage in comparison.stages:
            if stage.reason and _reason(stage.reason) in self._first:
                told = told.replace(stage.reason, ABOVE)
        return told


def _reason(failure: str) -> str:
    """A failure without the path of its log: the same one in another build has another."""
    return failure.partition(LOG)[0]
