"""Ports of other people's modules: a transformers LLaMA and GPT-2, plain torch.nn, a convolution.

Code between two modules has no tap of its own: it first shows in what the second one is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import zoo
from ..plant import Apply, Plant

FAMILY = "foreign"


def _edited(edit: Callable[[Any], None]) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        def finished(module: nn.Module) -> nn.Module:
            edit(module)
            return module

        patch.setattr(zoo, "finished", finished)

    return apply


def _set(path: str, name: str, value: Any) -> Callable[[Any], None]:
    """An attribute of a submodule; a function of the old value makes the new one."""

    def edit(module: nn.Module) -> None:
        part = module.get_submodule(path)
        setattr(part, name, value(getattr(part, name)) if callable(value) else value)

    return edit


def _weight(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    def edit(module: nn.Module) -> None:
        name, _, leaf = path.rpartition(".")
        held = getattr(module.get_submodule(name), leaf)
        held.copy_(change(held.clone()))

    return edit


def _forward(path: str, name: str, change: Callable[..., Tensor]) -> Callable[[Any], None]:
    """`change(original, *inputs)` in the place of a method of one submodule."""

    def edit(module: nn.Module) -> None:
        part = module.get_submodule(path)
        inner = getattr(part, name)
        setattr(part, name, lambda *inputs, **named: change(inner, *inputs, **named))

    return edit


def _exchange(one: str, two: str) -> Callable[[Any], None]:
    def edit(module: nn.Module) -> None:
        left, right = module.get_submodule(one), module.get_submodule(two)
        kept = {name: value.clone() for name, value in left.state_dict().items()}
        left.load_state_dict(right.state_dict())
        right.load_state_dict(kept)

    return edit


def _theta(module: Any) -> None:
    """Base 1e6 in the place of 1e4."""
    rotary = module.model.rotary_emb
    rotary.inv_freq = 1.0 / 1e6 ** (torch.arange(0, 8, 2) / 8)


def _pairs(weight: Tensor) -> Tensor:
    """Rows of each head of 8 as pairs where the rotation takes halves."""
    return weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).reshape(weight.shape)


def _packed_by_head(weight: Tensor) -> Tensor:
    """[3, head, d] read as [head, 3, d]."""
    return weight.unflatten(0, (3, 4, 8)).transpose(0, 1).reshape(weight.shape)


def _fused_by_head(weight: Tensor) -> Tensor:
    """The same for GPT-2, whose weights are transposed."""
    return weight.unflatten(-1, (3, 4, 8)).transpose(-3, -2).reshape(weight.shape)


def _unscaled(inner: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def _not_causal(inner: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _one_row(weight: Tensor) -> Tensor:
    weight[5] *= 1.02
    return weight


def _of(
    model: str, name: str, born: str, edit: Callable[[Any], None], says: tuple[str, ...], **about: Any
) -> Plant:
    spec = f"module:mutations.zoo:{model}_port"
    born = born if born.startswith(("output", "logits")) else f"module:{born}"
    return Plant(f"{model}-{name}", FAMILY, born, _edited(edit), says, f"zoo:{model}", on=(spec,), **about)


PLANTS = [
    _of("llama", "theta", "model.rotary_emb.0", _theta, ("base|theta|rope|rotary",)),
    _of(
        "llama",
        "norm-eps",
        "model.layers.1.input_layernorm",
        _set("model.layers.1.input_layernorm", "variance_epsilon", 1e-2),
        ("eps",),
    ),
    _of("llama", "last-norm-eps", "model.norm", _set("model.norm", "variance_epsilon", 1e-1), ("eps",)),
    _of(
        "llama",
        "activation",
        "model.layers.0.mlp.act_fn",
        _set("model.layers.0.mlp", "act_fn", lambda old: nn.GELU()),
        ("gelu",),
    ),
    _of(
        "llama",
        "scale",
        "model.layers.1.self_attn.o_proj",
        _set("model.layers.1.self_attn", "scaling", lambda old: old * 2),
        ("scale",),
    ),
    _of(
        "llama",
        "gate-and-up",
        "model.layers.1.mlp.gate_proj",
        _exchange("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"),
        ("gate|up_proj|swap|exchang|weight",),
    ),
    _of(
        "llama",
        "query-rows-as-pairs",
        "model.layers.0.self_attn.q_proj",
        _weight("model.layers.0.self_attn.q_proj.weight", _pairs),
        ("interleav|pair|order|permut",),
    ),
    _of(
        "llama",
        "one-row",
        "model.layers.1.mlp.down_proj",
        _weight("model.layers.1.mlp.down_proj.weight", _one_row),
        ("row|channel|weight|scale",),
    ),
    _of(
        "llama",
        "layers-exchanged",
        "model.layers.0.input_layernorm",
        _exchange("model.layers.0", "model.layers.1"),
        ("weight|another|layers.1",),
    ),
    _of(
        "llama",
        "head-shifted",
        "lm_head",
        _weight("lm_head.weight", lambda w: w.roll(1, 0)),
        ("shift|roll|order|by 1|row",),
    ),
    _of("gpt2", "norm-eps", "transformer.h.1.ln_1", _set("transformer.h.1.ln_1", "eps", 1e-2), ("eps",)),
    _of(
        "gpt2",
        "gelu-exact",
        "transformer.h.0.mlp.act",
        _set("transformer.h.0.mlp", "act", lambda old: nn.GELU()),
        ("gelu",),
    ),
    _of(
        "gpt2",
        "gelu-quick",
        "transformer.h.1.mlp.act",
        _set("transformer.h.1.mlp", "act", lambda old: _Quick()),
        ("gelu|1.702|quick",),
    ),
    _of(
        "gpt2",
        "places-shifted",
        "transformer.wpe",
        _weight("transformer.wpe.weight", lambda w: w.roll(1, 0)),
        ("position|row|shift|roll|by 1",),
    ),
    _of(
        "gpt2",
        "packed-by-head",
        "transformer.h.0.attn.c_attn",
        _weight("transformer.h.0.attn.c_attn.weight", _fused_by_head),
        ("order|permut|pack|split|weight",),
    ),
    _of(
        "gpt2",
        "bias-lost",
        "transformer.h.1.mlp.c_proj",
        _weight("transformer.h.1.mlp.c_proj.bias", torch.zeros_like),
        ("bias",),
    ),
    _of(
        "gpt2",
        "last-norm-lost",
        "transformer.ln_f",
        _weight("transformer.ln_f.weight", torch.ones_like),
        ("weight|gain",),
    ),
    _of(
        "encoder",
        "unscaled",
        "layers.1.attention.out",
        _forward("layers.1.attention", "mixed", _unscaled),
        ("scale",),
    ),
    _of(
        "encoder",
        "not-causal",
        "layers.0.attention.out",
        _forward("layers.0.attention", "mixed", _not_causal),
        ("causal|mask|future",),
    ),
    _of(
        "encoder",
        "activation-between",
        "layers.2.down",
        _forward("layers.2", "activated", lambda inner, x: F.relu(x)),
        ("relu|activation",),
    ),
    _of(
        "encoder",
        "packed-by-head",
        "layers.1.attention.qkv",
        _weight("layers.1.attention.qkv.weight", _packed_by_head),
        ("order|permut|pack|split|weight",),
    ),
    _of(
        "encoder",
        "norm-after",
        "layers.1.norm2",
        _set("layers.1", "norm2", lambda old: nn.Identity()),
        ("norm|identity|input",),
    ),
    _of(
        "encoder",
        "places-lost",
        "places",
        _weight("places.weight", torch.zeros_like),
        ("zero|position|lost",),
    ),
    _of("convolution", "stride-pad", "0", _set("0", "padding_mode", "circular"), ("pad",)),
    _of(
        "convolution",
        "training-statistics",
        "1",
        _weight("1.running_var", torch.ones_like),
        ("variance|statistic|buffer|running|scale",),
    ),
    _of(
        "convolution",
        "kernel-transposed",
        "3",
        _weight("3.weight", lambda w: w.transpose(2, 3)),
        ("transpos",),
    ),
    _of(
        "convolution",
        "channels-exchanged",
        "3",
        _weight("3.weight", lambda w: w.flip(1)),
        ("order|permut|channel",),
    ),
]


class _Quick(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
