"""One call of a port in which nothing is inherited: wrong modules and wrong code between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness import module_calls
from parity.harness.case import Step
from parity.harness.errors import CandidateError
from parity.harness.isolation import EXPECTED, HANDED, MODULES, TAPS
from parity.harness.module_calls import TooMuchError, capture
from parity.harness.module_pinned import PinnedModules
from parity.harness.module_session import ModuleSession, Original
from parity.harness.target import Facts
from parity.harness.tracer import trace_tensor
from parity.harness.tracer.memory import MemoryRun


class Attention(nn.Module):
    """Causal, two heads; returns its weights too."""

    def __init__(self, **bugs: float) -> None:
        super().__init__()
        self.qkv, self.out, self.bugs = nn.Linear(8, 24), nn.Linear(8, 8), bugs

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, 8] -> the same, and weights [B, 2, T, T]."""
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT * 0.5 * self.bugs.get("scale", 1.0) + mask).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        trace_tensor("mixed", mixed)
        return self.out(mixed), weights


class Block(nn.Module):
    """Pre-norm, with sums between the modules."""

    def __init__(self, **bugs: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn, self.up, self.down = Attention(**bugs), nn.Linear(8, 16), nn.Linear(16, 8)
        self.bugs = bugs

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, 8] -> the same."""
        mid = x + self.attn(self.norm1(x), mask)[0] * self.bugs.get("first", 1.0)
        made = self.down(F.relu(self.up(self.norm2(mid))))
        return mid * self.bugs.get("second", 1.0) + made


class Net(nn.Module):
    """Two blocks; `bugs` of the second are numbers that should be 1."""

    def __init__(self, *, shift: int = 0, hides: float = -1e9, last: float = 1.0, **bugs: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.blocks = nn.Embedding(10, 8), nn.ModuleList([Block(), Block(**bugs)])
        self.norm, self.shift, self.hides, self.last = nn.LayerNorm(8), shift, hides, last

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, 8]."""
        size = ids.shape[1]
        kind = self.emb.weight.dtype
        mask = torch.full((size, size), self.hides, dtype=kind).triu(1 + self.shift)
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x) * self.last


IDS = {"ids": torch.arange(10).reshape(2, 5)}


def found(port: nn.Module, **about: Any) -> tuple[MemoryRun, PinnedModules]:
    run = MemoryRun("isolated")
    pairing = PinnedModules(Net().eval(), port.eval(), **about)
    pairing.run(IDS, IDS, run, 0)
    return run, pairing


RIGHT = {(r.tap, r.call): r.read() for r in found(Net())[0].records()}


def wrong(port: nn.Module, atol: float = 1e-6) -> list[str]:
    """What is not as it should be, in execution order; `:in` is what a module was handed."""
    records = found(port)[0].records()
    expected = {(r.tap, r.call): r.read() for r in records if r.tap.endswith(EXPECTED)}
    out = []
    for record in records:
        if record.tap.endswith(EXPECTED):
            continue
        handed = HANDED in record.tap
        key = (record.tap + EXPECTED if handed else record.tap), record.call
        right = expected[key] if handed else RIGHT[key]
        if not np.allclose(record.read().astype(float), right.astype(float), rtol=0, atol=atol):
            out.append(record.tap.removeprefix("module:"))
    return out


def test_a_right_port_is_right_everywhere_and_is_handed_what_is_right() -> None:
    assert wrong(Net()) == []
    assert not any(HANDED in tap for tap, _ in RIGHT)
    assert {("mixed", 1), ("module:blocks.1.attn.1", 0), ("output", 0)} <= RIGHT.keys()


@pytest.mark.parametrize(
    ("bug", "at"),
    [
        ({"first": 1.1}, ["blocks.1.norm2:in.0"]),
        ({"second": 1.1}, ["blocks.1"]),
        ({"first": 1.1, "second": 1.1}, ["blocks.1.norm2:in.0", "blocks.1"]),
        ({"shift": 1}, ["blocks.0:in.1"]),
        ({"last": 2.0}, ["output"]),
    ],
)
def test_wrong_code_between_modules_is_seen_where_its_value_is_handed_on(
    bug: dict[str, Any], at: list[str]
) -> None:
    assert wrong(Net(**bug)) == at


