"""What the op behind each tap is, with its inputs, numbers and weights; one row per tap."""

from __future__ import annotations

from collections.abc import Iterator

from parity.harness.case import Role

from .config import MiniKLConfig

FLOAT32_EPS = 2.0**-23


def roles(config: MiniKLConfig) -> tuple[Role, ...]:
    """Rows in execution order, `taps` being one canonical tap each.

    Roles as KLM's; `pairs` says that neighbouring channels are turned, and `eps` is float32's.
    """
    layers = (role for i in range(config.num_layers) for role in _layer(config, i))
    last = f"layer{config.num_layers - 1}"
    return (
        Role("embed", "embedding", ("ids",), weights=("embeddings.weight",)),
        Role("rope", "rope_table", ("positions",), {"base": config.theta, "pairs": 1.0, "sign": -1.0}),
        *layers,
        Role("final", "add", (f"{last}.mid", f"{last}.mlp")),
        Role("logits", "linear", ("final",), weights=_affine("fc")),
    )


def taps(config: MiniKLConfig) -> tuple[str, ...]:
    """Canonical tap names in execution order."""
    return tuple(role.taps for role in roles(config))


def _affine(path: str) -> tuple[str, ...]:
    return (f"{path}.weight", f"{path}.bias")


def _layer(config: MiniKLConfig, i: int) -> Iterator[Role]:
    at, block = f"layer{i}.", f"layers.{i}."
    heads = {"num_heads": config.num_heads, "head_dim": config.head_dim}
    kv_heads = {"num_heads": config.g, "head_dim": config.head_dim}
    attention = heads | {"num_kv_heads": config.g, "scale": config.head_dim**-0.5}
    norm, rotated, pairs = {"eps": FLOAT32_EPS}, (at + "norm1", "rope"), {"pairs": 1.0}
    if i == 0:
        yield Role(at + "residual", "copy", ("embed",))
    else:
        yield Role(at + "residual", "add", (f"layer{i - 1}.mid", f"layer{i - 1}.mlp"))
    yield Role(at + "norm1", "rmsnorm", (at + "residual",), norm, (block + "norm1.weight",))
    yield Role(at + "q", "rotated_projection", rotated, heads | pairs, _affine(block + "attention.w_q"))
    yield Role(at + "k", "rotated_projection", rotated, kv_heads | pairs, _affine(block + "attention.w_k"))
    yield Role(at + "v", "projection", (at + "norm1",), kv_heads, _affine(block + "attention.w_v"))
    yield Role(at + "ks", "cache", (at + "k",), kv_heads)
    yield Role(at + "vs", "cache", (at + "v",), kv_heads)
    yield Role(at + "attn", "attention", (at + "q", at + "ks", at + "vs"), attention)
    yield Role(at + "o", "linear", (at + "attn",), weights=_affine(block + "attention.w_o"))
    yield Role(at + "mid", "add", (at + "residual", at + "o"))
    yield Role(at + "norm2", "rmsnorm", (at + "mid",), norm, (block + "norm2.weight",))
    if config.ffn == "GLU":
        gated = _affine(block + "ffn.w_up_b") + _affine(block + "ffn.w_up_a")
        yield Role(at + "act", "gated_silu", (at + "norm2",), weights=gated)
    else:
        yield Role(at + "act", "linear", (at + "norm2",), weights=_affine(block + "ffn.w_up"))
    yield Role(at + "mlp", "linear", (at + "act",), weights=_affine(block + "ffn.w_down"))
