"""The plain form of a key/value cache, which keeps every row, and attention over it.

Shape suffixes: b sequence, t new token, s key row (cached rows, then the new ones), h query head,
g key/value head, d channel of one head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = tuple[Tensor, Tensor]
"""Keys and values of one layer, `[B, G, S, D]` each."""


class Caches(NamedTuple):
    """Keys (rotated, where the model rotates) and values per layer, and the absolute position of each row.

    `positions` is `[B, S]` int64 with -1 at padding. A cache may be cut by indexing its rows; nothing here
    looks at how many there are.
    """

    ks: tuple[Tensor, ...]
    vs: tuple[Tensor, ...]
    positions: Tensor

    def layer(self, index: int) -> Rows:
        """The rows of one layer."""
        return self.ks[index], self.vs[index]


def grown(past: Rows | None, k_bgtd: Tensor, v_bgtd: Tensor) -> Rows:
    """The rows of one layer with the new ones appended."""
    if past is None:
        return k_bgtd, v_bgtd
    return torch.cat((past[0], k_bgtd), dim=2), torch.cat((past[1], v_bgtd), dim=2)


def attend(q_bhtd: Tensor, ks_bgsd: Tensor, vs_bgsd: Tensor, mask_bts: Tensor | None) -> Tensor:
    """Softmax attention `[B, H, T, D]`; query heads that share a key/value head lie side by side.

    Without a mask, query row j sees the key rows up to S - T + j.
    """
    num_new, num_keys = q_bhtd.shape[2], ks_bgsd.shape[2]
    group_size = q_bhtd.shape[1] // ks_bgsd.shape[1]
    k_bhsd = ks_bgsd.repeat_interleave(group_size, dim=1)
    v_bhsd = vs_bgsd.repeat_interleave(group_size, dim=1)
    if mask_bts is None and num_new == num_keys:
        return F.scaled_dot_product_attention(q_bhtd, k_bhsd, v_bhsd, is_causal=True)
    if mask_bts is None:
        every = torch.ones(1, num_new, num_keys, dtype=torch.bool, device=q_bhtd.device)
        mask_bts = every.tril(num_keys - num_new)
    return F.scaled_dot_product_attention(q_bhtd, k_bhsd, v_bhsd, attn_mask=mask_bts[:, None])


def continue_positions(ids_bt: Tensor, past: Caches | None) -> Tensor:
    """Positions `[B, T]` of new tokens: 0, 1, ... or those after the newest cached row of each sequence."""
    fresh_bt = torch.arange(ids_bt.shape[1], device=ids_bt.device).expand(ids_bt.shape)
    if past is None:
        return fresh_bt
    return past.positions.amax(dim=1, keepdim=True) + 1 + fresh_bt


def row_positions(past: Caches | None, positions_bt: Tensor) -> Tensor:
    """Positions `[B, S]` of cached and new rows."""
    return positions_bt if past is None else torch.cat((past.positions, positions_bt), dim=1)
