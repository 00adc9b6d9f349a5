"""KLM whole, in plain PyTorch: pre-norm blocks, half-split rotary positions, grouped key/value heads.

Shape suffixes: b sequence, t new token, s key row (cached rows, then the new ones), h query head,
g key/value head, d channel (of the hidden state or of one head), v vocabulary, c cos/sin plane.

Module names give the state_dict keys of the public checkpoints, so these load strictly. Two footguns of
that model are kept because checkpoints depend on them, and one is not: the activation sits on `up_proj`
(LLaMA has it on the gate); the rotary tables are part of the checkpoint and may be bf16-rounded, so they
are used as loaded; but several new tokens over a cache are causal here.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness.errors import UserError
from parity.harness.tracer import executing, trace_tensor

from .config import KLMConfig

ROTARY_BASE = 10000.0


class Caches(NamedTuple):
    """Keys (rotated) and values per layer, `[B, G, S, D]` each, and the absolute position of each row.

    `positions` is `[B, S]` int64 with -1 at padding, or None where the caller works with rotary rows
    only. A cache may be cut by indexing its rows; nothing here looks at how many there are.
    """

    ks: tuple[Tensor, ...]
    vs: tuple[Tensor, ...]
    positions: Tensor | None = None


class Embedding(nn.Module):
    """Character code -> hidden state."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.word_embeddings.weight, std=0.02)

    def forward(self, ids_bt: Tensor) -> Tensor:
        return cast(Tensor, self.word_embeddings(ids_bt))


