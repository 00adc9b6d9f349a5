"""A language model of any make as a candidate: ids in, logits out, rows aligned by position."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import CachePolicy, Case, Scenario
from parity.harness.errors import CandidateError, UserError
from parity.harness.mapping import TapMap
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.target import Facts, Options
from parity.harness.tracer import trace_tensor
from parity.harness.tracer.memory import MemoryRun
from parity.targets.module import ModuleTarget

VOCAB = 11


class Causal(nn.Module):
    """Mean over the tokens so far: what a later token or a padding would spoil shows at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.head = nn.Embedding(VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, VOCAB)

    def forward(self, input_ids: Tensor) -> Any:
        """[B, S] -> [B, S, V]."""
        x = self.table(input_ids)
        count = torch.arange(1, x.shape[1] + 1)[None, :, None]
        mean = self.mix(x).cumsum(1) / count
        scores = mean @ mean.transpose(1, 2)
        trace_tensor("scores", scores)
        return self.head(mean)


@dataclass
class FakeModel:
    """What a case needs of a model here."""

    vocab_size: int = VOCAB
    name: str = "fake"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], nn.Module]], str]:
    """Make a factory importable; gives its spec."""

    def put(factory: Callable[[], nn.Module]) -> str:
        module = ModuleType("their_lm")
        module.build = factory  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "their_lm", module)
        return "their_lm:build"

    return put


def recorded(spec: str, scenario: Scenario, **options: Any) -> tuple[MemoryRun, Facts]:
    case = Case(FakeModel(), Causal().state_dict(), "digest", scenario)  # type: ignore[arg-type]
    session = ModuleTarget().prepare(
        case, arg=spec, options=Options(**options), reference=None, workdir=Path(), progress=Silent()
    )
    run = MemoryRun("module")
    replay(session, scenario, sink=run, progress=Silent(), title="test")
    session.close()
    return run, session.facts


def whole(ids: tuple[int, ...]) -> np.ndarray:
    """Logits [S, V] of one sequence, in one call."""
    with torch.no_grad():
        return np.asarray(Causal()(torch.tensor([ids]))[0].numpy())


def test_only_rows_of_new_tokens_are_recorded_with_their_positions(offer: Callable[..., str]) -> None:
    run, facts = recorded(offer(Causal), Scenario("s", ((1, 2, 3),), steps=2))
    rows = [(record.step, record.shape, record.positions.tolist()) for record in run.records("logits")]
    assert rows == [(0, (1, 3, VOCAB), [[0, 1, 2]]), (1, (1, 1, VOCAB), [[3]]), (2, (1, 1, VOCAB), [[4]])]
    assert [record.axes for record in run.records("module:mix")] == ["b t d"] * 3
    assert facts.layout == "recompute"
    assert facts.details["weights"] == "all 5 tensors of the same name are equal"


def test_axes_are_told_from_how_shapes_follow_batch_and_length(offer: Callable[..., str]) -> None:
    run, facts = recorded(offer(Causal), Scenario("s", ((1, 2, 3),) * 3, steps=1))
    assert facts.details["axes"]["scores"] == "b t p"
    assert [record.shape for record in run.records("scores")] == [(3, 3, 3), (3, 1, 4)]


def test_prompts_of_unequal_length_are_handed_over_without_their_padding(offer: Callable[..., str]) -> None:
    prompts = ((1, 2, 3, 4), (5, 6))
    for side in ("left", "right"):
        run, facts = recorded(offer(Causal), Scenario("s", prompts, steps=1, padding=side))
        first, second = run.records("logits")
        assert first.positions.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
        assert second.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]]
        for row, prompt in enumerate(prompts):
            np.testing.assert_allclose(first.read()[row, : len(prompt)], whole(prompt), atol=1e-6)
        assert "padding is left out" in facts.substitutions[-1]


def test_a_reset_forgets_the_history_and_a_window_is_left_to_the_module(offer: Callable[..., str]) -> None:
    scenario = Scenario("s", ((1, 2),), steps=2, resets=(2,), policy=CachePolicy("window", 3))
    run, facts = recorded(offer(Causal), scenario)
    assert [record.positions.tolist() for record in run.records("logits")] == [[[0, 1]], [[2]], [[0, 1]]]
    first, _, again = run.records("logits")
    np.testing.assert_array_equal(first.read(), again.read())
    assert "cache policy window(3) is left to the module" in facts.substitutions[-1]


class Returns(Causal):
    """Wraps the logits as `shape` says."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, tokens: Tensor) -> Any:
        """Any name for the ids."""
        return self.wrap(super().forward(tokens))


@dataclass
class Result:
    """As model libraries return."""

    logits: Tensor


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: {"logits": x}, Result, lambda x: x])
def test_logits_come_alone_first_or_by_name(offer: Callable[..., str], wrap: Callable[[Tensor], Any]) -> None:
    run, _ = recorded(offer(lambda: Returns(wrap)), Scenario("s", ((1, 2),), steps=0))
    np.testing.assert_allclose(run.records("logits")[0].read()[0], whole((1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (lambda x: {"scores": x}, "returned dict, but should return logits"),
        (lambda x: x[:, -1], "returned Tensor, but should return logits"),
        (lambda x: x[..., :5], r"logits=\[1, 2, 5\], but should be \[1, 2, 11\]"),
        (lambda x: x.nothing, "AttributeError"),
    ],
)
def test_what_is_no_logits_fails_the_candidate(
    offer: Callable[..., str], wrap: Callable[[Tensor], Any], sentence: str
) -> None:
    with pytest.raises(CandidateError, match=sentence):
        recorded(offer(lambda: Returns(wrap)), Scenario("s", ((1, 2),), steps=0))


def test_a_module_that_taps_its_logits_records_them_once(offer: Callable[..., str]) -> None:
    class Taps(Causal):
        def forward(self, input_ids: Tensor) -> Any:
            logits = super().forward(input_ids)
            trace_tensor("logits", logits, axes="b t v")
            return logits

    run, _ = recorded(offer(Taps), Scenario("s", ((1, 2),), steps=1))
    assert [record.call for record in run.records("logits")] == [0, 0]


def test_declared_axes_go_before_those_that_were_found(offer: Callable[..., str]) -> None:
    tapmap = TapMap(axes_of={"module:mix": "b p d"})
    run, _ = recorded(offer(Causal), Scenario("s", ((1, 2),), steps=1), mapping=tapmap)
    assert [record.axes for record in run.records("module:mix")] == ["b p d"] * 2
    assert [record.positions.tolist() for record in run.records("module:mix")] == [[[0, 1]], [[0, 1, 2]]]


def test_a_module_that_cannot_be_probed_is_warned_of_and_still_compared(offer: Callable[..., str]) -> None:
    class Fixed(Causal):
        def forward(self, input_ids: Tensor) -> Any:
            if input_ids.shape[1] == 5:
                raise ValueError("made for prompts of two")
            return super().forward(input_ids)

    run, facts = recorded(offer(Fixed), Scenario("s", ((1, 2),), steps=1))
    assert facts.details["warnings"][0].startswith("axes of its taps are not known")
    assert [record.axes for record in run.records("logits")] == ["b t v"] * 2


def test_a_module_that_takes_nothing_is_refused(offer: Callable[..., str]) -> None:
    class Nothing(nn.Module):
        def forward(self) -> int:
            return 3

    with pytest.raises(UserError, match="forward takes no token ids"):
        recorded(offer(Nothing), Scenario("s", ((1, 2),), steps=0))
