"""What the op behind each tap is, with its inputs, numbers and weights; one row per tap."""

from __future__ import annotations

from collections.abc import Iterator

from parity.harness.case import Role

from .config import LlamaConfig


def roles(config: LlamaConfig) -> tuple[Role, ...]:
    """Rows in execution order, `taps` being one canonical tap each; roles as KLM's."""
    layers = (role for i in range(config.num_hidden_layers) for role in _layer(config, i))
    last, norm = f"layer{config.num_hidden_layers - 1}", {"eps": config.rms_norm_eps}
    table = "model.embed_tokens.weight"
    return (
        Role("embed", "embedding", ("ids",), weights=(table,)),
        Role("rope", "rope_table", ("positions",), {"base": config.rope_theta}),
        *layers,
        Role("final", "rmsnorm", (f"{last}.mid", f"{last}.mlp"), norm, ("model.norm.weight",)),
        Role(
            "logits",
            "linear",
            ("final",),
            weights=(table if config.tie_word_embeddings else "lm_head.weight",),
        ),
    )


def taps(config: LlamaConfig) -> tuple[str, ...]:
    """Canonical tap names in execution order."""
    return tuple(role.taps for role in roles(config))


def _layer(config: LlamaConfig, i: int) -> Iterator[Role]:
    at, block = f"layer{i}.", f"model.layers.{i}."
    heads = {"num_heads": config.num_attention_heads, "head_dim": config.head_dim}
    kv_heads = {"num_heads": config.num_key_value_heads, "head_dim": config.head_dim}
    attention = heads | {"num_kv_heads": config.num_key_value_heads, "scale": config.head_dim**-0.5}
    norm, rotated = {"eps": config.rms_norm_eps}, (at + "norm1", "rope")
    if i == 0:
        yield Role(at + "residual", "copy", ("embed",))
    else:
        yield Role(at + "residual", "add", (f"layer{i - 1}.mid", f"layer{i - 1}.mlp"))
    yield Role(at + "norm1", "rmsnorm", (at + "residual",), norm, (block + "input_layernorm.weight",))
    yield Role(at + "q", "rotated_projection", rotated, heads, (block + "self_attn.q_proj.weight",))
    yield Role(at + "k", "rotated_projection", rotated, kv_heads, (block + "self_attn.k_proj.weight",))
    yield Role(at + "v", "projection", (at + "norm1",), kv_heads, (block + "self_attn.v_proj.weight",))
    yield Role(at + "ks", "cache", (at + "k",), kv_heads)
    yield Role(at + "vs", "cache", (at + "v",), kv_heads)
    yield Role(at + "attn", "attention", (at + "q", at + "ks", at + "vs"), attention)
    yield Role(at + "o", "linear", (at + "attn",), weights=(block + "self_attn.o_proj.weight",))
    yield Role(at + "mid", "add", (at + "residual", at + "o"))
    yield Role(at + "norm2", "rmsnorm", (at + "mid",), norm, (block + "post_attention_layernorm.weight",))
    gated = (block + "mlp.gate_proj.weight", block + "mlp.up_proj.weight")
    yield Role(at + "act", "gated_silu", (at + "norm2",), weights=gated)
    yield Role(at + "mlp", "linear", (at + "act",), weights=(block + "mlp.down_proj.weight",))