class LMHead(nn.Module):
    """Hidden state -> logits, without bias."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return cast(Tensor, self.lm_head(x_btd))


class RotaryEmbedding(nn.Module):
    """The table of cosines and sines: `[max_length, D]` each, angles repeated for both halves."""

    cos_cached: Tensor
    sin_cached: Tensor

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        channel = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        frequency = 1.0 / ROTARY_BASE ** (channel / config.head_dim)
        angle = torch.arange(config.max_length, dtype=torch.float32)[:, None] * frequency
        self.register_buffer("cos_cached", angle.cos().repeat(1, 2))
        self.register_buffer("sin_cached", angle.sin().repeat(1, 2))

    def forward(self, positions_bt: Tensor) -> Tensor:
        """Rows `[2, B, T, D]` (0 = cos, 1 = sin); padding (-1) reads row 0."""
        row_bt = positions_bt.clamp(min=0)
        return torch.stack((self.cos_cached[row_bt], self.sin_cached[row_bt]))


def rotate(x_bhtd: Tensor, rope_cbtd: Tensor) -> Tensor:
    """Rotary position by halves: `x * cos + (-second half, first half) * sin`."""
    cos_bhtd, sin_bhtd = rope_cbtd[0][:, None], rope_cbtd[1][:, None]
    first, second = x_bhtd.chunk(2, dim=-1)
    return x_bhtd * cos_bhtd + torch.cat((-second, first), dim=-1) * sin_bhtd


def attend(q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, mask_bts: Tensor | None) -> Tensor:
    """Softmax attention; without a mask, query row j sees the key rows up to S - T + j."""
    num_new, num_keys = q_bhtd.shape[2], k_bhsd.shape[2]
    if mask_bts is None and num_new == num_keys:
        return F.scaled_dot_product_attention(q_bhtd, k_bhsd, v_bhsd, is_causal=True)
    if mask_bts is None:
        every = torch.ones(1, num_new, num_keys, dtype=torch.bool, device=q_bhtd.device)
        mask_bts = every.tril(num_keys - num_new)
    return F.scaled_dot_product_attention(q_bhtd, k_bhsd, v_bhsd, attn_mask=mask_bts[:, None])


class Attention(nn.Module):
    """Grouped-query attention; appends the new rows to the cache that it is given."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.group_size = config.group_size
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x_btd: Tensor,
        rope_cbtd: Tensor,
        mask_bts: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        positions_bs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_bhtd, k_bgtd, v_bgtd = self._project(x_btd, rope_cbtd)
        ks_bgsd = k_bgtd if past is None else torch.cat((past[0], k_bgtd), dim=2)
        vs_bgsd = v_bgtd if past is None else torch.cat((past[1], v_bgtd), dim=2)
        trace_tensor("ks", ks_bgsd, axes="b h p d", positions=positions_bs)
        trace_tensor("vs", vs_bgsd, axes="b h p d", positions=positions_bs)
        k_bhsd = ks_bgsd.repeat_interleave(self.group_size, dim=1)
        v_bhsd = vs_bgsd.repeat_interleave(self.group_size, dim=1)
        attn_bthd = attend(q_bhtd, k_bhsd, v_bhsd, mask_bts).transpose(1, 2)
        trace_tensor("attn", attn_bthd, axes="b t h d")
        o_btd = self.out_proj(attn_bthd.flatten(2))
        trace_tensor("o", o_btd, axes="b t d")
        return o_btd, ks_bgsd, vs_bgsd

    def _project(self, x_btd: Tensor, rope_cbtd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_bhtd = rotate(self._heads(self.q_proj(x_btd)), rope_cbtd)
        k_bgtd = rotate(self._heads(self.k_proj(x_btd)), rope_cbtd)
        v_bgtd = self._heads(self.v_proj(x_btd))
        trace_tensor("q", q_bhtd, axes="b h t d")
        trace_tensor("k", k_bgtd, axes="b h t d")
        trace_tensor("v", v_bgtd, axes="b h t d")
        return q_bhtd, k_bgtd, v_bgtd

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.view(*x_btd.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """`down(silu(up x) * gate x)`."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x_btd: Tensor) -> Tensor:
        act_btf = F.silu(self.up_proj(x_btd)) * self.gate_proj(x_btd)
        trace_tensor("act", act_btf, axes="b t f")
        y_btd = cast(Tensor, self.down_proj(act_btf))
        trace_tensor("mlp", y_btd, axes="b t d")
        return y_btd


class Block(nn.Module):
    """One pre-norm layer: `mid = x + attention(ln1 x)`, then `mid + mlp(ln2 mid)`."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.ln1 = nn.LayerNorm(config.hidden_size)
        self.ln2 = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        x_btd: Tensor,
        rope_cbtd: Tensor,
        mask_bts: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        positions_bs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        trace_tensor("residual", x_btd, axes="b t d")
        norm1_btd = self.ln1(x_btd)
        trace_tensor("norm1", norm1_btd, axes="b t d")
        o_btd, ks_bgsd, vs_bgsd = self.attention(norm1_btd, rope_cbtd, mask_bts, past, positions_bs)
        mid_btd = x_btd + o_btd
        trace_tensor("mid", mid_btd, axes="b t d")
        norm2_btd = self.ln2(mid_btd)
        trace_tensor("norm2", norm2_btd, axes="b t d")
        return mid_btd + self.mlp(norm2_btd), ks_bgsd, vs_bgsd


class Body(nn.Module):
    """The rotary table and the layers."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.rotary_embedding = RotaryEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    def forward(
        self,
        x_btd: Tensor,
        rope_cbtd: Tensor,
        mask_bts: Tensor | None,
        past: Caches | None,
        positions_bs: Tensor | None,
    ) -> tuple[Tensor, Caches]:
        ks, vs = [], []
        for i, block in enumerate(self.blocks):
            rows = None if past is None else (past.ks[i], past.vs[i])
            with executing(f"layer{i}"):
                x_btd, ks_bgsd, vs_bgsd = block(x_btd, rope_cbtd, mask_bts, rows, positions_bs)
            ks.append(ks_bgsd)
            vs.append(vs_bgsd)
        return x_btd, Caches(tuple(ks), tuple(vs), positions_bs)


class KLM(nn.Module):
    """Token ids -> logits and grown caches."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.body = Body(config)
        self.final_ln = nn.LayerNorm(config.hidden_size)
        self.lm_head = LMHead(config)
        if config.tie_word_embeddings:
            self.lm_head.lm_head.weight = self.embedding.word_embeddings.weight

    def forward(
        self,
        ids_bt: Tensor,
        *,
        positions_bt: Tensor | None = None,
        rope_cbtd: Tensor | None = None,
        mask_bts: Tensor | None = None,
        past: Caches | None = None,
    ) -> tuple[Tensor, Caches]:
        """Logits `[B, T, V]` and the caches with the new rows appended.

        `positions_bt` are absolute positions (-1 at padding); without them and without `rope_cbtd` they
        continue after the newest cached row. `rope_cbtd` replaces the look-up in the table. `mask_bts` is
        bool, True where a query may see a key row (cached rows first); every row needs one True, padding
        rows too. Without it attention is causal.
        """
        if positions_bt is None and rope_cbtd is None:
            positions_bt = continue_positions(ids_bt, past)
        if rope_cbtd is None:
            rope_cbtd = self.body.rotary_embedding(positions_bt)
        x_btd = self.embedding(ids_bt)
        trace_tensor("embed", x_btd, axes="b t d")
        trace_tensor("rope", rope_cbtd, axes="c b t d")
        x_btd, caches = self.body(x_btd, rope_cbtd, mask_bts, past, _row_positions(past, positions_bt))
        x_btd = self.final_ln(x_btd)
        trace_tensor("final", x_btd, axes="b t d")
        logits_btv = self.lm_head(x_btd)
        trace_tensor("logits", logits_btv, axes="b t v")
        return logits_btv, caches


def continue_positions(ids_bt: Tensor, past: Caches | None) -> Tensor:
    """Positions `[B, T]` of new tokens: 0, 1, ... or those after the newest cached row of each sequence."""
    fresh_bt = torch.arange(ids_bt.shape[1], device=ids_bt.device).expand(ids_bt.shape)
    if past is None:
        return fresh_bt
    if past.positions is None:
        raise UserError(
            "positions_bt=None: the cache does not say its positions; pass positions_bt or rope_cbtd"
        )
    return past.positions.amax(dim=1, keepdim=True) + 1 + fresh_bt


def _row_positions(past: Caches | None, positions_bt: Tensor | None) -> Tensor | None:
    """Positions `[B, S]` of cached and new rows, where both are known."""
    if past is None or positions_bt is None:
        return positions_bt
    return None if past.positions is None else torch.cat((past.positions, positions_bt), dim=1)
