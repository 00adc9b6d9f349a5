"""LLaMA whole, in plain PyTorch: pre-norm blocks, half-split rotary positions, grouped key/value heads.

Shape suffixes: b sequence, t new token, s key row (cached rows, then the new ones), h query head, g key/value
head, d channel (of the hidden state or of one head), f channel of the MLP, v vocabulary, c cos/sin plane.

Module names give the state_dict keys of Hugging Face checkpoints. Rotary rows are no weights: they are
computed in float32 whatever the module's type is and then cast, so a module in bf16 has rounded rows but
right angles. Norms compute in float32 at least and cast back before the weight.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness.tracer import executing, trace_tensor

from ..growing import Caches, Rows, attend, continue_positions, grown, row_positions
from .config import LlamaConfig


def frequencies(config: LlamaConfig, device: torch.device | None = None) -> Tensor:
    """Angle per position of each pair of channels, `[head_dim / 2]` float32."""
    channel_d = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / config.rope_theta ** (channel_d / config.head_dim)


def rotary_rows(config: LlamaConfig, positions_bt: Tensor) -> Tensor:
    """Rows `[2, B, T, D]` float32 (0 = cos, 1 = sin), angles repeated for both halves; -1 reads row 0."""
    angle_btd = positions_bt.clamp(min=0)[..., None].float() * frequencies(config, positions_bt.device)
    return torch.stack((angle_btd.cos(), angle_btd.sin())).repeat(1, 1, 1, 2)


def rotate(x_bhtd: Tensor, rope_cbtd: Tensor) -> Tensor:
    """Rotary position by halves: `x * cos + (-second half, first half) * sin`."""
    cos_bhtd, sin_bhtd = rope_cbtd[0][:, None], rope_cbtd[1][:, None]
    first, second = x_bhtd.chunk(2, dim=-1)
    return x_bhtd * cos_bhtd + torch.cat((-second, first), dim=-1) * sin_bhtd


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x_btd: Tensor) -> Tensor:
        wide_btd = x_btd.to(torch.promote_types(x_btd.dtype, torch.float32))
        scale_bt1 = torch.rsqrt(wide_btd.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (wide_btd * scale_bt1).to(x_btd.dtype)


class Attention(nn.Module):
    """Grouped-query attention; appends the new rows to the cache that it is given."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)

    def forward(
        self,
        x_btd: Tensor,
        rope_cbtd: Tensor,
        mask_bts: Tensor | None,
        past: Rows | None,
        positions_bs: Tensor,
    ) -> tuple[Tensor, Rows]:
        q_bhtd, k_bgtd, v_bgtd = self._project(x_btd, rope_cbtd)
        rows = ks_bgsd, vs_bgsd = grown(past, k_bgtd, v_bgtd)
        trace_tensor("ks", ks_bgsd, axes="b h p d", positions=positions_bs)
        trace_tensor("vs", vs_bgsd, axes="b h p d", positions=positions_bs)
        attn_bthd = attend(q_bhtd, ks_bgsd, vs_bgsd, mask_bts).transpose(1, 2)
        trace_tensor("attn", attn_bthd, axes="b t h d")
        o_btd = self.o_proj(attn_bthd.flatten(2))
        trace_tensor("o", o_btd, axes="b t d")
        return o_btd, rows

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
    """`down(silu(gate x) * up x)`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        act_btf = F.silu(self.gate_proj(x_btd)) * self.up_proj(x_btd)
        trace_tensor("act", act_btf, axes="b t f")
        y_btd = cast(Tensor, self.down_proj(act_btf))
        trace_tensor("mlp", y_btd, axes="b t d")
        return y_btd


class Block(nn.Module):
    """One pre-norm layer: `mid = x + attention(norm x)`, then `mid + mlp(norm mid)`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x_btd: Tensor,
        rope_cbtd: Tensor,
        mask_bts: Tensor | None,
        past: Rows | None,
        positions_bs: Tensor,
    ) -> tuple[Tensor, Rows]:
        trace_tensor("residual", x_btd, axes="b t d")
        norm1_btd = self.input_layernorm(x_btd)
        trace_tensor("norm1", norm1_btd, axes="b t d")
        o_btd, rows = self.self_attn(norm1_btd, rope_cbtd, mask_bts, past, positions_bs)
        mid_btd = x_btd + o_btd
        trace_tensor("mid", mid_btd, axes="b t d")
        norm2_btd = self.post_attention_layernorm(mid_btd)
        trace_tensor("norm2", norm2_btd, axes="b t d")
        return mid_btd + self.mlp(norm2_btd), rows


class Body(nn.Module):
    """The table of words, the layers, the last norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    def forward(
        self, ids_bt: Tensor, positions_bt: Tensor, mask_bts: Tensor | None, past: Caches | None
    ) -> tuple[Tensor, Caches]:
        x_btd, rows = self.embed_tokens(ids_bt), []
        rope_cbtd = rotary_rows(self.config, positions_bt).to(x_btd.dtype)
        trace_tensor("embed", x_btd, axes="b t d")
        trace_tensor("rope", rope_cbtd, axes="c b t d")
        positions_bs = row_positions(past, positions_bt)
        for i, block in enumerate(self.layers):
            with executing(f"layer{i}"):
                layer = None if past is None else past.layer(i)
                x_btd, grown_rows = block(x_btd, rope_cbtd, mask_bts, layer, positions_bs)
            rows.append(grown_rows)
        final_btd = self.norm(x_btd)
        trace_tensor("final", final_btd, axes="b t d")
        ks, vs = zip(*rows, strict=True)
        return final_btd, Caches(ks, vs, positions_bs)


class Llama(nn.Module):
    """Token ids -> logits and grown caches."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

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
        """
        if positions_bt is None:
            positions_bt = continue_positions(ids_bt, past)
        final_btd, caches = self.model(ids_bt, positions_bt, mask_bts, past)
        logits_btv = self.lm_head(final_btd)
        trace_tensor("logits", logits_btv, axes="b t v")
        return logits_btv, caches
