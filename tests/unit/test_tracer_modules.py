"""tap_modules: what hooks record, that they leave no trace, and one record for one value."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity.harness.errors import UserError
from parity.harness.tracer import recording, step, tap_modules, trace_tensor
from parity.harness.tracer.memory import MemoryRun


class Split(nn.Module):
    """Returns a tuple with a tensor, None, and a dict."""

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> Any:
        return x * scale, None, {"half": x / 2, "name": "split"}


class Net(nn.Module):
    """A layer that runs twice, one that returns nothing, one that is shared, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Linear(4, 4)
        self.also = self.twice
        self.split = Split()
        self.drop = nn.Dropout(0.5)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.also(self.twice(x))
        y, _, more = self.split(x, scale=torch.full((1,), 2.0))
        return self.drop(y) + more["half"]


X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def run() -> MemoryRun:
    return MemoryRun("torch")


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )


def test_outputs_are_named_by_path_and_by_place_in_what_the_module_returns(net: Net, run: MemoryRun) -> None:
    with recording(run), tap_modules(net) as taps:
        net(X)
    assert run.taps == [
        "module:twice", "module:split.0", "module:split.2.half", "module:drop", "module:",
    ]  # fmt: skip
    assert [r.call for r in run.records("module:twice")] == [0, 1]
    assert taps.shared == {"twice": ("also",)}
    assert taps.calls["twice"] == 2
    assert taps.calls["idle"] == 0


def test_inputs_are_recorded_as_they_came_in(run: MemoryRun) -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            return x.mul_(scale)

    with recording(run), tap_modules(model := InPlace(), inputs=True):
        model(X.clone(), scale=torch.tensor(3.0))
    by_tap = {r.tap: r.read() for r in run.records()}
    np.testing.assert_array_equal(by_tap["module::in.0"], X.numpy())
    np.testing.assert_array_equal(by_tap["module::in.scale"], 3)
    np.testing.assert_array_equal(by_tap["module:"], (X * 3).numpy())


def test_globs_choose_modules(net: Net, run: MemoryRun) -> None:
    with recording(run), tap_modules(net, include=["*i*", "also"], exclude="idle") as taps:
        net(X)
    assert taps.paths == ("twice", "split")


def test_a_shared_module_is_found_under_its_other_path(net: Net, run: MemoryRun) -> None:
    with recording(run), tap_modules(net, include="also") as taps:
        net(X)
    assert run.taps == ["module:also"]
    assert taps.shared == {"also": ("twice",)}


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_a_user_error(net: Net, which: str) -> None:
    words = f"{which}='split1': matches no module. Did you mean 'split'"
    with pytest.raises(UserError, match=words), tap_modules(net, **{which: "split1"}):  # type: ignore[arg-type]
        pass
    assert hooks(net) == 0


def test_hooks_are_gone_even_when_the_block_raises(net: Net) -> None:
    with pytest.raises(RuntimeError), tap_modules(net, inputs=True):  # noqa: PT012
        assert hooks(net) > 0
        raise RuntimeError
    assert hooks(net) == 0


@pytest.mark.parametrize("train", [True, False])
def test_outputs_random_numbers_and_gradients_are_bitwise_the_same(
    net: Net, run: MemoryRun, train: bool
) -> None:
    def go() -> tuple[torch.Tensor, list[torch.Tensor | None], torch.Tensor]:
        net.zero_grad()
        torch.manual_seed(1)
        y = net.train(train)(X)
        y.sum().backward()
        return y, [p.grad for p in net.parameters()], torch.get_rng_state()

    plain = go()
    grads = [None if g is None else g.clone() for g in plain[1]]
    with recording(run), tap_modules(net, inputs=True, gradients=True):
        tapped = go()
    assert torch.equal(plain[0], tapped[0])
    assert torch.equal(plain[2], tapped[2])
    for want, got in zip(grads, tapped[1], strict=True):
        assert (want is None) == (got is None)
        assert want is None or torch.equal(want, got)  # type: ignore[arg-type]
    assert net.training is train


