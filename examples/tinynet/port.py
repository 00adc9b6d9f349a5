"""The port: the same weights, but the second block's norm has `eps=1e-2`."""

from __future__ import annotations

import torch
from torch import nn

from .net import Net


def build() -> nn.Module:
    """The port with the original's weights."""
    torch.manual_seed(0)
    return Net(eps=1e-2)
