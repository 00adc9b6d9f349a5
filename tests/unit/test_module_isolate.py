"""Submodules of a port on the reference's inputs: what is wrong then was born there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase, Step
from parity.harness.errors import CandidateError
from parity.harness.mapping import TapMap
from parity.harness.module_isolate import Isolation
from parity.harness.module_session import ModuleSession, Original
from parity.harness.target import Facts
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


class Cache:
    """Rows that grow with every call, as key-value caches of libraries do."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def update(self, row: Tensor) -> Tensor:
        """All rows so far, this one included: [N, D]."""
        self.rows.append(row)
        return torch.cat(self.rows)


class Pair(NamedTuple):
    """A tensor beside a cache."""

    x: Tensor
    cache: Any


class Layer(nn.Module):
    """Mixes the rows of its cache."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.gain = nn.Linear(4, 4), gain

    def forward(self, pair: Pair) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.fc(pair.x) + self.gain * pair.cache.update(pair.x).mean(0)


class Cached(nn.Module):
    """One cache for two layers; the second asks for a size that only a cache of its own has."""

    def __init__(self, gain: float = 1.0, made: Callable[[], Any] = Cache) -> None:
        super().__init__()
        self.made, self.body = made, nn.ModuleList([Layer(1.0), Layer(gain)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        cache = self.made()
        for layer in self.body:
            x = layer(Pair(x, cache))
        assert len(cache.rows) == 2
        return x


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_cache_that_grows_is_the_references_own(kind: torch.dtype) -> None:
    found, wrong = MemoryRun("found"), MemoryRun("wrong")
    for gain, run in ((1.0, found), (3.0, wrong)):
        isolation = Isolation(Cached().eval(), Cached(gain).to(kind).eval())
        isolation.run(X, run, step=0)
        assert isolation.refused == {}
    assert found.taps == ["module:body.0", "module:body.0.fc", "module:body.1", "module:body.1.fc"]
    differs = [
        one.tap
        for one, two in zip(found.records(), wrong.records(), strict=True)
        if not np.allclose(one.read(), two.read())
    ]
    assert differs == ["module:body.1"]


class Sealed(Cache):
    """One that nobody may copy."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


def test_what_cannot_be_copied_is_told_and_left_out() -> None:
    sink = MemoryRun("isolated")
    isolation = Isolation(Cached(made=Sealed).eval(), Cached(made=Sealed).eval())
    isolation.run(X, sink, step=0)
    assert sink.taps == ["module:body.0.fc", "module:body.1.fc"]
    assert isolation.refused["body.1"] == "TypeError: cannot be copied"


def test_a_reference_that_cannot_be_run_again_fails_no_candidate() -> None:
    class Once(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("only once")

    session = ModuleSession(Net(), X, Facts("float32", "call"), CandidateError, original=Original(Once(), X))
    session.isolated_sink = MemoryRun("isolated")
    session.step(Step(0, "call", ((),), None), np.zeros((0, 0)), np.zeros((0, 0)), None)
    assert "RuntimeError: only once" in session.facts.details["warnings"][0]
