"""Cache policies in their plainest form: who may look at whom, written out as a mask.

Shares no code with the targets on purpose: a mistake on both sides would pass every comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parity.harness.case import CachePolicy


def visible(query_bt: Tensor, key_bs: Tensor, policy: CachePolicy) -> Tensor:
    """Bool `[B, T, S]`: query at absolute position i may attend to key at position j.

    `full`: 0 <= j <= i. `window(n)`: also i - j < n. Padding (-1) sees padding only, so that its rows stay
    finite; nobody else sees it.
    """
    i, j = query_bt[:, :, None], key_bs[:, None, :]
    allowed = (j >= 0) & (j <= i)
    if policy.window is not None:
        allowed &= j > i - policy.window
    padding = (i < 0) & (j < 0)
    return torch.where(i < 0, padding, allowed)
