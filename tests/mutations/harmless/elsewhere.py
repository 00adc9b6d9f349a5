"""Legal number formats, weights that mean the same, healthy dumps and files, ports of others' modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dumping, zoo
from ..patches import Modules, at, edited, shipped
from ..plant import Apply, Harmless

FAMILY = "elsewhere"
HERE = Path(__file__).parents[1]


def _nothing(patch: pytest.MonkeyPatch) -> None:
    """The run itself differs."""


def _ported(edit: Callable[[Any], Any]) -> Apply:
    """`edit(module)` changes the port, or returns another one."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zoo, "finished", lambda module: edit(module) or module)

    return apply


def _heads_permuted(modules: Modules) -> None:
    """Query heads of a group change places with the columns that read them: q and attn differ, not o."""
    query, out = at(modules, "seg_0.layer_head.q_proj"), at(modules, "seg_1.layer_bottom.out_proj")
    order = torch.tensor([1, 0, 2, 3])
    query.weight.copy_(query.weight.unflatten(0, (4, 32))[order].flatten(0, 1))
    query.bias.copy_(query.bias.unflatten(0, (4, 32))[order].flatten())
    out.weight.copy_(out.weight.unflatten(1, (4, 32))[:, order].flatten(1))


def _hidden_permuted(modules: Modules) -> None:
    """Channels between up, gate and down in another order: act differs, mlp does not."""
    mlp = at(modules, "seg_1.layer_bottom.mlp")
    order = torch.randperm(384, generator=torch.Generator().manual_seed(0))
    for part in (mlp.up_proj, mlp.gate_proj):
        part.weight.copy_(part.weight[order].clone())
        part.bias.copy_(part.bias[order].clone())
    mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())


def _norm_folded(modules: Modules) -> None:
    """The norm's weight and bias go into the projections that read it: norm1 differs, q, k and v do not."""
    head = at(modules, "seg_1.layer_head")
    weight, bias = head.ln1.weight.clone(), head.ln1.bias.clone()
    for part in (head.q_proj, head.k_proj, head.v_proj):
        part.bias.add_(part.weight @ bias)
        part.weight.mul_(weight)
    head.ln1.weight.fill_(1)
    head.ln1.bias.zero_()


def _scale_folded(modules: Modules) -> None:
    """Down carries a factor that gate lost: a power of two, so act differs and mlp does not."""
    mlp = at(modules, "seg_2.layer_bottom.mlp")
    mlp.gate_proj.weight.mul_(0.5)
    mlp.gate_proj.bias.mul_(0.5)
    mlp.down_proj.weight.mul_(2)


def _by_hand(module: Any) -> None:
    """Causal attention written out."""
    for layer in module.layers:
        layer.attention.mixed = _written_out


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def _renamed(module: Any) -> None:
    """`layers` is called `blocks` there; its map says so."""

    class Renamed(type(module)):  # type: ignore[misc]
        @property
        def layers(self) -> Any:
            return self.blocks

    module.blocks = module._modules.pop("layers")
    module.__class__ = Renamed


def _sdpa(module: Any) -> None:
    module.config._attn_implementation = "sdpa"


def _erf(module: Any) -> None:
    """GELU written out."""
    for layer in module.layers:
        layer.activated = lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _compiled(module: Any) -> None:
    for layer in module.layers:
        layer.norm1.forward = torch.compile(layer.norm1.forward, backend="aot_eager_decomp_partition")


def _channels_last(module: Any) -> Any:
    return module.to(memory_format=torch.channels_last)


def _unfolded(module: Any) -> None:
    """Convolution as a product over patches."""
    first = module[0]

    def forward(x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1)
        out = first.weight.flatten(1) @ patches + first.bias[:, None]
        return out.unflatten(-1, x.shape[-2:])

    first.forward = forward


def _steps(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(dumping, "finished", change)

    return apply


def _half_of_it(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A device that shows segments' outputs only."""
    shown = ("residual", "q", "k", "v", "logits")
    for step in steps:
        step["records"] = [r for r in step["records"] if r["tap"].rpartition(".")[2] in shown]
    return steps


def _noisy(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rounding of another order of sums, drawn at random: 1e-7 of each value that is a sum."""
    copies = ("embed", "rope", "layer0.residual")
    draw = np.random.default_rng(0)
    for step in steps:
        for record in step["records"]:
            array = np.asarray(record["array"])
            if array.dtype == np.float32 and record["tap"] not in copies:
                record["array"] = (array * (1 + 1e-7 * draw.standard_normal(array.shape))).astype(np.float32)
    return steps


def _longer(files: Any) -> Any:
    """More rotary rows than needed."""
    return replace(files, rope=np.concatenate([files.rope, files.rope[:, :, :5]], 2))


def _port(model: str) -> str:
    return f"module:mutations.zoo:{model}_port"


def _zoo(model: str, name: str, edit: Callable[[Any], Any], **about: Any) -> Harmless:
    return Harmless(f"{model}-{name}", FAMILY, _ported(edit), f"zoo:{model}", (_port(model),), **about)


def _change(name: str, apply: Apply = _nothing, **about: Any) -> Harmless:
    return Harmless(name, FAMILY, apply, **about)


CHANGES = [
    *(
        _change(
            f"format-{kind}",
            setting=kind,
            on=("segmented:bf16", "segmented:fp16", "torch:bf16", "torch:fp64"),
        )
        for kind in ("brief", "batch", "wrap")
    ),
    _change("format-of-a-growing-cache", setting="chunk", on=("segmented:grow+bf16", "torch:fp16")),
    _change(
        "heads-permuted-throughout",
        edited(_heads_permuted),
        options={"taps": ("layer*.o", "layer*.mid", "layer*.mlp", "logits")},
        on=("segmented", "onnx"),
    ),
    _change(
        "hidden-permuted-throughout",
        edited(_hidden_permuted),
        options={"taps": ("layer*.norm2", "layer*.mlp", "logits")},
        on=("segmented", "onnx"),
    ),
    _change(
        "norm-folded",
        edited(_norm_folded),
        options={"taps": ("layer*.q", "layer*.k", "layer*.v", "logits")},
        on=("segmented", "onnx"),
    ),
    _change(
        "scale-folded",
        edited(_scale_folded),
        options={"taps": ("layer*.mlp", "logits")},
        on=("segmented", "onnx"),
    ),
    _change("dump", on=("dump",)),
    _change("dump-of-some-taps", _steps(_half_of_it), on=("dump",)),
    _change("dump-with-rounding", _steps(_noisy), on=("dump",)),
    _change("files-with-more-rows", shipped(_longer), on=("prefilled",)),
    *(
        _change(f"{model}-exported", setting=f"zoo:{model}", on=("onnx",), options={"exporter": "dynamo"})
        for model in ("llama", "gpt2", "encoder", "convolution")
    ),
    *(
        _change(f"{model}-itself", setting=f"zoo:{model}", on=(_port(model),))
        for model in ("llama", "gpt2", "encoder", "convolution")
    ),
    _change("encoder-in-bf16", setting="zoo:encoder", on=("torch:bf16",)),
    _zoo("llama", "sdpa", _sdpa),
    _zoo("gpt2", "sdpa", _sdpa),
    _zoo("encoder", "attention-by-hand", _by_hand),
    _zoo("encoder", "gelu-by-hand", _erf),
    _zoo("encoder", "compiled", _compiled),
    _zoo("encoder", "renamed", _renamed, options={"map": str(HERE / "renamed.toml")}),
    _zoo("convolution", "channels-last", _channels_last),
    _zoo("convolution", "by-patches", _unfolded),
]
