"""Mistakes in the code between somebody's modules are named: what that code computes is found by trying."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import parity
from parity.harness.module_roles import ModuleOps


class Gated(nn.Module):
    """`down(silu(gate x) * up x)` in one line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x):
        return self.down(self.mixed(self.gate(x), self.up(x)))

    def mixed(self, gate, up):
        return F.silu(gate) * up


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.second = nn.LayerNorm(32), nn.Linear(32, 32), nn.LayerNorm(32)
        self.mlp = Gated()

    def forward(self, x):
        x = self.added(x, self.mix(self.first(x)))
        return x + self.mlp(self.second(x))

    def added(self, x, y):
        return x + y


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


IDS = np.random.default_rng(0).integers(0, 100, (2, 7))
BUGS = {
    "SiLU on the other branch (or the two weights swapped)": (
        "mlp.down",
        "mixed",
        lambda g, u: g * F.silu(u),
    ),
    "GELU in place of SiLU": ("mlp.down", "mixed", lambda g, u: F.gelu(g) * u),
    "the branch without activation left out": ("mlp.down", "mixed", lambda g, u: F.silu(g)),
    "module:blocks.0 not added": ("second", "added", lambda x, y: y),
    "module:blocks.1.mix added twice": ("second", "added", lambda x, y: x + 2 * y),
    "module:blocks.0 normalised before it is added": (
        "second",
        "added",
        lambda x, y: F.layer_norm(x, (32,)) + y,
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_mistake_between_modules_is_named(name, tmp_path: Path, monkeypatch):
    path, method, bug = BUGS[name]

    def port() -> Net:
        net = build()
        block = net.blocks[1]
        setattr(block.mlp if method == "mixed" else block, method, bug)
        return net

    theirs = types.ModuleType("theirs")
    theirs.build, theirs.port = build, port
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    options = {"model": "theirs:build", "inputs": {"ids": IDS}, "out": tmp_path, "report": False}
    (cause,) = parity.run("torch", ["port=module:theirs:port"], **options)["port"].causes
    assert (cause.tap, cause.name) == (f"module:blocks.1.{path}", name)
    assert cause.residual < 1e-4 < cause.next_best


def test_only_what_reproduces_the_reference_is_taken_for_an_op():
    """A norm's output handed on as it is, and a product of three, are no sum and no gate."""
    ops = ModuleOps(build(), {"ids": IDS})
    assert ops.glue("module:blocks.0.mix:in.0", 0) is None
    assert ops.glue("module:blocks.0.second:in.0", 0).role == "add"
    odd = build()
    odd.blocks[0].mlp.mixed = lambda gate, up: F.silu(gate) * up * gate
    assert ModuleOps(odd, {"ids": IDS}).glue("module:blocks.0.mlp.down:in.0", 0) is None
