"""Attention that repeats key/value heads over 512 cache rows: right anywhere, miscompiled for cv181x."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from parity import trace_tensor


class Attention(nn.Module):
    """One decode step: q `[1, 8, 1, 64]` over ks, vs `[1, 2, 512, 64]`."""

    def forward(self, q: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
        """Four query heads share a key/value head."""
        k, v = (rows[:, :, None].expand(1, 2, 4, 512, 64).reshape(1, 8, 512, 64) for rows in (ks, vs))
        trace_tensor("k_repeated", k, axes="b h p d")
        trace_tensor("v_repeated", v, axes="b h p d")
        weights = torch.softmax(q @ k.transpose(2, 3) / 8, -1)
        trace_tensor("weights", weights, axes="b h t p")
        return weights @ v


def build() -> nn.Module:
    """For `--model heads:build`."""
    return Attention()


if __name__ == "__main__":
    draw = np.random.default_rng(0).standard_normal
    shapes = {"q": (1, 8, 1, 64), "ks": (1, 2, 512, 64), "vs": (1, 2, 512, 64)}
    np.savez("heads.npz", **{name: draw(shape, dtype=np.float32) for name, shape in shapes.items()})
