"""Mistakes in somebody's own module are named: roles come from its classes, inputs from one call."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

import parity
from parity.cli import cli
from parity.harness.module_roles import ModuleOps


class Scale(nn.Module):
    """An RMS norm as many write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


class Turned(nn.Module):
    """A linear layer that keeps its weight the other way round."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 8)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Curve(nn.Module):
    """An activation without a name that anybody knows."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln, self.norm = nn.LayerNorm(32), Scale(32)
        self.up, self.down, self.out = nn.Linear(32, 64), Turned(32, 64), nn.Linear(32, 32)
        self.act = Curve(F.silu)
        nn.init.normal_(self.ln.weight, 1, 0.3)
        nn.init.normal_(self.ln.bias, 0, 0.3)

    def forward(self, x):
        return x + self.out(self.norm(self.down(self.act(self.up(self.ln(x))))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 100, bias=False)

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def with_bug(change) -> Net:
    net = build()
    with torch.no_grad():
        change(net, net.blocks[1])
    return net


def copied(weight: torch.Tensor, other: torch.Tensor) -> None:
    weight.copy_(other.clone())


BUGS = {
    "GELU in place of SiLU": ("blocks.1.act", lambda net, b: setattr(b, "act", Curve(F.gelu))),
    "eps 0.01 instead of 1e-05": ("blocks.1.ln", lambda net, b: setattr(b.ln, "eps", 1e-2)),
    "its weight transposed": ("blocks.1.out", lambda net, b: copied(b.out.weight, b.out.weight.T)),
    "its bias left out": ("blocks.1.down", lambda net, b: b.down.bias.zero_()),
    "embedding row id -1": ("table", lambda net, b: copied(net.table.weight, net.table.weight.roll(1, 0))),
    "1 added to the norm's weight": ("blocks.1.norm", lambda net, b: b.norm.weight.add_(1)),
    "the weights of module:blocks.0.up": (
        "blocks.1.up",
        lambda net, b: b.up.load_state_dict(net.blocks[0].up.state_dict()),
    ),
}
IDS = np.random.default_rng(0).integers(0, 100, (2, 7))


@pytest.fixture
def named(monkeypatch):
    """Factories `theirs:build` and `theirs:port`."""
    module = types.ModuleType("theirs")
    module.build = build
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


@pytest.mark.parametrize("name", BUGS)
def test_a_mistake_in_a_leaf_is_named(name, named, tmp_path: Path):
    path, change = BUGS[name]
    named.port = lambda: with_bug(change)
    result = parity.run(
        "torch",
        ["port=module:theirs:port"],
        model="theirs:build",
        inputs={"ids": IDS},
        out=tmp_path,
        report=False,
    )
    (cause,) = result["port"].causes
    assert (cause.tap, cause.name) == (f"module:{path}", name)
    assert cause.residual < 1e-4 < cause.next_best


def test_a_finished_run_of_a_module_is_explained_with_its_factory(named, tmp_path: Path):
    np.savez(tmp_path / "inputs.npz", ids=IDS)
    named.port = lambda: with_bug(BUGS["its weight transposed"][1])
    case = {"model": "theirs:build", "inputs": str(tmp_path / "inputs.npz"), "out": tmp_path / "out"}
    parity.run("torch", ["port=module:theirs:port"], **case)
    done = CliRunner().invoke(cli, ["explain", str(tmp_path / "out")])
    assert "candidate = reference with its weight transposed (residual 0" in done.stdout
    (tmp_path / "inputs.npz").unlink()
    done = CliRunner().invoke(cli, ["explain", str(tmp_path / "out")])
    assert "the reference does not say what its ops are" in done.stdout


def test_leaves_have_the_roles_of_what_they_compute():
    found = {tap: role.role for tap, role in ModuleOps(build(), {"ids": IDS}).roles.items()}
    mine = {tap.rpartition(".")[2]: role for tap, role in found.items() if "blocks.0" in tap}
    wanted = {
        "ln": "layernorm",
        "norm": "rmsnorm",
        "up": "linear",
        "down": "linear",
        "out": "linear",
        "act": "silu",
    }
    assert mine == wanted
    assert found["module:table"] == "embedding"
