"""Ties: a choice that rounding alone may turn is said to be one, and a free replay goes on beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.harness.case import CachePolicy, Scenario, Step
from parity.harness.comparison import TokenStep
from parity.harness.judge import Floor
from parity.harness.parted import leave_out_after_parting
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.rules import Rules
from parity.harness.target import Facts
from parity.harness.ties import by_format
from parity.harness.tokens import tokens_of
from parity.harness.tolerance import load_tolerance
from parity.harness.tracer import trace_tensor
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values
from parity.reports.words import flip_sentence

SCENARIO = Scenario("s", ids=((1, 2),), steps=4, policy=CachePolicy())


class Scripted:
    """A session whose logits are a table: step -> logits `[V]`."""

    facts = Facts(dtype="float32", layout="none")

    def __init__(self, logits: list[list[float]]) -> None:
        self._logits = logits

    def step(self, step: Step, tokens: Any, positions: Any, isolate: Any) -> np.ndarray:
        logits = np.array([[self._logits[step.index]]], np.float32)
        trace_tensor("logits", logits, axes="b t v", positions=positions[:, -1:])
        return logits[:, 0]

    def close(self) -> None:
        """Nothing to free."""


def ran(logits: list[list[float]], reference: MemoryRun | None = None) -> tuple[MemoryRun, Any]:
    run = MemoryRun("r", provenance={"wiring": {"output": "logits"}}, complete=True)
    done = replay(
        Scripted(logits),
        SCENARIO,
        sink=run,
        progress=Silent(),
        title="",
        reference=Values(reference) if reference is not None else None,  # type: ignore[arg-type]
        free=reference is not None,
    )
    return run, done


PLAIN = [[0.0, 5.0, 1.0], [3.0, 3.0 - 1e-7, 0.0], [5.0, 0.0, 1.0], [1.0, 0.0, 5.0], [5.0, 0.0, 0.0]]


def test_a_free_replay_goes_on_after_a_tie_with_the_references_token() -> None:
    reference, _ = ran(PLAIN)
    turned = [row if step != 1 else [3.0 - 2e-7, 3.0, 0.0] for step, row in enumerate(PLAIN)]
    run, done = ran(turned, reference)
    assert done.ties == ((2, 0),)
    fed = [record.read().tolist() for record in run.records("ids")]
    assert fed == [record.read().tolist() for record in reference.records("ids")]


def test_a_choice_that_is_no_tie_parts_and_is_left_alone_from_then_on() -> None:
    reference, _ = ran(PLAIN)
    turned = [[0.0, 1.0, 5.0], [3.0 - 2e-7, 3.0, 0.0], *PLAIN[2:]]
    run, done = ran(turned, reference)
    assert done.ties == ()
    assert [int(record.read()[0, -1]) for record in run.records("ids")][1:3] == [2, 1]


def test_ties_are_noted_in_a_free_comparison() -> None:
    reference, _ = ran(PLAIN)
    reference.provenance["ties"] = [[2, 0]]
    (note,) = leave_out_after_parting([], reference, reference)  # type: ignore[arg-type]
    assert note.level == "note"
    assert "step 2, sequence 0: a tie" in note.text


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-6), ("bfloat16", 0.05), ("float16", 0.005)])
def test_narrow_formats_explain_more(dtype: str, share: float) -> None:
    logits = np.ones(100)
    assert share < by_format(dtype, logits) < 10 * share
    assert by_format("int8", logits) == 0.0


def flips(margin: float, floors: dict[str, Floor]) -> tuple[TokenStep, ...]:
    sides = []
    for own in ([2.0, 2.0 - margin, 0.0], [2.0 - margin, 2.0, 0.0]):
        run = MemoryRun("r", complete=True)
        run.record("logits", np.array([[own]], np.float32), axes="b t v", positions=np.array([[0]]))
        sides.append(run)
    rules = Rules(load_tolerance("auto"), floors)
    return tokens_of(*sides, free=False, rules=rules).flips  # type: ignore[arg-type]


def test_a_flip_that_what_is_allowed_explains_is_a_tie_and_another_is_not() -> None:
    floors = {"logits": Floor(1e-6, 1e-6)}
    (close,), (far,) = flips(1e-5, floors), flips(0.04, floors)
    assert close.tie is True
    assert far.tie is False
    assert "a tie" in flip_sentence(close, batch=False)
    assert "a tie" not in flip_sentence(far, batch=False)
    assert "the format explains" in flip_sentence(far, batch=False)


def test_without_rules_nothing_is_claimed() -> None:
    flip = TokenStep(0, 0, 1, 2, 0.5, 0.5)
    assert flip.tie is None
