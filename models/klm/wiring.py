"""Who feeds whom: KLM's taps in execution order, its segments' ports and what is appended to which cache."""

from __future__ import annotations

from dataclasses import replace

from parity.harness.case import CacheRow, Port, Segment, Wiring

from .config import KLMConfig

HEAD_TAPS = ("residual", "norm1", "q", "k", "v", "ks", "vs")
BOTTOM_TAPS = ("attn", "o", "mid", "norm2", "act", "mlp")

MASK = Port("mask", "mask", "b h t p", ("B", 1, "T", "W"))


def taps(config: KLMConfig) -> tuple[str, ...]:
    """Canonical tap names in execution order."""
    layers = (f"layer{i}.{tap}" for i in range(config.num_layers) for tap in HEAD_TAPS + BOTTOM_TAPS)
    return ("embed", "rope", *layers, "final", "logits")


def widths(config: KLMConfig) -> dict[str, int]:
    """Values of each tap per token and sequence; of a cache tap per row."""
    hidden, kv = config.hidden_size, config.num_kv_heads * config.head_dim
    special = {"rope": 2 * config.head_dim, "act": config.ffn_hidden_size, "logits": config.vocab_size}
    special |= dict.fromkeys(("k", "v", "ks", "vs"), kv)
    return {tap: special.get(tap.rpartition(".")[2], hidden) for tap in taps(config)}


def segment_of(config: KLMConfig, layer: int) -> str:
    """The segment that computes the attention of a layer."""
    return "seg_tail" if layer == config.num_layers - 1 else f"seg_{layer}"


def wiring(config: KLMConfig, *, masked: bool = False) -> Wiring:
    """The table; with `masked` every segment that attends takes an additive mask as its last input."""
    last = config.num_layers - 1
    segments = [_head(config), *(_middle(config, i) for i in range(last)), _tail(config)]
    if masked:
        segments = [segments[0], *(replace(s, inputs=(*s.inputs, MASK)) for s in segments[1:])]
    caches = (
        CacheRow(f"layer{i}.{rows}", f"layer{i}.{new}", segment_of(config, i))
        for i in range(config.num_layers)
        for rows, new in (("ks", "k"), ("vs", "v"))
    )
    return Wiring(tuple(segments), tuple(caches))


def _head(config: KLMConfig) -> Segment:
    ids = Port("input_ids", "ids", "b t", ("B", "T"), "int64")
    return Segment("seg_head", (ids, _rope(config)), _handover(config, 0), ("embed", "layer0.norm1"))


def _middle(config: KLMConfig, layer: int) -> Segment:
    residual, *rest = _attention_inputs(config, layer)
    taps = (*(f"layer{layer}.{tap}" for tap in BOTTOM_TAPS), f"layer{layer + 1}.norm1")
    return Segment(f"seg_{layer}", (residual, _rope(config), *rest), _handover(config, layer + 1), taps)


def _tail(config: KLMConfig) -> Segment:
    last = config.num_layers - 1
    logits = Port("logits", "logits", "b t v", ("B", "T", config.vocab_size))
    taps = (*(f"layer{last}.{tap}" for tap in BOTTOM_TAPS), "final")
    return Segment("seg_tail", _attention_inputs(config, last), (logits,), taps)


def _rope(config: KLMConfig) -> Port:
    return Port("rotary_pos_emb", "rope", "c b t d", (2, "B", "T", config.head_dim))


def _heads(name: str, value: str, num_heads: int, rows: str, config: KLMConfig) -> Port:
    axes = "b h p d" if rows == "W" else "b h t d"
    return Port(name, value, axes, ("B", num_heads, rows, config.head_dim))


def _residual(config: KLMConfig, layer: int) -> Port:
    return Port("residual", f"layer{layer}.residual", "b t d", ("B", "T", config.hidden_size))


def _attention_inputs(config: KLMConfig, layer: int) -> tuple[Port, ...]:
    return (
        _residual(config, layer),
        _heads("q", f"layer{layer}.q", config.num_attention_heads, "T", config),
        _heads("ks", f"layer{layer}.ks", config.num_kv_heads, "W", config),
        _heads("vs", f"layer{layer}.vs", config.num_kv_heads, "W", config),
    )


def _handover(config: KLMConfig, layer: int) -> tuple[Port, ...]:
    return (
        _residual(config, layer),
        _heads("q", f"layer{layer}.q", config.num_attention_heads, "T", config),
        _heads("k", f"layer{layer}.k", config.num_kv_heads, "T", config),
        _heads("v", f"layer{layer}.v", config.num_kv_heads, "T", config),
    )
