"""What the op behind each tap is, with its inputs, numbers and weights; one row per tap."""

from __future__ import annotations

from collections.abc import Iterator

from parity.harness.case import Role

from .config import KLMConfig

LAYER_NORM_EPS = 1e-5


def roles(config: KLMConfig) -> tuple[Role, ...]:
    """Rows in execution order, `taps` being one canonical tap each.

    `add` sums its inputs; `layernorm` normalizes the sum of its inputs; `rotated_projection` is a linear
    layer, split into heads and rotated by halves with the rows of its second input; `projection` the same
    without rotation; `cache` is its input appended to earlier rows; `gated_silu` is
    `silu(w0 x + b0) * (w1 x + b1)`.
    """
    layers = (role for i in range(config.num_layers) for role in _layer(config, i))
    last = f"layer{config.num_layers - 1}"
    norm = {"eps": LAYER_NORM_EPS}
    return (
        Role("embed", "embedding", ("ids",), weights=("embedding.word_embeddings.weight",)),
        Role("rope", "rope_table", ("positions",), weights=_tables()),
        *layers,
        Role("final", "layernorm", (f"{last}.mid", f"{last}.mlp"), norm, _affine("final_ln")),
        Role("logits", "linear", ("final",), weights=("lm_head.lm_head.weight",)),
    )


def _tables() -> tuple[str, ...]:
    return ("body.rotary_embedding.cos_cached", "body.rotary_embedding.sin_cached")


def _affine(path: str) -> tuple[str, ...]:
    return (f"{path}.weight", f"{path}.bias")


def _layer(config: KLMConfig, i: int) -> Iterator[Role]:
    at, block = f"layer{i}.", f"body.blocks.{i}."
    heads = {"num_heads": config.num_attention_heads, "head_dim": config.head_dim}
    kv_heads = {"num_heads": config.num_kv_heads, "head_dim": config.head_dim}
    norm = {"eps": LAYER_NORM_EPS}
    attention = heads | {"num_kv_heads": config.num_kv_heads, "scale": config.head_dim**-0.5}
    if i == 0:
        yield Role(at + "residual", "copy", ("embed",))
    else:
        yield Role(at + "residual", "add", (f"layer{i - 1}.mid", f"layer{i - 1}.mlp"))
    projected = (at + "norm1",)
    yield Role(at + "norm1", "layernorm", (at + "residual",), norm, _affine(block + "ln1"))
    yield Role(
        at + "q", "rotated_projection", (*projected, "rope"), heads, _affine(block + "attention.q_proj")
    )
    yield Role(
        at + "k", "rotated_projection", (*projected, "rope"), kv_heads, _affine(block + "attention.k_proj")
    )
    yield Role(at + "v", "projection", projected, kv_heads, _affine(block + "attention.v_proj"))
    yield Role(at + "ks", "cache", (at + "k",), kv_heads)
    yield Role(at + "vs", "cache", (at + "v",), kv_heads)
    yield Role(at + "attn", "attention", (at + "q", at + "ks", at + "vs"), attention)
    yield Role(at + "o", "linear", (at + "attn",), weights=_affine(block + "attention.out_proj"))
    yield Role(at + "mid", "add", (at + "residual", at + "o"))
    yield Role(at + "norm2", "layernorm", (at + "mid",), norm, _affine(block + "ln2"))
    gated = _affine(block + "mlp.up_proj") + _affine(block + "mlp.gate_proj")
    yield Role(at + "act", "gated_silu", (at + "norm2",), weights=gated)
    yield Role(at + "mlp", "linear", (at + "act",), weights=_affine(block + "mlp.down_proj"))
