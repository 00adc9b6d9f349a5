"""A copy of a port is a module of its own; what its training mode changes is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase, Step
from parity.harness.module_copy import fresh
from parity.harness.progress import Silent
from parity.harness.target import Facts, Options
from parity.harness.tracer import recording
from parity.harness.tracer.memory import MemoryRun
from parity.targets.module import ModuleTarget

NOTHING = np.zeros((0, 0), np.int64)


class Net(nn.Module):
    """Two layers, and a dropout and a batch norm between them."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop, self.norm, self.act = nn.Dropout(share), nn.BatchNorm1d(4), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.down(self.drop(self.norm(self.act(self.up(x)))))


def wrapped(module: nn.Module) -> nn.Module:
    old = module.forward
    module.forward = lambda *args, **named: old(*args, **named)  # type: ignore[method-assign]
    return module


def by_default(module: nn.Module) -> nn.Module:
    def forward(x: Tensor, old: Callable[..., Tensor] = module.forward) -> Tensor:
        return old(x)

    module.forward = forward  # type: ignore[method-assign]
    return module


def by_method(module: nn.Module) -> nn.Module:
    def forward(x: Tensor) -> Tensor:
        return module.down(module.up(x))

    module.forward = forward  # type: ignore[method-assign]
    return module


HELD: list[Any] = []


def by_global(module: nn.Module) -> nn.Module:
    HELD[:] = [module.forward]
    module.forward = lambda *args, **named: HELD[0](*args, **named)  # type: ignore[method-assign]
    return module


def recorded(monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]) -> tuple[list[str], Facts]:
    module = ModuleType("their_port")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_port", module)
    case = ModuleCase("theirs:build", Net().eval(), {"x": np.ones((2, 4), np.float32)}, "digest")
    session = ModuleTarget().prepare(
        case, arg="their_port:build", options=Options(), reference=None, workdir=Path(), progress=Silent()
    )
    run = MemoryRun("run")
    with recording(run):
        session.step(Step(0, "call", ((),), None), NOTHING, NOTHING, None)
    return list(run.taps), session.facts


@pytest.mark.parametrize("patch", [wrapped, by_default, by_method])
def test_a_forward_that_was_replaced_on_the_instance_runs_the_copys_modules(
    monkeypatch: pytest.MonkeyPatch, patch: Callable[[nn.Module], nn.Module]
) -> None:
    taps, facts = recorded(monkeypatch, lambda: patch(Net().eval()))
    assert {"module:up", "module:down", "output"} <= set(taps)
    assert "warnings" not in facts.details


def test_the_original_keeps_its_own_forward_and_the_copy_its_own_buffers() -> None:
    net = wrapped(Net().eval())
    before = net.forward
    made = fresh(net)
    made.norm.running_mean.fill_(3.0)  # type: ignore[operator, union-attr]
    x = torch.ones(2, 4)
    assert net.forward is before
    assert not torch.equal(made(x), net(x))


def test_a_port_that_hides_its_modules_from_the_copy_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    taps, facts = recorded(monkeypatch, lambda: by_global(Net().eval()))
    assert taps == ["output"]
    (warning,) = facts.details["warnings"]
    assert warning.startswith("none of the module's submodules ran, so only what it returns was compared")


def test_modules_that_training_mode_changes_are_warned_of_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = recorded(monkeypatch, Net)
    (warning,) = facts.details["warnings"]
    assert warning.startswith(
        "candidate: the module was in training mode, where drop, norm computes otherwise"
    )


def test_a_new_layer_that_computes_alike_in_both_modes_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> nn.Module:
        net = Net(0.0).eval()
        net.act, net.drop = nn.GELU(), nn.Dropout(0.0)
        net.up.train()
        return net

    _, facts = recorded(monkeypatch, build)
    assert facts.substitutions == ()
    assert "warnings" not in facts.details
