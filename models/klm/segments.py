"""KLM cut for a device: a head, one segment between two neighbouring layers, a tail.

A segment begins with the attention of layer i and ends with the queries, keys and values of layer i + 1,
so that the cache stays outside the graphs: keys and values are appended to it between two segments.
Rotary rows come in as data, the table stays on the host. Shape suffixes as in `module`; keys and values
come in as w rows, of which the last t are the new tokens'.

Nothing is shared with `module`: a mistake in code that both sides run would pass every comparison. Key/value
heads are not repeated but queries grouped, because a CV181x compiler takes the repeat and computes garbage.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from parity.harness.errors import UserError
from parity.harness.tracer import executing, trace_tensor

from .config import KLMConfig

Handover = tuple[Tensor, Tensor, Tensor, Tensor]
"""What a layer is handed: residual `[B, T, D]`, q `[B, H, T, D]`, new k and v `[B, G, T, D]`."""


class LayerHead(nn.Module):
    """From the residual to rotated queries and keys, and values, of one layer."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.ln1 = nn.LayerNorm(config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_size)
        self.v_proj = nn.Linear(config.hidden_size, kv_size)

    def forward(self, residual: Tensor, rotary_pos_emb: Tensor) -> Handover:
        trace_tensor("residual", residual, axes="b t d")
        norm1 = self.ln1(residual)
        trace_tensor("norm1", norm1, axes="b t d")
        q = self._rotated(self._heads(self.q_proj(norm1)), rotary_pos_emb)
        k = self._rotated(self._heads(self.k_proj(norm1)), rotary_pos_emb)
        v = self._heads(self.v_proj(norm1))
        for name, rows in (("q", q), ("k", k), ("v", v)):
            trace_tensor(name, rows, axes="b h t d")
        return residual, q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        batch, num_new, width = x.shape
        return x.reshape(batch, num_new, width // self.head_dim, self.head_dim).permute(0, 2, 1, 3)

    def _rotated(self, x: Tensor, rotary_pos_emb: Tensor) -> Tensor:
        half = self.head_dim // 2
        cos, sin = rotary_pos_emb[0].unsqueeze(1), rotary_pos_emb[1].unsqueeze(1)
        left, right = x[..., :half], x[..., half:]
        return torch.cat(
            (
                left * cos[..., :half] - right * sin[..., :half],
                right * cos[..., half:] + left * sin[..., half:],
            ),
            dim=-1,
        )


class GatedMLP(nn.Module):
    """The activation sits on `up_proj`."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        act = up * torch.sigmoid(up) * self.gate_proj(x)
        trace_tensor("act", act, axes="b t f")
        mlp = cast(Tensor, self.down_proj(act))
        trace_tensor("mlp", mlp, axes="b t d")
        return mlp


class LayerBottom(nn.Module):
    """From queries and cache rows to the output of one layer."""

    def __init__(self, config: KLMConfig, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.num_kv_heads = config.num_kv_heads
        self.scale = config.head_dim**-0.5
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlp = GatedMLP(config)
        self.ln2 = nn.LayerNorm(config.hidden_size)

    def forward(self, residual: Tensor, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        attn = self._attention(q, ks, vs, mask).permute(0, 2, 1, 3)
        trace_tensor("attn", attn, axes="b t h d")
        o = self.out_proj(attn.reshape(residual.shape))
        trace_tensor("o", o, axes="b t d")
        mid = o + residual
        trace_tensor("mid", mid, axes="b t d")
        norm2 = self.ln2(mid)
        trace_tensor("norm2", norm2, axes="b t d")
        return cast(Tensor, self.mlp(norm2) + mid)

    def _attention(self, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, H, T, D]`: the query heads of a group are stacked against the cache head that they share."""
        batch, num_heads, num_new, head_dim = q.shape
        rows = num_heads // self.num_kv_heads * num_new
        grouped = q.reshape(batch, self.num_kv_heads, rows, head_dim)
        scores = (grouped @ ks.transpose(2, 3) * self.scale).reshape(batch, num_heads, num_new, ks.shape[2])
        weights = torch.softmax(self._hide(scores, mask), dim=-1)
        mixed = weights.reshape(batch, self.num_kv_heads, rows, ks.shape[2]) @ vs
        return mixed.reshape(batch, num_heads, num_new, head_dim)

    def _hide(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Add the mask; a segment built without one hides only what new rows would see of their future."""
        if (mask is not None) != self.masked:
            raise UserError(
                f"mask: segment built with masked={self.masked}; build it the other way or change the call"
            )
        if mask is not None:
            return scores + mask
        num_new, num_rows = scores.shape[2:]
        if num_new == 1:
            return scores
        row = torch.arange(num_rows, device=scores.device)
        newest = torch.arange(num_new, device=scores.device) + (num_rows - num_new)
        return scores.masked_fill(row > newest[:, None], float("-inf"))


class HeadSegment(nn.Module):
    """`seg_head`: ids `[B, T]`, rotary rows -> residual, q, k, v of layer 0."""

    def __init__(self, config: KLMConfig) -> None:
        super().__init__()
        self.embedding = nn.ModuleDict(
            {"word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size)}
        )
        self.layer_head = LayerHead(config)

    def forward(self, input_ids: Tensor, rotary_pos_emb: Tensor) -> Handover:
        embed = self.embedding["word_embeddings"](input_ids)
        trace_tensor("embed", embed, axes="b t d")
        with executing("layer0"):
            return cast(Handover, self.layer_head(embed, rotary_pos_emb))


class MiddleSegment(nn.Module):
    """`seg_i`: bottom of layer i, then head of layer i + 1.

    `ks`, `vs` are `[B, G, W, D]`; `mask` is added to the scores, `[B, 1, T, W]` float.
    """

    def __init__(self, config: KLMConfig, layer: int, *, masked: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.layer_bottom = LayerBottom(config, masked=masked)
        self.layer_head = LayerHead(config)

    def forward(
        self,
        residual: Tensor,
        rotary_pos_emb: Tensor,
        q: Tensor,
        ks: Tensor,
        vs: Tensor,
        mask: Tensor | None = None,
    ) -> Handover:
        with executing(f"layer{self.layer}"):
            hidden = self.layer_bottom(residual, q, ks, vs, mask)
        with executing(f"layer{self.layer + 1}"):
            return cast(Handover, self.layer_head(hidden, rotary_pos_emb))


class TailSegment(nn.Module):
    """`seg_tail`: bottom of the last layer, last norm, logits `[B, T, V]`."""

    def __init__(self, config: KLMConfig, *, masked: bool = False) -> None:
        super().__init__()
        self.layer = config.num_layers - 1
        self.layer_bottom = LayerBottom(config, masked=masked)
        self.final_ln = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, residual: Tensor, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        with executing(f"layer{self.layer}"):
            hidden = self.layer_bottom(residual, q, ks, vs, mask)
        final = self.final_ln(hidden)
        trace_tensor("final", final, axes="b t d")
        logits = cast(Tensor, self.lm_head(final))
        trace_tensor("logits", logits, axes="b t v")
        return logits


def build_segments(config: KLMConfig, *, masked: bool = False) -> dict[str, nn.Module]:
    """Segment modules by name, in execution order."""
    middle = {f"seg_{i}": MiddleSegment(config, i, masked=masked) for i in range(config.num_layers - 1)}
    return {"seg_head": HeadSegment(config), **middle, "seg_tail": TailSegment(config, masked=masked)}
