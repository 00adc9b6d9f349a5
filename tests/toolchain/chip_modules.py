"""Modules that the cv181x compiler takes and gets wrong, and some that it gets right."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """One decode step over cache rows `[1, 2, W, 64]`: key/value heads repeated, or query heads grouped."""

    def __init__(self, *, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, q: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        if self.grouped:
            scores = q.reshape(1, 2, 4, 64) @ ks.transpose(2, 3) / 8
            return torch.softmax(scores, -1) @ vs
        rows = ks.shape[2]
        k = ks[:, :, None].expand(1, 2, 4, rows, 64).reshape(1, 8, rows, 64)
        v = vs[:, :, None].expand(1, 2, 4, rows, 64).reshape(1, 8, rows, 64)
        return torch.softmax(q @ k.transpose(2, 3) / 8, -1) @ v


class Turned(nn.Module):
    """A cache as it was written, and one new token: the compiler turns neither, and its interpreter crashes.

    `repeated` adds keys that are repeated over many rows, which are miscompiled on their own.
    """

    def __init__(self, *, repeated: bool) -> None:
        super().__init__()
        self.repeated = repeated

    def forward(self, q: Tensor, ks: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        sums = wide * 2
        if self.repeated:
            k = wide[:, :, None].expand(1, 2, 4, 512, 64).reshape(1, 8, 512, 64)
            sums = k @ torch.ones(64, 1)
        return sums, q.transpose(1, 2) @ ks.permute(0, 2, 3, 1)


class Head(nn.Module):
    """Rotary rows cut on axis 0: in int8 the artefact is made, and the runtime aborts when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 128)
        self.q = nn.Linear(128, 128)

    def forward(self, ids: Tensor, rope: Tensor) -> Tensor:
        cos, sin = rope[0:1], rope[1:2]
        q = self.q(self.embed(ids)).reshape(1, 1, 4, 32).permute(0, 2, 1, 3)
        half = torch.cat((-q[..., 16:], q[..., :16]), -1)
        return q * cos + half * sin


class Mlp(nn.Module):
    """Its norm and its GELU are several operators in ONNX, and one each to the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.gelu(self.a(self.n(x))))


def mlp() -> nn.Module:
    """A feed-forward block."""
    torch.manual_seed(0)
    return Mlp()


def expanded() -> nn.Module:
    """Grouped-query attention by expand: wrong from 512 rows on."""
    return Attention(grouped=False)


def grouped() -> nn.Module:
    """The same mathematics by grouping queries: right."""
    return Attention(grouped=True)


def turned() -> nn.Module:
    """Wrong in the clean build, right with its taps as outputs."""
    return Turned(repeated=False)


def turned_and_repeated() -> nn.Module:
    """Wrong in both, for a reason of its own."""
    return Turned(repeated=True)


def head() -> nn.Module:
    """A head segment."""
    torch.manual_seed(0)
    return Head()
