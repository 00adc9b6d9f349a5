"""Weights of GPT-BigCode: what a checkpoint must hold, Hugging Face's names both ways, random ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from parity.harness.errors import UserError

from ..strict import Loaded, check_state, drawn, tied
from .config import GPTBigCodeConfig
from .module import GPTBigCode

TABLE, HEAD = "transformer.wte.weight", "lm_head.weight"
PREFIX = "transformer."
MASK = re.compile(r"transformer\.(h\.\d+\.attn\.)?bias")
HIDDEN = re.compile(r"transformer\.h\.\d+\.attn\.masked_bias")


def shapes(config: GPTBigCodeConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the module's state_dict; a linear layer's weight is `[out, in]`."""
    width, inner = config.n_embd, config.inner_size
    linear = {
        "attn.c_attn": (width + 2 * config.head_dim, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (inner, width),
        "mlp.c_proj": (width, inner),
    }
    table: dict[str, tuple[int, ...]] = dict.fromkeys((TABLE, HEAD), (config.vocab_size, width))
    table["transformer.wpe.weight"] = (config.n_positions, width)
    norms = [f"transformer.h.{i}.{norm}" for i in range(config.n_layer) for norm in ("ln_1", "ln_2")]
    for norm in (*norms, "transformer.ln_f"):
        table |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(config.n_layer):
        for path, shape in linear.items():
            at = f"transformer.h.{i}.{path}"
            table |= {f"{at}.weight": shape, f"{at}.bias": shape[:1]}
    return table


def from_checkpoint(config: GPTBigCodeConfig, checkpoint: Mapping[str, Tensor]) -> Loaded:
    """The module's state_dict from Hugging Face's names; UserError that lists what does not fit.

    Taken as well: a checkpoint of the body alone (keys without `transformer.`), one without the tied head,
    and the masks that older versions saved, which are looked at before they are dropped.
    """
    named, notes = _prefixed(checkpoint)
    kept = {key: value for key, value in named.items() if not _is_mask(key, value)}
    if dropped := len(named) - len(kept):
        notes += (f"{dropped} causal masks dropped",)
    if config.tie_word_embeddings:
        loaded = tied(kept, HEAD, TABLE)
        kept, notes = loaded.state, notes + loaded.notes
    check_state(shapes(config), kept)
    return Loaded(kept, notes)


def to_checkpoint(config: GPTBigCodeConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names, as its files have them: a tied head is not written."""
    check_state(shapes(config), state)
    return {key: value for key, value in state.items() if key != HEAD or not config.tie_word_embeddings}


def _prefixed(checkpoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if any(key.startswith(PREFIX) for key in checkpoint):
        return dict(checkpoint), ()
    named = {key if key == HEAD else PREFIX + key: value for key, value in checkpoint.items()}
    return named, (f"{PREFIX!r} put before every name of the body",)


def _is_mask(key: str, value: Tensor) -> bool:
    """Whether it is a mask that follows from the sizes; UserError where it bears the name but is another."""
    if MASK.fullmatch(key):
        square = value.reshape(value.shape[-2:]) if value.dim() >= 2 else value
        if torch.equal(square.bool(), torch.ones_like(square, dtype=torch.bool).tril()):
            return True
    elif not HIDDEN.fullmatch(key):
        return False
    elif value.numel() == 1 and value.item() <= -1e3:
        return True
    raise UserError(f"weights: {key} is no causal mask; attention of that kind is not built here")


def draw(config: GPTBigCodeConfig, key: str, seed: int) -> Tensor:
    """One random weight, which depends on the seed and its key alone; a tied head is the table's twin."""
    shape = shapes(config)[key]
    if key == HEAD and config.tie_word_embeddings:
        key = TABLE
    if key.endswith("bias"):
        return drawn(seed, key, shape, std=0.1)
    if ".ln_" in key:
        return drawn(seed, key, shape, mean=1.0, std=0.1)
    return drawn(seed, key, shape, std=_gain(key) / math.sqrt(shape[-1]))


def init_random(module: GPTBigCode, seed: int) -> None:
    """Random weights under which every part is alive; the global generator is left alone."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(draw(module.config, key, seed))


def _gain(key: str) -> float:
    """Standard deviation of a layer's output when its input has 1."""
    gains = {"wte": 3.0, "wpe": 3.0, "lm_head": 3.0, "c_attn": 1.5, "mlp.c_proj": 2.0}
    return next((gain for part, gain in gains.items() if part in key), 1.0)
