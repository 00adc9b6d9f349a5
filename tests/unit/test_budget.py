"""The error budget: shares come to the whole, a planted fault owns it, the fewest parts are kept."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.cli import main
from parity.harness.budget import Budget, Share, plan
from parity.harness.errors import UserError

CASE = {"weights": "random:0", "scenario": "short", "steps": 8}


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.slow
def test_the_shares_of_bf16_come_to_the_whole():
    found = parity.budget(cand="torch:bf16", **{**CASE, "steps": 40}).budget
    assert 0.7 < found.explained < 1.4
    assert found.sound
    assert found.notes == ()
    shares = {share.part: found.share_of(share) for share in found.shares}
    assert set(shares) == {"(rope)", "(cache)", "seg_head", "seg_0", "seg_1", "seg_2", "seg_tail"}
    assert shares["(cache)"] == 0.0
    assert min(shares.values()) >= 0.0


def plant(monkeypatch: pytest.MonkeyPatch, factors: dict[str, float]) -> None:
    """The candidate's segments have a weight that is off by these factors."""
    from parity.targets import segmented
    from parity.targets.torch_segments import TorchExecutor

    class Wrong(TorchExecutor):
        def __init__(self, modules: Any, *rest: Any) -> None:
            super().__init__(modules, *rest)
            with torch.no_grad():
                for name, factor in factors.items():
                    next(iter(modules[name].parameters())).mul_(factor)

    monkeypatch.setattr(segmented, "TorchExecutor", Wrong)


def test_the_segment_at_fault_owns_the_error_and_the_plan_keeps_it(monkeypatch):
    plant(monkeypatch, {"seg_1": 1.05, "seg_2": 1.001})
    result = parity.budget(cand="segmented", target_kl=1e-5, **CASE)
    first = result.budget.ranked[0]
    assert first.part == "seg_1"
    assert result.budget.share_of(first) > 0.95
    assert result.budget.plan is not None
    assert result.budget.plan.parts == ("seg_1",)
    assert result.budget.plan.reached
    assert result.budget.plan.measured < 1e-5
    assert result.exit_code == 0


def test_a_healthy_candidate_has_nothing_to_share_out():
    found = parity.budget(cand="segmented", **CASE).budget
    assert found.whole < 1e-9
    assert "too small to share out" in found.notes[0] or found.sound


def table(errors: dict[str, float], whole: float | None = None) -> Budget:
    shares = tuple(Share(part, error) for part, error in errors.items())
    return Budget("KL", shares, sum(errors.values()) if whole is None else whole)


def measured(errors: dict[str, float], asked: list[tuple[str, ...]]) -> Any:
    def measure(kept: tuple[str, ...]) -> float:
        asked.append(kept)
        return sum(error for part, error in errors.items() if part not in kept)

    return measure


@pytest.mark.parametrize(
    ("target", "kept"),
    [(10.0, ()), (4.0, ("b",)), (1.5, ("b", "c")), (0.5, ("a", "b", "c")), (0.0, ("a", "b", "c"))],
)
def test_the_fewest_parts_are_kept_the_largest_first(target: float, kept: tuple[str, ...]):
    errors, asked = {"a": 1.0, "b": 6.0, "c": 2.0, "d": 0.0}, list[tuple[str, ...]]()
    found = plan(table(errors), target, tuple(errors), measured(errors, asked))
    assert found.parts == kept
    assert found.reached
    assert len(asked) <= 2


def test_a_target_that_no_plan_reaches_is_said():
    errors = {"(rope)": 1.0, "a": 2.0}
    found = plan(table(errors), 0.5, ("a",), measured(errors, []))
    assert (found.parts, found.measured, found.reached) == (("a",), 1.0, False)


def test_a_whole_that_the_parts_do_not_explain_is_no_sound_budget():
    assert not table({"a": 1.0, "b": 1.0}, whole=5.0).sound
    assert table({"a": 1.0, "b": 1.0}, whole=2.3).sound
    assert table({"a": 1.0, "b": 1.0}, whole=1.5).sound


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def net() -> Net:
    return Net()


def port() -> Net:
    made = Net()
    with torch.no_grad():
        made.layers[1].weight.mul_(1.01)
    return made


def test_the_squared_error_of_a_module_is_shared_out_over_its_submodules(monkeypatch):
    monkeypatch.setitem(sys.modules, "budget_nets", sys.modules[__name__])
    inputs = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)}
    found = parity.budget(cand="module:budget_nets:port", model="budget_nets:net", inputs=inputs).budget
    assert found.ranked[0].part == "layers.1"
    assert found.explained == pytest.approx(1.0)
    assert found.metric == "squared error"


def test_the_command_prints_a_table_and_ends_with_the_plan_s_status(monkeypatch, capsys):
    plant(monkeypatch, {"seg_1": 1.05})
    args = [
        "parity",
        "budget",
        "--cand",
        "segmented",
        "--weights",
        "random:0",
        "--scenario",
        "one",
        "--steps",
        "3",
    ]
    for more, status in ((["--target-kl", "1e-6"], 0), (["--target-kl", "1e-30"], 1)):
        monkeypatch.setattr("sys.argv", [*args, *more, "--json"])
        with pytest.raises(SystemExit) as stopped:
            main()
        found = json.loads(capsys.readouterr().out)
        assert int(stopped.value.code or 0) == found["exit_code"] == status
        assert found["plan"]["parts"][0] == "seg_1" or status


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name the candidate"),
        ({"cand": "segmented", "qtable": "x"}, "follows from a plan"),
        ({"cand": "segmented", "qtable": "x", "target_kl": 1.0, **CASE}, "has no such tables"),
        (
            {"cand": "onnx", "model": "a.b:c", "inputs": {}, "target_kl": 1.0},
            "belongs to a model with logits",
        ),
    ],
)
def test_what_has_no_budget_is_refused_in_a_sentence(options, said):
    with pytest.raises(UserError, match=said):
        parity.budget(**options)


def test_what_the_command_takes_beyond_the_options_of_a_run_is_frozen():
    """A new one needs a user's opinion, an explanation without internals, and two users who differ."""
    from parity.cli.budget import command
    from parity.cli.run import command as run

    of_a_run = {name for item in run.params for name in item.opts}
    own = {name for item in command.params for name in item.opts if name.startswith("-")}
    assert own - of_a_run == {"--target-kl", "--qtable"}
