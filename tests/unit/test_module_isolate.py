"""Submodules of a port on the reference's inputs: what is wrong then was born there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase
from parity.harness.mapping import TapMap
from parity.harness.module_isolate import Isolation
from parity.harness.module_session import Original
from parity.harness.tracer.memory import MemoryRun


class Net(nn.Module):
    """Two layers, the first called twice, functional code between them."""

    def __init__(self, *, eps: float = 1e-5, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.gain = nn.Linear(4, 4), nn.LayerNorm(4, eps=eps), gain

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.norm(self.fc(torch.relu(self.fc(x)) * self.gain))


class Renamed(Net):
    """The same under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.fc
        del self.fc

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.norm(self.linear(torch.relu(self.linear(x)) * self.gain))


X = {"x": torch.linspace(-1, 1, 8).reshape(2, 4)}


def isolated(candidate: nn.Module, **about: Any) -> tuple[dict[tuple[str, int], np.ndarray], Isolation]:
    sink = MemoryRun("isolated")
    isolation = Isolation(Net().eval(), candidate.eval(), **about)
    isolation.run(X, sink, step=0)
    return {(record.tap, record.call): record.read() for record in sink.records()}, isolation


def right() -> dict[tuple[str, int], np.ndarray]:
    return isolated(Net())[0]


def differing(found: dict[tuple[str, int], np.ndarray]) -> list[tuple[str, int]]:
    return [key for key, value in right().items() if not np.allclose(found[key], value, rtol=1e-6, atol=1e-7)]


def test_every_call_of_every_submodule_is_fed_and_a_right_port_is_right_everywhere() -> None:
    assert list(right()) == [("module:fc", 0), ("module:fc", 1), ("module:norm", 0)]
    assert differing(isolated(Net())[0]) == []


def test_only_the_module_with_the_bug_is_wrong_on_right_inputs() -> None:
    assert differing(isolated(Net(eps=0.1))[0]) == [("module:norm", 0)]


def test_a_bug_between_modules_leaves_all_of_them_right() -> None:
    assert differing(isolated(Net(gain=2.0))[0]) == []


def test_a_map_pairs_paths_that_differ() -> None:
    case = ModuleCase("theirs:build", Net(), {"x": X["x"].numpy()}, "digest")
    mapping = TapMap(renames={"module:linear": "module:fc"})
    original = Original.of(case, mapping, Renamed())
    assert original.names == {"fc": "linear"}
    assert differing(isolated(Renamed(), names=original.names)[0]) == []
    assert list(isolated(Renamed())[0]) == [("module:norm", 0)]


def test_a_submodule_that_takes_other_inputs_is_told_and_left_out() -> None:
    port = Net()
    port.norm = nn.Linear(3, 3)  # type: ignore[assignment]
    found, isolation = isolated(port)
    assert list(found) == [("module:fc", 0), ("module:fc", 1)]
    assert "shapes cannot be multiplied" in isolation.refused["norm"]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_inputs_are_handed_over_in_the_ports_number_format(kind: torch.dtype) -> None:
    found, isolation = isolated(Net().to(kind))
    assert isolation.refused == {}
    for key, value in right().items():
        np.testing.assert_allclose(found[key].astype(np.float64), value, atol=0.02)
