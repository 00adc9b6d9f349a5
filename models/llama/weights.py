"""Weights of LLaMA: what a checkpoint must hold, Hugging Face's names both ways, random ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from parity.harness.errors import UserError

from ..strict import Loaded, check_state, drawn, tied
from .config import LlamaConfig
from .module import Llama, frequencies

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the module's state_dict; a linear layer's weight is `[out, in]`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, q_size),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    table: dict[str, tuple[int, ...]] = dict.fromkeys((TABLE, HEAD), (config.vocab_size, hidden))
    table["model.norm.weight"] = (hidden,)
    for i in range(config.num_hidden_layers):
        table |= {f"model.layers.{i}.{path}.weight": shape for path, shape in layer.items()}
    return table


def from_checkpoint(config: LlamaConfig, checkpoint: Mapping[str, Tensor]) -> Loaded:
    """The module's state_dict from Hugging Face's names; UserError that lists what does not fit.

    Taken as well: a checkpoint without the tied head, and the frequencies that older versions saved, which
    are held against the configuration before they are dropped.
    """
    notes: tuple[str, ...] = ()
    kept = {key: value for key, value in checkpoint.items() if not _is_frequencies(config, key, value)}
    if dropped := len(checkpoint) - len(kept):
        notes += (f"{dropped} tables of rotary frequencies dropped, equal to the configuration's",)
    if config.tie_word_embeddings:
        loaded = tied(kept, HEAD, TABLE)
        kept, notes = loaded.state, notes + loaded.notes
    check_state(shapes(config), kept)
    return Loaded(kept, notes)


def to_checkpoint(config: LlamaConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names, as its files have them: a tied head is not written."""
    check_state(shapes(config), state)
    return {key: value for key, value in state.items() if key != HEAD or not config.tie_word_embeddings}


def _is_frequencies(config: LlamaConfig, key: str, value: Tensor) -> bool:
    if not FREQUENCIES.fullmatch(key):
        return False
    own = frequencies(config)
    rounding = 4 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    if value.shape == own.shape and torch.allclose(value.float(), own, rtol=rounding, atol=0.0):
        return True
    raise UserError(
        f"weights: {key} holds other frequencies than rope_theta={config.rope_theta:g} and "
        f"head_dim={config.head_dim} give; the configuration is not that of this checkpoint"
    )


def draw(config: LlamaConfig, key: str, seed: int) -> Tensor:
    """One random weight, which depends on the seed and its key alone; a tied head is the table's twin."""
    shape = shapes(config)[key]
    if key == HEAD and config.tie_word_embeddings:
        key = TABLE
    if "norm" in key:
        return drawn(seed, key, shape, mean=1.0, std=0.1)
    return drawn(seed, key, shape, std=_gain(key) / math.sqrt(shape[-1]))


def init_random(module: Llama, seed: int) -> None:
    """Random weights under which every part is alive; the global generator is left alone."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(draw(module.config, key, seed))


def _gain(key: str) -> float:
    """Standard deviation of a layer's output when its input has 1."""
    gains = {"embed_tokens": 3.0, "lm_head": 3.0, "q_proj": 1.5, "k_proj": 1.5, "down_proj": 2.0}
    return next((gain for part, gain in gains.items() if part in key), 1.0)