def test_what_lies_behind_a_wrong_value_between_modules_shows_it_too() -> None:
    run, pairing = found(Net(scale=1.5))
    assert wrong(Net(scale=1.5)) == ["mixed", "blocks.1.attn.1"]
    assert "module:blocks.1.attn:in" not in run.taps
    assert "module:blocks.1.attn.0" in pairing.shared["module:blocks.1.attn.1"]


def test_wrong_modules_are_all_wrong_on_their_own_account() -> None:
    port = Net(first=1.1)
    port.blocks[0].norm1.eps = 0.1  # type: ignore[union-attr]
    with torch.no_grad():
        port.blocks[1].down.weight[3] *= 2.0  # type: ignore[union-attr, index]
    assert wrong(port) == ["blocks.0.norm1", "blocks.1.norm2:in.0", "blocks.1.down"]


def test_a_mask_that_hides_by_another_number_is_no_difference() -> None:
    assert wrong(Net(hides=-1e4)) == []


def test_a_port_in_another_number_format_departs_by_its_rounding_alone() -> None:
    assert wrong(Net().bfloat16(), atol=0.05) == []


def test_a_value_that_the_port_hands_to_the_wrong_place_stays_right_where_it_belongs() -> None:
    class Mixed(Block):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mid = x + self.attn(self.norm1(x), mask)[0]
            return mid + self.down(F.relu(self.up(self.norm2(x))))

    port = Net()
    mixed = Mixed()
    mixed.load_state_dict(port.blocks[1].state_dict())
    port.blocks[1] = mixed
    assert wrong(port) == ["blocks.1.norm2:in.0"]


def test_a_sum_in_place_is_a_value_between_modules_as_well() -> None:
    class InPlace(Block):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mid = self.attn(self.norm1(x), mask)[0]
            mid *= 1.1
            mid += x
            return mid + self.down(F.relu(self.up(self.norm2(mid))))

    port = Net()
    changed = InPlace()
    changed.load_state_dict(port.blocks[1].state_dict())
    port.blocks[1] = changed
    assert wrong(port) == ["blocks.1.norm2:in.0"]


def test_what_a_module_inside_could_not_be_pinned_for_convicts_nobody_behind_it() -> None:
    class Cutting(Block):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mid = x + self.attn(self.norm1(x), mask)[0]
            return mid + self.down(F.relu(self.up(self.norm2(mid))[:, :5] * 2.0))

    port = Net()
    changed = Cutting()
    changed.up = _longer()
    port.blocks[1] = changed
    run, pairing = found(port)
    assert "module:blocks.1.up" in pairing.unpinned
    assert "module:blocks.1.down" + HANDED + ".0" not in run.taps
    assert "blocks.1.up inside" in pairing.unpinned["module:blocks.1"]


def _longer() -> nn.Module:
    class Longer(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            made = super().forward(input)
            return torch.cat((made, made[:, :1]), 1)

    return Longer(8, 16)


def test_a_map_pairs_paths_that_differ_and_the_records_stand_under_the_references() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = Net(first=1.1)
            self.tokens, self.layers, self.final = net.emb, net.blocks, net.norm

        def forward(self, ids: Tensor) -> Tensor:
            x, mask = self.tokens(ids), torch.full((5, 5), -1e9).triu(1)
            for layer in self.layers:
                x = layer(x, mask)
            return self.final(x)

    names = {path: path.replace("blocks", "layers") for path, _ in Net().named_modules() if "blocks." in path}
    run, pairing = found(Other(), names=names)
    assert "module:blocks.1.norm2:in.0" in run.taps
    assert pairing.refused["emb"] == "the candidate does not call a module of that name"


def test_the_ports_own_tensors_are_what_they_were_when_it_is_over() -> None:
    kept: list[Tensor] = []

    class Keeping(Block):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mid = x + 2.0 * self.attn(self.norm1(x), mask)[0]
            kept[:] = [mid, mid.clone()]
            return mid + self.down(F.relu(self.up(self.norm2(mid))))

    port = Net()
    port.blocks[1] = Keeping()
    found(port)
    assert torch.equal(*kept)


def test_a_tensor_that_many_hold_is_copied_once_until_it_is_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x - 1.0))

    calls = capture(Writes(), {"x": torch.zeros(3)}).calls
    first, second = calls["one", 0], calls["two", 0]
    assert first.given[0].tensor is second.given[0].tensor
    assert second.given[0].tensor.tolist() == [-1.0] * 3
    assert second.returned[""].tolist() == [0.0] * 3


