"""MiniKL whole, in plain PyTorch: pre-norm blocks, rotary pairs, shared key/value heads, no last norm.

Shape suffixes: b sequence, t new token, s key row (cached rows, then the new ones), h query head, g key/value
head, d channel (of the hidden state or of one head), f channel of the feed-forward part, v vocabulary, c
cos/sin plane. In a nested pass hidden states are jagged, and b = 1, t = all tokens wherever rows are packed.

Module names give the state_dict keys of the original's checkpoints. Kept, because checkpoints depend on them:
positions turn neighbouring channels by *minus* the angle; nothing is normalized before the logits; FFN has no
activation; the norms' eps is None, which is that of the number format. Footgun: for half formats torch's CPU
kernel takes float32's, its documentation says that of the half format (9.8e-4 in fp16, 7.8e-3 in bf16). Not
kept: the original overwrites the keys by queries turned twice, so that w_k is dead and g below num_heads
cannot run.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from parity.harness.errors import UserError
from parity.harness.tracer import executing

from ..growing import Caches, Rows, attend, continue_positions, grown, row_positions
from .config import MiniKLConfig
from .jagged import Ragged, packed, tap


class Around(NamedTuple):
    """What every layer is told besides its input: rotary rows, who sees whom, positions of the key rows."""

    rope_cbtd: Tensor
    mask_bts: Tensor | None
    positions_bs: Tensor
    ragged: Ragged | None


class RoPE(nn.Module):
    """The tables of cosines and sines: `[max_seq_len, D]` each, each angle repeated for its pair."""

    rope_sin: Tensor
    rope_cos: Tensor

    def __init__(self, config: MiniKLConfig) -> None:
        super().__init__()
        pair = torch.arange(config.head_dim // 2)
        frequency = torch.exp(-2 * pair / config.head_dim * math.log(config.theta))
        angle = torch.arange(config.max_seq_len)[:, None] * frequency
        self.register_buffer("rope_sin", angle.sin().repeat_interleave(2, dim=-1))
        self.register_buffer("rope_cos", angle.cos().repeat_interleave(2, dim=-1))

    def forward(self, positions_bt: Tensor) -> Tensor:
        """Rows `[2, B, T, D]`: cos and sin of minus the angle; padding (-1) reads row 0."""
        row_bt = positions_bt.clamp(min=0)
        return torch.stack((self.rope_cos[row_bt], -self.rope_sin[row_bt]))


def rotate(x_bhtd: Tensor, rope_cbtd: Tensor) -> Tensor:
    """Rotary position by pairs of neighbours: `x * cos + (-odd, even) * sin`."""
    cos_bhtd, sin_bhtd = rope_cbtd[0][:, None], rope_cbtd[1][:, None]
    even, odd = x_bhtd[..., ::2], x_bhtd[..., 1::2]
    return x_bhtd * cos_bhtd + torch.stack((-odd, even), dim=-1).flatten(-2) * sin_bhtd


class Attention(nn.Module):
    """Attention with g key/value heads; appends the new rows to the cache that it is given."""

    def __init__(self, config: MiniKLConfig, rope: RoPE) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rope = rope
        self.w_q = nn.Linear(config.d_model, config.d_model)
        self.w_k = nn.Linear(config.d_model, config.g * config.head_dim)
        self.w_v = nn.Linear(config.d_model, config.g * config.head_dim)
        self.w_o = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_btd: Tensor, around: Around, past: Rows | None) -> tuple[Tensor, Rows]:
        ragged = around.ragged
        q_bhtd, k_bgtd, v_bgtd = self._project(packed(x_btd), around)
        rows = ks_bgsd, vs_bgsd = grown(past, k_bgtd, v_bgtd)
        tap("ks", ks_bgsd, "b h p d", ragged, around.positions_bs)
        tap("vs", vs_bgsd, "b h p d", ragged, around.positions_bs)
        if ragged is None:
            attn_bhtd = attend(q_bhtd, ks_bgsd, vs_bgsd, around.mask_bts)
        else:
            attn_bhtd = ragged.attend(q_bhtd, ks_bgsd, vs_bgsd)
        attn_bthd = attn_bhtd.transpose(1, 2)
        tap("attn", attn_bthd, "b t h d", ragged)
        o_btd = self.w_o(attn_bthd.flatten(2))
        tap("o", o_btd, "b t d", ragged)
        return (o_btd if ragged is None else ragged.jagged(o_btd[0])), rows

    def _project(self, x_btd: Tensor, around: Around) -> tuple[Tensor, Tensor, Tensor]:
        q_bhtd = rotate(self._heads(self.w_q(x_btd)), around.rope_cbtd)
        k_bgtd = rotate(self._heads(self.w_k(x_btd)), around.rope_cbtd)
        v_bgtd = self._heads(self.w_v(x_btd))
        tap("q", q_bhtd, "b h t d", around.ragged)
        tap("k", k_bgtd, "b h t d", around.ragged)
        tap("v", v_bgtd, "b h t d", around.ragged)
        return q_bhtd, k_bgtd, v_bgtd

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.view(*x_btd.shape[:2], -1, self.head_dim).transpose(1, 2)


class GLU(nn.Module):
    """`down(a x * silu(b x))`."""

    def __init__(self, config: MiniKLConfig) -> None:
        super().__init__()
        self.w_up_a = nn.Linear(config.d_model, config.inner_size)
        self.w_up_b = nn.Linear(config.d_model, config.inner_size)
        self.w_down = nn.Linear(config.inner_size, config.d_model)

    def forward(self, x_btd: Tensor, ragged: Ragged | None) -> Tensor:
        b_btf = self.w_up_b(x_btd)
        act_btf = self.w_up_a(x_btd) * (torch.sigmoid(b_btf) * b_btf)
        tap("act", act_btf, "b t f", ragged)
        return cast(Tensor, self.w_down(act_btf))


class FFN(nn.Module):
    """`down(up x)`."""

    def __init__(self, config: MiniKLConfig) -> None:
        super().__init__()
        self.w_up = nn.Linear(config.d_model, config.inner_size)
        self.w_down = nn.Linear(config.inner_size, config.d_model)

    def forward(self, x_btd: Tensor, ragged: Ragged | None) -> Tensor:
        act_btf = self.w_up(x_btd)
        tap("act", act_btf, "b t f", ragged)
        return cast(Tensor, self.w_down(act_btf))


class Block(nn.Module):
    """One pre-norm layer: `mid = x + attention(norm1 x)`, then `mid + ffn(norm2 mid)`."""

    def __init__(self, config: MiniKLConfig, rope: RoPE) -> None:
        super().__init__()
        self.attention = Attention(config, rope)
        self.ffn = GLU(config) if config.ffn == "GLU" else FFN(config)
        self.norm1 = nn.RMSNorm(config.d_model)
        self.norm2 = nn.RMSNorm(config.d_model)

    def forward(self, x_btd: Tensor, around: Around, past: Rows | None) -> tuple[Tensor, Rows]:
        tap("residual", x_btd, "b t d", around.ragged)
        norm1_btd = self.norm1(x_btd)
        tap("norm1", norm1_btd, "b t d", around.ragged)
        o_btd, rows = self.attention(norm1_btd, around, past)
        mid_btd = x_btd + o_btd
        tap("mid", mid_btd, "b t d", around.ragged)
        norm2_btd = self.norm2(mid_btd)
        tap("norm2", norm2_btd, "b t d", around.ragged)
        mlp_btd = self.ffn(norm2_btd, around.ragged)
        tap("mlp", mlp_btd, "b t d", around.ragged)
        return mid_btd + mlp_btd, rows


class MiniKL(nn.Module):
    """Token ids -> logits and grown caches. All layers share one table, saved under each layer's name."""

    def __init__(self, config: MiniKLConfig) -> None:
        super().__init__()
        self.config = config
        rope = RoPE(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, rope) for _ in range(config.num_layers))
        self.fc = nn.Linear(config.d_model, config.vocab_size)

    def rope(self, positions_bt: Tensor) -> Tensor:
        """Rotary rows `[2, B, T, D]` of the module's own table."""
        first = cast(Block, self.layers[0])
        return cast(Tensor, first.attention.rope(positions_bt))

    def forward(
        self,
        ids_bt: Tensor,
        *,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
        past: Caches | None = None,
    ) -> tuple[Tensor, Caches]:
        """Logits `[B, T, V]` and the caches with the new rows appended.

        `positions_bt` are absolute positions (-1 at padding), by default those after the newest cached row.
        `mask_bts` is bool, True where a query may see a key row (cached rows first); every row needs one
        True, padding rows too. Without it attention is causal.

        Jagged `ids_bt` `[B, j]` (with `is_nested`) give jagged logits `[B, j, V]` and jagged caches
        `[B, G, j, D]` whose positions are padded; such a pass starts at position 0 and takes nothing else.
        """
        if ids_bt.is_nested:
            return self._nested(ids_bt, plain=positions_bt is None and mask_bts is None and past is None)
        if positions_bt is None:
            positions_bt = continue_positions(ids_bt, past)
        around = Around(self.rope(positions_bt), mask_bts, row_positions(past, positions_bt), None)
        return self._layers(ids_bt, around, past)

    def _nested(self, ids_bj: Tensor, *, plain: bool) -> tuple[Tensor, Caches]:
        if not self.config.is_nested:
            raise UserError("is_nested=False: this model takes padded batches only; set is_nested=True")
        if not plain:
            raise UserError("ids: a nested batch starts at position 0, without a mask and without a cache")
        ragged = Ragged.of(ids_bj)
        around = Around(self.rope(ragged.positions), None, ragged.padded_positions, ragged)
        logits_bjv, caches = self._layers(ids_bj, around, None)
        ks, vs = (
            tuple(ragged.jagged(x_1gnd[0].transpose(0, 1)).transpose(1, 2) for x_1gnd in rows)
            for rows in (caches.ks, caches.vs)
        )
        return logits_bjv, Caches(ks, vs, around.positions_bs)

    def _layers(self, ids_bt: Tensor, around: Around, past: Caches | None) -> tuple[Tensor, Caches]:
        x_btd, rows = self.embeddings(ids_bt), []
        tap("embed", x_btd, "b t d", around.ragged)
        tap("rope", around.rope_cbtd, "c b t d", around.ragged)
        for i, block in enumerate(self.layers):
            with executing(f"layer{i}"):
                x_btd, grown_rows = block(x_btd, around, None if past is None else past.layer(i))
            rows.append(grown_rows)
        tap("final", x_btd, "b t d", around.ragged)
        logits_btv = self.fc(x_btd)
        tap("logits", logits_btv, "b t v", around.ragged)
        ks, vs = zip(*rows, strict=True)
        return logits_btv, Caches(ks, vs, around.positions_bs)
