"""What the op behind each tap is, with its inputs, numbers and weights; one row per tap."""

from __future__ import annotations

from collections.abc import Iterator

from parity.harness.case import Role

from .config import GPTBigCodeConfig

GELUS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def roles(config: GPTBigCodeConfig) -> tuple[Role, ...]:
    """Rows in execution order, `taps` being one canonical tap each.

    Roles as KLM's; `slice` takes `count` channels from `first` of its input and splits them into heads.
    """
    layers = (role for i in range(config.n_layer) for role in _layer(config, i))
    last, norm = f"layer{config.n_layer - 1}", {"eps": config.layer_norm_epsilon}
    head = "transformer.wte.weight" if config.tie_word_embeddings else "lm_head.weight"
    return (
        Role("word", "embedding", ("ids",), weights=("transformer.wte.weight",)),
        Role("pos", "embedding", ("positions",), weights=("transformer.wpe.weight",)),
        Role("embed", "add", ("word", "pos")),
        *layers,
        Role("final", "layernorm", (f"{last}.mid", f"{last}.mlp"), norm, _affine("transformer.ln_f")),
        Role("logits", "linear", ("final",), weights=(head,)),
    )


def taps(config: GPTBigCodeConfig) -> tuple[str, ...]:
    """Canonical tap names in execution order."""
    return tuple(role.taps for role in roles(config))


def _affine(path: str) -> tuple[str, ...]:
    return (f"{path}.weight", f"{path}.bias")


def _layer(config: GPTBigCodeConfig, i: int) -> Iterator[Role]:
    at, block = f"layer{i}.", f"transformer.h.{i}."
    norm, width = {"eps": config.layer_norm_epsilon}, config.head_dim
    parts = {"q": (0, config.n_head), "k": (config.n_embd, 1), "v": (config.n_embd + width, 1)}
    if i == 0:
        yield Role(at + "residual", "copy", ("embed",))
    else:
        yield Role(at + "residual", "add", (f"layer{i - 1}.mid", f"layer{i - 1}.mlp"))
    yield Role(at + "norm1", "layernorm", (at + "residual",), norm, _affine(block + "ln_1"))
    yield Role(at + "qkv", "linear", (at + "norm1",), weights=_affine(block + "attn.c_attn"))
    for name, (first, heads) in parts.items():
        where = {"first": first, "count": heads * width, "num_heads": heads, "head_dim": width}
        yield Role(at + name, "slice", (at + "qkv",), where)
    yield Role(at + "ks", "cache", (at + "k",), {"num_heads": 1, "head_dim": width})
    yield Role(at + "vs", "cache", (at + "v",), {"num_heads": 1, "head_dim": width})
    attention = {"num_heads": config.n_head, "head_dim": width, "num_kv_heads": 1, "scale": width**-0.5}
    yield Role(at + "attn", "attention", (at + "q", at + "ks", at + "vs"), attention)
    yield Role(at + "o", "linear", (at + "attn",), weights=_affine(block + "attn.c_proj"))
    yield Role(at + "mid", "add", (at + "residual", at + "o"))
    yield Role(at + "norm2", "layernorm", (at + "mid",), norm, _affine(block + "ln_2"))
    yield Role(at + "up", "linear", (at + "norm2",), weights=_affine(block + "mlp.c_fc"))
    yield Role(at + "act", GELUS[config.activation_function], (at + "up",))
    yield Role(at + "mlp", "linear", (at + "act",), weights=_affine(block + "mlp.c_proj"))
