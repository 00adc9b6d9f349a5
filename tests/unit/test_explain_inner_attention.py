"""Mistakes inside an attention that somebody wrote between linear layers are named, rotation included."""

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
from parity.harness.explaining import CATALOGUE

WIDTH, LENGTH = 8, 9


def angles(positions, *, base: float = 1e4, width: int = WIDTH):
    return torch.as_tensor(positions).float()[:, None] / base ** (torch.arange(0, width, 2) / width)


def by_halves(x, angle):
    one, two = x.chunk(2, -1)
    return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()), -1)


def by_pairs(x, angle):
    one, two = x[..., ::2], x[..., 1::2]
    turned = (one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin())
    return torch.stack(turned, -1).flatten(-2)


class Attention(nn.Module):
    """Four query heads over two key heads, rotated by halves."""

    def __init__(self, *, packed: bool = False) -> None:
        super().__init__()
        self.packed = packed
        if packed:
            self.qkv = nn.Linear(32, 64)
        else:
            self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        parts = self.qkv(x).split([32, 16, 16], -1) if self.packed else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in parts)
        at = torch.arange(x.shape[1])
        mixed = self.attend(self.turned(q, at), self.turned(k, at), v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def turned(self, x, at):
        return by_halves(x, angles(at))

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True
        )


class Net(nn.Module):
    def __init__(self, *, packed: bool = False) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.attn, self.head = Attention(packed=packed), nn.Linear(32, 50)

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.attn(self.norm(x)))


def build(*, packed: bool = False) -> Net:
    torch.manual_seed(1)
    net = Net(packed=packed).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.mul_(3 if "attn" in name and weight.ndim == 2 else 1)
    return net


def keys_only(turn):
    """The mistake where there are two heads, right for queries."""
    return lambda x, at: turn(x, at) if x.shape[1] == 2 else by_halves(x, angles(at))


def first_half(x, at):
    return torch.cat((by_halves(x[..., :4], angles(at, width=4)), x[..., 4:]), -1)


def low(x, at):
    angle = angles(at)
    cos, sin = (part.bfloat16().float() for part in (angle.cos(), angle.sin()))
    one, two = x.chunk(2, -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def tiled(q, k, v):
    return F.scaled_dot_product_attention(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), is_causal=True)


def unscaled(q, k, v):
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


BUGS = {
    "interleaved RoPE, base 1e4": ("other partners inside", "turned", lambda x, at: by_pairs(x, angles(at))),
    "RoPE of the opposite sign on keys only": (
        "sign of rotation inside", "turned", keys_only(lambda x, at: by_halves(x, -angles(at)))),
    "RoPE of base 5e5": ("other base inside", "turned", lambda x, at: by_halves(x, angles(at, base=5e5))),
    "RoPE positions off by +1 on keys only": (
        "position off inside", "turned", keys_only(lambda x, at: by_halves(x, angles(at + 1)))),
    "RoPE positions times 0.5": (
        "position scaled inside", "turned", lambda x, at: by_halves(x, angles(at * 0.5))),
    "RoPE left out on keys only": ("no rotation inside", "turned", keys_only(lambda x, at: x)),
    "RoPE on the first 4 of 8 channels only": ("partial rotation inside", "turned", first_half),
    "a RoPE table rounded to bfloat16": ("table rounded inside", "turned", low),
    "key heads tiled instead of repeated": ("heads tiled", "attend", tiled),
    "the scale of the scores left out": ("scale missing", "attend", unscaled),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("name", BUGS)
def test_a_mistake_inside_an_attention_is_named(name, packed, tmp_path: Path, monkeypatch):
    _, method, bug = BUGS[name]

    def port() -> Net:
        net = build(packed=packed)
        setattr(net.attn, method, bug)
        return net

    theirs = types.ModuleType("theirs")
    theirs.build, theirs.port = lambda: build(packed=packed), port
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    ids = np.random.default_rng(0).integers(0, 50, (2, LENGTH))
    options = {"model": "theirs:build", "inputs": {"ids": ids}, "out": tmp_path, "report": False}
    (cause,) = parity.run("torch", ["port=module:theirs:port"], **options)["port"].causes
    same = {"RoPE positions off by +1 on keys only": ", or RoPE positions off by -1 on queries only"}
    assert (cause.tap, cause.name) == ("module:attn.out", name + same.get(name, ""))
    assert cause.residual < 1e-4 < cause.next_best


def test_every_hypothesis_about_rotation_inside_has_a_test():
    assert {kind for kind, *_ in BUGS.values()} >= {h.name for h in CATALOGUE if h.family == "rotation"}
