"""Weights of MiniKL: what a checkpoint of the original must hold, both ways, random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from parity.harness.errors import UserError

from ..strict import Loaded, check_state, drawn, same_bits
from .config import MiniKLConfig
from .module import MiniKL, RoPE

WRAPPER = "module."
TABLES = ("rope_sin", "rope_cos")
ROUNDING = 1e-2
"""What a table's entry may be off: more than bf16 rounds, far less than another base gives."""


def shapes(config: MiniKLConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the module's state_dict; a linear layer's weight is `[out, in]`."""
    width, inner, kv_size = config.d_model, config.inner_size, config.g * config.head_dim
    linear = {"attention.w_q": (width, width), "attention.w_o": (width, width)}
    linear |= {"attention.w_k": (kv_size, width), "attention.w_v": (kv_size, width)}
    ups = ("w_up_a", "w_up_b") if config.ffn == "GLU" else ("w_up",)
    linear |= {f"ffn.{up}": (inner, width) for up in ups} | {"ffn.w_down": (width, inner)}
    table: dict[str, tuple[int, ...]] = {"embeddings.weight": (config.vocab_size, width)}
    table |= {"fc.weight": (config.vocab_size, width), "fc.bias": (config.vocab_size,)}
    for i in range(config.num_layers):
        for path, shape in linear.items():
            table |= {f"layers.{i}.{path}.weight": shape, f"layers.{i}.{path}.bias": shape[:1]}
        table |= {f"layers.{i}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        table |= dict.fromkeys(_tables(i), (config.max_seq_len, config.head_dim))
    return table


def _tables(layer: int) -> tuple[str, ...]:
    return tuple(f"layers.{layer}.attention.rope.{name}" for name in TABLES)


def from_checkpoint(config: MiniKLConfig, checkpoint: Mapping[str, Tensor]) -> Loaded:
    """The module's state_dict from an original checkpoint; UserError that lists what does not fit.

    Taken as well: names that a data-parallel wrapper prefixed. Rotary tables are used as they are saved,
    but must be the same in every layer and those of the configuration's theta.
    """
    notes: tuple[str, ...] = ()
    state = dict(checkpoint)
    if state and all(key.startswith(WRAPPER) for key in state):
        state = {key.removeprefix(WRAPPER): value for key, value in state.items()}
        notes = (f"{WRAPPER!r} taken off every name",)
    check_state(shapes(config), state)
    _check_tables(config, state)
    return Loaded(state, notes)


def to_checkpoint(config: MiniKLConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's names, which are the module's own."""
    check_state(shapes(config), state)
    _check_tables(config, state)
    return dict(state)


def _check_tables(config: MiniKLConfig, state: Mapping[str, Tensor]) -> None:
    expected = RoPE(config).state_dict()
    for name, own in zip(TABLES, _tables(0), strict=True):
        off = float((state[own].float() - expected[name]).abs().max())
        if off > ROUNDING:
            raise UserError(f"weights: {own} is not that of theta={config.theta:g}, off by up to {off:.2g}")
    for layer in range(1, config.num_layers):
        for first, other in zip(_tables(0), _tables(layer), strict=True):
            if not same_bits(state[first], state[other]):
                raise UserError(
                    f"weights: {first} and {other} differ, but all layers have the same positions"
                )


def draw(config: MiniKLConfig, key: str, seed: int) -> Tensor:
    """One random weight, which depends on the seed and its key alone; tables are computed, never drawn."""
    shape = shapes(config)[key]
    if key.rpartition(".")[2] in TABLES:
        return cast(Tensor, RoPE(config).state_dict()[key.rpartition(".")[2]])
    if key.endswith("bias"):
        return drawn(seed, key, shape, std=0.1)
    if "norm" in key:
        return drawn(seed, key, shape, mean=1.0, std=0.1)
    return drawn(seed, key, shape, std=_gain(config, key) / math.sqrt(shape[-1]))


def init_random(module: MiniKL, seed: int) -> None:
    """Random weights under which every part is alive; the global generator is left alone."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(draw(module.config, key, seed))


def _gain(config: MiniKLConfig, key: str) -> float:
    """Standard deviation of a layer's output when its input has 1; nothing normalizes what the logits see."""
    grown = math.sqrt(1.0 + 2.0 * config.num_layers)
    gains = {"embeddings": 3.0, "fc": 3.0 / grown, "w_q": 1.5, "w_k": 1.5, "w_down": 2.0}
    return next((gain for part, gain in gains.items() if part in key), 1.0)