def test_gradients_are_those_by_the_outputs(run: MemoryRun) -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with recording(run), tap_modules(net, gradients=True), step(7):
        net(torch.ones(1, 2)).sum().backward()
    gradients = {r.tap: r for r in run.records() if ":grad" in r.tap}
    assert list(gradients) == ["module:1:grad", "module::grad", "module:0:grad"]
    np.testing.assert_array_equal(gradients["module:0:grad"].read(), net[1].weight.detach().numpy())
    assert {r.step for r in gradients.values()} == {7}
    orders = [r.tap.endswith("grad") for r in run.records()]
    assert orders == sorted(orders), "gradients come after the forward records"


def test_gradients_that_never_come_are_said(run: MemoryRun, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Linear(2, 2)
    with recording(run), tap_modules(net, gradients=True), torch.no_grad():
        net(torch.ones(1, 2))
    assert "no output required a gradient" in capsys.readouterr().err
    with recording(run), tap_modules(net, gradients=True):
        y = net(torch.ones(1, 2))
    assert "no gradient arrived" in capsys.readouterr().err
    y.sum().backward()
    assert not [r for r in run.records() if "grad" in r.tap]


def test_a_gradient_after_the_recording_does_not_reach_its_sink(run: MemoryRun) -> None:
    net = nn.Linear(2, 2)
    with tap_modules(net, gradients=True):
        with recording(run):
            y = net(torch.ones(1, 2))
        y.sum().backward()
    assert run.taps == ["module:"]


def test_hooks_that_never_ran_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with recording(MemoryRun("x")), tap_modules(nn.Linear(2, 2)):
        pass
    assert "none of the 1 hooked modules ran" in capsys.readouterr().err


def test_nothing_is_recorded_outside_a_recording_or_on_another_thread(net: Net, run: MemoryRun) -> None:
    with tap_modules(net):
        net(X)
        with recording(run):
            thread = threading.Thread(target=net, args=(X,))
            thread.start()
            thread.join()
    assert run.records() == []


def test_compiled_modules_are_refused_because_they_do_not_see_hooks(net: Net) -> None:
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(UserError, match="compiled code does not see hooks"), tap_modules(compiled):
        pass


class Attn(nn.Module):
    """Three projections, tapped after all three ran, and an output that is a tap."""

    def __init__(self, *, edit: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.edit = edit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.q(x), self.k(x)
        if self.edit:
            q.add_(1)
        trace_tensor("q", q, axes="b d")
        trace_tensor("k", k)
        out = q * k
        trace_tensor("out", out)
        return out


def test_one_value_under_a_hook_and_a_tap_is_one_record_with_an_alias(run: MemoryRun) -> None:
    net = Attn()
    with recording(run), tap_modules(net), torch.no_grad():
        for index in range(2):
            with step(index):
                net(X)
    assert run.taps == ["q", "k", "out"]
    first = run.records()[0]
    assert (first.axes, first.meta) == ("b d", {"alias": {"module:q": 0}})
    assert [r.meta["alias"] for r in run.records("out")] == [{"module:": 0}, {"module:": 0}]


def test_each_call_of_a_module_finds_its_own_tap(run: MemoryRun) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.q(x), self.q(x + 1)
            trace_tensor("second", second)
            trace_tensor("first", first)
            return first + second

    with recording(run), tap_modules(net := Twice(), include="q"), torch.no_grad():
        net(X)
    assert [(r.tap, r.meta["alias"]) for r in run.records()] == [
        ("second", {"module:q": 1}), ("first", {"module:q": 0}),
    ]  # fmt: skip


def test_an_edit_between_hook_and_tap_makes_two_records(run: MemoryRun) -> None:
    with recording(run), tap_modules(net := Attn(edit=True)), torch.no_grad():
        net(X)
    assert run.taps == ["module:q", "q", "k", "out"]
    hook, tap = run.records("module:q")[0].read(), run.records("q")[0].read()
    np.testing.assert_array_equal(hook + np.float32(1), tap)


def test_equal_values_in_different_tensors_are_two_records(run: MemoryRun) -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            trace_tensor("x", x)
            return x.clone()

    with recording(run), tap_modules(net := Same()):
        net(X)
    assert run.taps == ["x", "module:"]


def test_a_reused_address_is_not_taken_for_the_same_value(run: MemoryRun) -> None:
    class Maker(nn.Module):
        def forward(self, size: int) -> torch.Tensor:
            return torch.zeros(size)

    maker = Maker()
    with recording(run), tap_modules(maker):
        for i in range(60):
            maker(64 * i)
            trace_tensor("fresh", torch.zeros(64 * i))
    assert len(run.records()) == 120
    assert not any(r.meta for r in run.records())


def test_an_edit_behind_torchs_back_makes_two_records(run: MemoryRun) -> None:
    buffer = np.zeros(4)
    shared = torch.from_numpy(buffer)
    with recording(run), tap_modules(identity := nn.Identity()):
        identity(shared)
        buffer += 1
        trace_tensor("edited", shared)
    assert [(r.tap, r.read().tolist()) for r in run.records()] == [
        ("module:", [0, 0, 0, 0]), ("edited", [1, 1, 1, 1]),
    ]  # fmt: skip


def test_inference_mode_shares_records_too_and_sees_edits(run: MemoryRun) -> None:
    net = Attn(edit=True)
    with torch.inference_mode(), recording(run), tap_modules(net):
        net(X)
    assert run.taps == ["module:q", "q", "k", "out"]


def test_records_keep_execution_order_and_survive_an_exception(run: MemoryRun) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            trace_tensor("before", x)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), recording(run), tap_modules(net := Fails()):
        net(X)
    assert run.taps == ["before"]


def test_long_runs_do_not_wait_in_memory() -> None:
    from parity.harness.tracer.alias import MAX_WAITING

    run = MemoryRun("x")
    net = nn.Linear(2, 2)
    with recording(run), tap_modules(net), torch.no_grad():
        for _ in range(MAX_WAITING + 10):
            net(torch.ones(1, 2))
        assert len(run.records()) == 10
    assert [r.call for r in run.records()] == list(range(MAX_WAITING + 10))


class Encoder(nn.Module):
    """torch's own encoder, which packs its values in eval mode where a padding mask is given."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        """[B, T, 8] and a mask [B, T], true at padding -> [B, T, 8]."""
        return self.layers(x, src_key_padding_mask=pad)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_a_padding_mask_is_recorded_as_arrays(run: MemoryRun) -> None:
    x, pad = torch.rand(2, 5, 8), torch.arange(5)[None] >= torch.tensor([5, 3])[:, None]
    encoder = Encoder().eval()
    with torch.no_grad():
        expected = encoder(x, pad)
        with recording(run), tap_modules(encoder):
            encoder(x, pad)
    assert {"module:layers.layers.0.norm1", "module:layers.layers.1", "module:layers"} <= set(run.taps)
    assert all(record.shape[:2] == (2, 5) for record in run.records())
    found = torch.from_numpy(run.records("module:layers")[0].read())
    torch.testing.assert_close(found[~pad], expected[~pad])
    assert encoder.layers.use_nested_tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_passed_over_in_words(run: MemoryRun, capsys: pytest.CaptureFixture[str]) -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.part(torch.nested.nested_tensor([x, x[:1]])).to_padded_tensor(0.0)
            trace_tensor("found", found)
            return found

    with recording(run), tap_modules(ragged := Ragged()):
        ragged(torch.ones(2, 2))
    assert run.taps == ["found"]
    assert "tap 'module:part' is a nested tensor" in capsys.readouterr().err