def session(port: nn.Module) -> ModuleSession:
    made = ModuleSession(port, IDS, Facts("float32", "call"), CandidateError, original=Original(Net(), IDS))
    made.isolated_sink = MemoryRun("isolated")
    nothing = np.zeros((0, 0), np.int64)
    made.step(Step(0, "call", ((),), None), nothing, nothing, None)
    return made


def test_the_reference_and_the_port_are_called_once_each_for_isolation() -> None:
    calls: list[str] = []

    class Counted(Net):
        def forward(self, ids: Tensor) -> Tensor:
            calls.append("port")
            return super().forward(ids)

    made = session(Counted())
    forced = 2
    assert len(calls) == forced + 1
    assert made.isolation.kind == TAPS


def test_activations_that_do_not_fit_are_told_and_submodules_are_fed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module_calls, "MOST", 100)
    with pytest.raises(TooMuchError, match="GiB"):
        capture(Net(), IDS)
    made = session(Net())
    assert made.isolation.kind == MODULES
    assert "GiB" in made.facts.details["not_pinned"]


def test_a_port_that_fails_on_other_values_is_fed_module_by_module() -> None:
    class Strict(Net):
        def forward(self, ids: Tensor) -> Tensor:
            x = super().forward(ids)
            if any(part._forward_hooks for part in self.norm.modules()) and self.norm._forward_pre_hooks:
                raise RuntimeError("not with hooks before and behind")
            return x

    made = session(Strict())
    assert made.isolation.kind == MODULES
    assert "not with hooks" in made.facts.details["not_pinned"]


class Turned(nn.Module):
    """A table for all positions, which one module makes and another reads; `rows` of it are made."""

    def __init__(self, rows: int = 1, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.read = Table(rows, width), Reads()

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, 8]."""
        return self.read(ids, self.table(ids))


class Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    def forward(self, ids: Tensor) -> Tensor:
        """[1, T, W], or the same for each of several."""
        made = torch.arange(ids.shape[1] * self.width) / 10.0
        return made.view(1, -1, self.width).expand(self.rows, -1, -1)


class Reads(nn.Module):
    def forward(self, ids: Tensor, table: Tensor) -> Tensor:
        """[B, T] and a table -> [B, T, 8]."""
        return ids[..., None] + table[..., :8]


def turned(port: nn.Module, reference: nn.Module) -> tuple[MemoryRun, PinnedModules]:
    run, pairing = MemoryRun("isolated"), PinnedModules(reference.eval(), port.eval())
    pairing.run(IDS, IDS, run, 0)
    return run, pairing


@pytest.mark.parametrize(("own", "theirs"), [(1, 2), (2, 1)])
def test_one_row_that_stands_for_all_is_pinned(own: int, theirs: int) -> None:
    run, pairing = turned(Turned(own), Turned(theirs))
    assert list(pairing.unpinned) == ["output"]
    assert run.records("module:table")[0].shape == (own, 5, 8)


def test_what_reads_a_value_of_another_shape_is_not_said_to_be_made_of_the_references() -> None:
    _, pairing = turned(Turned(width=10), Turned())
    assert pairing.unpinned["module:read"] == "table has another shape or kind than in the reference"
