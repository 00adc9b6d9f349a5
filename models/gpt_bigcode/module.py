"""GPT-BigCode whole, in plain PyTorch: pre-norm blocks, learned positions, one key/value head.

Shape suffixes: b sequence, t new token, s key row (cached rows, then the new ones), h query head, g key/value
head (one), d channel (of the hidden state or of one head), f channel of the MLP, v vocabulary, c channel of
the fused projection (all queries, then the key, then the value).

Module names give the state_dict keys of Hugging Face checkpoints. Positions enter once, at the bottom:
nothing in a block depends on them but the mask.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness.tracer import executing, trace_tensor

from ..growing import Caches, Rows, attend, continue_positions, grown, row_positions
from .config import GPTBigCodeConfig


class Attention(nn.Module):
    """Multi-query attention; appends the new rows to the cache that it is given."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.sizes = (config.n_embd, config.head_dim, config.head_dim)
        self.c_attn = nn.Linear(config.n_embd, sum(self.sizes))
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x_btd: Tensor, mask_bts: Tensor | None, past: Rows | None, positions_bs: Tensor
    ) -> tuple[Tensor, Rows]:
        q_bhtd, k_bgtd, v_bgtd = self._project(x_btd)
        rows = ks_bgsd, vs_bgsd = grown(past, k_bgtd, v_bgtd)
        trace_tensor("ks", ks_bgsd, axes="b h p d", positions=positions_bs)
        trace_tensor("vs", vs_bgsd, axes="b h p d", positions=positions_bs)
        attn_bthd = attend(q_bhtd, ks_bgsd, vs_bgsd, mask_bts).transpose(1, 2)
        trace_tensor("attn", attn_bthd, axes="b t h d")
        o_btd = self.c_proj(attn_bthd.flatten(2))
        trace_tensor("o", o_btd, axes="b t d")
        return o_btd, rows

    def _project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_btc = self.c_attn(x_btd)
        trace_tensor("qkv", qkv_btc, axes="b t c")
        q_bhtd, k_bgtd, v_bgtd = (self._heads(part) for part in qkv_btc.split(self.sizes, dim=-1))
        trace_tensor("q", q_bhtd, axes="b h t d")
        trace_tensor("k", k_bgtd, axes="b h t d")
        trace_tensor("v", v_bgtd, axes="b h t d")
        return q_bhtd, k_bgtd, v_bgtd

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.view(*x_btd.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """`proj(gelu(fc x))`."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation_function == "gelu_pytorch_tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, config.inner_size)
        self.c_proj = nn.Linear(config.inner_size, config.n_embd)

    def forward(self, x_btd: Tensor) -> Tensor:
        up_btf = self.c_fc(x_btd)
        trace_tensor("up", up_btf, axes="b t f")
        act_btf = F.gelu(up_btf, approximate=self.approximate)
        trace_tensor("act", act_btf, axes="b t f")
        y_btd = cast(Tensor, self.c_proj(act_btf))
        trace_tensor("mlp", y_btd, axes="b t d")
        return y_btd


class Block(nn.Module):
    """One pre-norm layer: `mid = x + attention(ln_1 x)`, then `mid + mlp(ln_2 mid)`."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x_btd: Tensor, mask_bts: Tensor | None, past: Rows | None, positions_bs: Tensor
    ) -> tuple[Tensor, Rows]:
        trace_tensor("residual", x_btd, axes="b t d")
        norm1_btd = self.ln_1(x_btd)
        trace_tensor("norm1", norm1_btd, axes="b t d")
        o_btd, rows = self.attn(norm1_btd, mask_bts, past, positions_bs)
        mid_btd = x_btd + o_btd
        trace_tensor("mid", mid_btd, axes="b t d")
        norm2_btd = self.ln_2(mid_btd)
        trace_tensor("norm2", norm2_btd, axes="b t d")
        return mid_btd + self.mlp(norm2_btd), rows


class Transformer(nn.Module):
    """The two tables, the layers, the last norm."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self, ids_bt: Tensor, positions_bt: Tensor, mask_bts: Tensor | None, past: Caches | None
    ) -> tuple[Tensor, Caches]:
        x_btd, rows = self.embed(ids_bt, positions_bt), []
        positions_bs = row_positions(past, positions_bt)
        for i, block in enumerate(self.h):
            with executing(f"layer{i}"):
                layer = None if past is None else past.layer(i)
                x_btd, grown_rows = block(x_btd, mask_bts, layer, positions_bs)
            rows.append(grown_rows)
        final_btd = self.ln_f(x_btd)
        trace_tensor("final", final_btd, axes="b t d")
        ks, vs = zip(*rows, strict=True)
        return final_btd, Caches(ks, vs, positions_bs)

    def embed(self, ids_bt: Tensor, positions_bt: Tensor) -> Tensor:
        """Row of the word plus row of the position; padding (-1) reads position 0."""
        word_btd, pos_btd = self.wte(ids_bt), self.wpe(positions_bt.clamp(min=0))
        trace_tensor("word", word_btd, axes="b t d")
        trace_tensor("pos", pos_btd, axes="b t d")
        x_btd = word_btd + pos_btd
        trace_tensor("embed", x_btd, axes="b t d")
        return cast(Tensor, x_btd)


class GPTBigCode(nn.Module):
    """Token ids -> logits and grown caches."""

    def __init__(self, config: GPTBigCodeConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self,
        ids_bt: Tensor,
        *,
        positions_bt: Tensor | None = None,
        mask_bts: Tensor | None = None,
        past: Caches | None = None,
    ) -> tuple[Tensor, Caches]:
        """Logits `[B, T, V]` and the caches with the new rows appended.

        `positions_bt` are absolute positions (-1 at padding), by default those after the newest cached row;
        the table of positions ends at `n_positions`. `mask_bts` is bool, True where a query may see a key
        row (cached rows first); every row needs one True, padding rows too. Without it attention is causal.
        """
        if positions_bt is None:
            positions_bt = continue_positions(ids_bt, past)
        final_btd, caches = self.transformer(ids_bt, positions_bt, mask_bts, past)
        logits_btv = self.lm_head(final_btd)
        trace_tensor("logits", logits_btv, axes="b t v")
        return logits_btv, caches
