"""The replay loop: whose tokens are fed, what is recorded, what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.case import Scenario, Step
from parity.harness.errors import InconclusiveError
from parity.harness.progress import Silent
from parity.harness.replay import Replayed, greedy, replay
from parity.harness.target import Facts
from parity.harness.tracer import trace_tensor
from parity.harness.values import Values


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")


class Counting:
    """A session that predicts its newest token plus `stride`; `silent` steps return nothing."""

    facts = Facts(dtype="float32", layout="none")

    def __init__(self, stride: int = 1, silent: tuple[int, ...] = (), broken: int | None = None) -> None:
        self.stride, self.silent, self.broken = stride, silent, broken
        self.fed: list[list[list[int]]] = []
        self.isolated: list[Any] = []

    def step(self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Any) -> np.ndarray | None:
        assert tokens.shape == positions.shape
        assert tokens.dtype == positions.dtype == np.int64
        self.fed.append(tokens.tolist())
        self.isolated.append(isolate)
        if step.index == self.broken:
            raise RuntimeError("device lost")
        trace_tensor("embed", np.repeat(tokens[..., None], 2, axis=-1).astype(np.float32), axes="b t d")
        newest = tokens[np.arange(len(tokens)), positions.argmax(axis=1)]
        return None if step.index in self.silent else np.eye(512, dtype=np.float32)[newest + self.stride]


SCENARIO = Scenario("s", ((5, 6), (9,)), steps=3)


def driven(
    session: Any, scenario: Scenario = SCENARIO, reference: Any = None, **options: Any
) -> tuple[Replayed, Any]:
    run = factory.new_run("cand")
    values = Values(reference) if reference is not None else None
    done = replay(session, scenario, sink=run, progress=Silent(), title="t", reference=values, **options)
    return done, run


def test_without_a_reference_a_session_runs_on_its_own_tokens() -> None:
    session = Counting()
    done, _ = driven(session)
    assert session.fed == [[[5, 6], [9, 0]], [[7], [10]], [[8], [11]], [[9], [12]]]
    assert done.predicted == ((7, 10), (8, 11), (9, 12), (10, 13))
    assert len(done.seconds) == 4


def test_ids_and_taps_are_recorded_with_step_and_position() -> None:
    _, run = driven(Counting())
    assert run.taps == ["ids", "embed"]
    for tap in run.taps:
        assert [record.step for record in run.records(tap)] == [0, 1, 2, 3]
        assert [record.positions.tolist() for record in run.records(tap)] == [
            [[0, 1], [0, -1]],
            [[2], [1]],
            [[3], [2]],
            [[4], [3]],
        ]
    assert run.records("ids")[1].array.tolist() == [[7], [10]]


def test_a_forced_replay_is_fed_the_references_tokens_whatever_it_predicts() -> None:
    _, reference = driven(Counting())
    session = Counting(stride=50)
    done, run = driven(session, reference=reference)
    assert session.fed == [[[5, 6], [9, 0]], [[7], [10]], [[8], [11]], [[9], [12]]]
    assert done.predicted[0] == (56, 59)
    assert run.records("ids")[3].array.tolist() == [[9], [12]]


def test_a_free_replay_is_fed_its_own_tokens() -> None:
    _, reference = driven(Counting())
    session = Counting(stride=50)
    driven(session, reference=reference, free=True)
    assert session.fed[:2] == [[[5, 6], [9, 0]], [[56], [59]]]


def test_a_free_replay_after_a_prefill_done_elsewhere_starts_on_the_references_token() -> None:
    _, reference = driven(Counting())
    session = Counting(stride=50, silent=(0,))
    driven(session, reference=reference, free=True)
    assert session.fed[1:3] == [[[7], [10]], [[57], [60]]]


def test_a_token_that_nobody_predicted_is_not_invented() -> None:
    with pytest.raises(InconclusiveError, match="step=1: the step before predicted no token"):
        driven(Counting(silent=(0,)))


def test_a_reset_feeds_the_prompt_again() -> None:
    session = Counting()
    driven(session, Scenario("s", ((5, 6),), steps=4, resets=(3,)))
    assert session.fed == [[[5, 6]], [[7]], [[8]], [[5, 6]], [[7]]]


def test_a_reference_that_recorded_no_tokens_forces_none() -> None:
    reference = factory.simple()
    with pytest.raises(InconclusiveError, match="step=0: the reference recorded no token ids"):
        driven(Counting(), reference=reference)


def test_a_reference_that_was_shorter_is_not_replayed_beyond_its_end() -> None:
    _, reference = driven(Counting(), Scenario("s", ((5, 6), (9,)), steps=1))
    session = Counting()
    with pytest.raises(InconclusiveError, match="step=2"):
        driven(session, reference=reference)
    assert len(session.fed) == 2


@pytest.mark.parametrize("ids", [((5, 6),), ((5, 6, 7), (9,)), ((5,), (9,))])
def test_tokens_of_another_shape_are_refused(ids: tuple[tuple[int, ...], ...]) -> None:
    _, reference = driven(Counting(), Scenario("other", ids, steps=3))
    with pytest.raises(InconclusiveError, match="step=0: the reference was fed ids of shape"):
        driven(Counting(), reference=reference)


def test_isolation_hands_the_references_values_on_only_when_asked() -> None:
    _, reference = driven(Counting())
    for isolate in (False, True):
        session = Counting()
        driven(session, reference=reference, isolate=isolate)
        assert [values is not None for values in session.isolated] == [isolate] * 4


def test_a_session_that_breaks_leaves_what_it_recorded() -> None:
    run = factory.new_run("cand")
    with pytest.raises(RuntimeError, match="device lost"):
        replay(Counting(broken=2), SCENARIO, sink=run, progress=Silent(), title="t")
    assert [record.step for record in run.records("embed")] == [0, 1]


def test_taps_after_a_replay_go_nowhere() -> None:
    _, run = driven(Counting())
    before = len(run.records())
    trace_tensor("embed", np.zeros(3))
    assert len(run.records()) == before


def test_the_first_of_equals_is_the_greedy_token() -> None:
    assert greedy(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]], np.float16)) == (1, 0)


def test_the_same_session_on_its_own_tokens_and_forced_records_the_same() -> None:
    _, one = driven(Counting())
    _, two = driven(Counting(), reference=one)
    found = factory.compared(one, two)
    assert (found.verdict, found.coverage.share) == ("parity", 1.0)
    assert found.counts == {"equal": 8}
