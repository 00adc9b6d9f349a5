"""Taps inside torch.compile(fullgraph=True) are recorded when the graph runs: once, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from parity.harness.tracer import executing, recording, step, tap_modules, trace_tensor
from parity.harness.tracer.memory import MemoryRun

# torch imports its own deprecated pieces while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")


class Block(torch.nn.Module):
    """A linear layer with a tap that is edited in place right after it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with executing("attn"):
            q = self.linear(x)
            trace_tensor("q", q, axes="b d")
            q.add_(1)
            trace_tensor("q", q, axes="b d")
        return q


class Net(torch.nn.Module):
    """Two blocks under their scopes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            with executing(f"layer{index}"):
                x = block(x)
        trace_tensor("out", x)
        return x * 2


NAMES = ["layer0.attn.q", "layer0.attn.q", "layer1.attn.q", "layer1.attn.q", "out"]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def trace(model: torch.nn.Module, steps: int = 1) -> MemoryRun:
    run = MemoryRun("x")
    with recording(run), torch.no_grad():
        for index in range(steps):
            with step(index):
                model(torch.full((2, 4), float(index)))
    return run


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_taps_equal_eager_taps_and_nothing_recompiles_per_step(backend: str) -> None:
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    expected, actual = trace(net, 5), trace(compiled, 5)
    assert [r.tap for r in actual.records()] == NAMES * 5
    for want, got in zip(expected.records(), actual.records(), strict=True):
        assert (want.tap, want.step, want.call, want.axes) == (got.tap, got.step, got.call, got.axes)
        torch.testing.assert_close(torch.tensor(got.read()), torch.tensor(want.read()))
    assert graphs() == 1


def test_turning_the_recording_on_and_off_compiles_two_graphs_with_equal_outputs() -> None:
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    x = torch.ones(2, 4)
    plain = compiled(x)
    for _ in range(3):
        run = MemoryRun("x")
        with recording(run):
            traced = compiled(x)
        assert torch.equal(plain, traced)
        assert torch.equal(plain, compiled(x))
        assert len(run.records()) == len(NAMES)
    assert graphs() == 2


def test_a_block_compiled_alone_takes_the_scope_it_is_called_under() -> None:
    net = Net()
    block = torch.compile(net.blocks[0], fullgraph=True, backend="eager")
    run = MemoryRun("x")
    with recording(run), torch.no_grad():
        x = torch.ones(2, 4)
        for index in range(12):
            with executing(f"layer.{index}"):
                x = block(x)
            block(x)
    assert run.taps[:3] == ["layer.0.attn.q", "attn.q", "layer.1.attn.q"]
    assert len(run.records()) == 48
    assert graphs() == 1


def test_scopes_hold_across_a_graph_break() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        with executing("layer0"):
            trace_tensor("a", x)
            torch._dynamo.graph_break()
            with executing("mlp"):
                trace_tensor("b", x + 1)
        trace_tensor("c", x)
        return x

    run = trace(torch.compile(model, backend="eager"))
    assert run.taps == ["layer0.a", "layer0.mlp.b", "c"]


def test_training_records_and_gives_the_same_gradients() -> None:
    net, x = Net(), torch.ones(2, 4)
    net(x).sum().backward()
    want = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    run = MemoryRun("x")
    with recording(run):
        torch.compile(net, fullgraph=True, backend="aot_eager")(x).sum().backward()
    for gradient, parameter in zip(want, net.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
    assert len(run.records()) == len(NAMES)


def test_compiled_taps_go_to_the_thread_that_runs_them() -> None:
    compiled = torch.compile(Net(), fullgraph=True, backend="eager")
    mine, theirs = trace(compiled), MemoryRun("theirs")

    def work() -> None:
        with recording(theirs), executing("t"), torch.no_grad():
            compiled(torch.ones(2, 4))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(mine.records()) == len(theirs.records()) == len(NAMES)
    assert theirs.taps[0] == "t.layer0.attn.q"


def test_positions_and_numpy_values_pass_through_the_graph() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        trace_tensor("q", x, axes="t d", positions=torch.arange(2))
        trace_tensor("n", x.numpy() + 1)
        return x

    run = trace(torch.compile(model, fullgraph=True, backend="eager"))
    q, n = run.records()
    assert q.positions is not None
    assert q.positions.tolist() == [0, 1]
    assert n.read().tolist() == [[1] * 4] * 2


def test_hooks_set_before_compiling_a_function_record_too() -> None:
    net = Net()
    run = MemoryRun("x")
    with recording(run), tap_modules(net, include="blocks.*"), torch.no_grad():
        torch.compile(lambda x: net(x), fullgraph=True, backend="eager")(torch.ones(2, 4))
    assert {"module:blocks.0", "module:blocks.1"} <= set(run.taps) | {
        name for record in run.records() for name in record.meta.get("alias", {})
    }
