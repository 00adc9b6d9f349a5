"""Weights of KLM: what a whole checkpoint must hold, its way into segments and back, random ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from parity.harness.errors import UserError

from .config import KLMConfig
from .module import KLM
from .segments import build_segments
from .wiring import segment_of

HEAD_KEYS = {
    "ln1": "ln1",
    "q_proj": "attention.q_proj",
    "k_proj": "attention.k_proj",
    "v_proj": "attention.v_proj",
}
BOTTOM_KEYS = {
    "out_proj": "attention.out_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
    "ln2": "ln2",
}
TABLE_KEYS = ("body.rotary_embedding.cos_cached", "body.rotary_embedding.sin_cached")
TIED_KEYS = ("embedding.word_embeddings.weight", "lm_head.lm_head.weight")


def segment_keys(config: KLMConfig) -> dict[str, dict[str, str]]:
    """Per segment: its own state_dict key -> the key of the whole checkpoint. Rotary tables go nowhere."""
    keys: dict[str, dict[str, str]] = {"seg_head": {"embedding.word_embeddings.weight": TIED_KEYS[0]}}
    for i in range(config.num_layers):
        keys.setdefault(segment_of(config, i - 1) if i else "seg_head", {}).update(
            _layer_keys("layer_head", HEAD_KEYS, i)
        )
        keys.setdefault(segment_of(config, i), {}).update(_layer_keys("layer_bottom", BOTTOM_KEYS, i))
    for own in ("final_ln.weight", "final_ln.bias"):
        keys["seg_tail"][own] = own
    keys["seg_tail"]["lm_head.weight"] = TIED_KEYS[1]
    return keys


def _layer_keys(part: str, table: Mapping[str, str], layer: int) -> dict[str, str]:
    return {
        f"{part}.{own}.{kind}": f"body.blocks.{layer}.{whole}.{kind}"
        for own, whole in table.items()
        for kind in ("weight", "bias")
    }


def shapes(config: KLMConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a whole checkpoint; a linear layer's weight is `[out, in]`."""
    hidden, kv_size, ffn = config.hidden_size, config.num_kv_heads * config.head_dim, config.ffn_hidden_size
    linear = {"q_proj": (hidden, hidden), "k_proj": (kv_size, hidden), "v_proj": (kv_size, hidden)}
    linear |= {"out_proj": (hidden, hidden), "up_proj": (ffn, hidden), "gate_proj": (ffn, hidden)}
    linear |= {"down_proj": (hidden, ffn)}
    table: dict[str, tuple[int, ...]] = dict.fromkeys(TIED_KEYS, (config.vocab_size, hidden))
    table |= dict.fromkeys(TABLE_KEYS, (config.max_length, config.head_dim))
    for keys in segment_keys(config).values():
        for whole in set(keys.values()) - set(TIED_KEYS):
            weight = linear.get(whole.split(".")[-2], (hidden,))
            table[whole] = weight if whole.endswith("weight") else weight[:1]
    return table


def check_state(config: KLMConfig, state: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose keys, shapes or values cannot be this model's."""
    expected = shapes(config)
    _check_keys("weights", expected, state)
    wrong = [
        f"{k} {tuple(state[k].shape)}, should be {shape}"
        for k, shape in expected.items()
        if state[k].shape != shape
    ]
    if wrong:
        raise UserError(
            f"weights: shapes of another model: {_some(wrong)}; choose the --model that they belong to"
        )
    check_finite(state)
    first, second = (state[key] for key in TIED_KEYS)
    if config.tie_word_embeddings and not torch.equal(first, second):
        raise UserError(f"weights: {TIED_KEYS[0]} and {TIED_KEYS[1]} differ, but this model ties them")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Name the tensors that hold NaN or infinity."""
    bad = [
        f"{key} ({int((~tensor.isfinite()).sum())} of {tensor.numel()})"
        for key, tensor in state.items()
        if not tensor.isfinite().all()
    ]
    if bad:
        raise UserError(
            f"weights: NaN or infinity in {_some(bad)}; the checkpoint is damaged or its training diverged"
        )


def _check_keys(what: str, expected: Iterable[str], actual: Iterable[str]) -> None:
    expected, actual = set(expected), set(actual)
    missing, unexpected = sorted(expected - actual), sorted(actual - expected)
    if missing or unexpected:
        raise UserError(
            f"{what}: not those of this model; missing: {_some(missing)}; unexpected: {_some(unexpected)}"
        )


def _some(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def split(config: KLMConfig, state: Mapping[str, Tensor], *, masked: bool = False) -> dict[str, nn.Module]:
    """Segment modules in wiring order with their own copies of the weights, in the checkpoint's dtypes."""
    check_state(config, state)
    with torch.random.fork_rng(devices=[]):
        segments = build_segments(config, masked=masked)
    for name, keys in segment_keys(config).items():
        own = {key: state[whole].detach().clone() for key, whole in keys.items()}
        segments[name].load_state_dict(own, strict=True, assign=True)
        segments[name].eval().requires_grad_(False)
    return segments


def merge(
    config: KLMConfig, segments: Mapping[str, Mapping[str, Tensor]], tables: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The whole checkpoint from the segments' state_dicts: the inverse of `split`.

    Segments hold no rotary tables, so `tables` gives them (any mapping with these two keys: the
    checkpoint itself will do).
    """
    keys = segment_keys(config)
    _check_keys("segments", keys, segments)
    for name, own in keys.items():
        _check_keys(f"segment {name}", own, segments[name])
    _check_keys("tables", TABLE_KEYS, set(TABLE_KEYS) & set(tables))
    state = {whole: segments[name][key] for name, table in keys.items() for key, whole in table.items()}
    state |= {key: tables[key] for key in TABLE_KEYS}
    check_state(config, state)
    return state


def init_random(module: KLM, seed: int) -> None:
    """Random weights under which every part is alive; the global generator is left alone.

    Torch's defaults leave biases near zero, attention uniform and logits flat, so that a lost bias or a
    wrong head hardly shows. These keep activations near 1 and logits near 3, in the order of the parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_drawn(name, parameter, generator))


def _drawn(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if ".ln" in name or name.startswith("final_ln"):
        return 1.0 + 0.1 * noise
    return noise * (_gain(name) / math.sqrt(parameter.shape[-1]))


def _gain(name: str) -> float:
    """Standard deviation of a layer's output when its input has 1."""
    gains = {"word_embeddings": 3.0, "lm_head": 3.0, "q_proj": 1.5, "k_proj": 1.5, "down_proj": 2.0}
    return next((gain for part, gain in gains.items() if part in name), 1.0)
