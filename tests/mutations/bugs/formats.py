"""Number formats and quantization: what is cut, rounded, saturated or read as something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..patches import Modules, at, edited, weights
from ..plant import MATRIX, WEIGHTS, Plant

FAMILY = "formats"


def _after(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[Modules], None]:
    """What a module returns, changed."""

    def edit(modules: Modules) -> None:
        part = at(modules, path)
        inner = part.forward
        part.forward = lambda x: change(inner(x)).to(x.dtype)

    return edit


def _before(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[Modules], None]:
    """What a module is given, changed."""

    def edit(modules: Modules) -> None:
        part = at(modules, path)
        inner = part.forward
        part.forward = lambda x: inner(change(x).to(x.dtype))

    return edit


def _held(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[Modules], None]:
    def edit(modules: Modules) -> None:
        part = at(modules, path)
        part.weight.copy_(change(part.weight.clone()))

    return edit


def cut(x: Tensor) -> Tensor:
    """bf16 by dropping bits, towards zero."""
    return (x.float().view(torch.int32) & -65536).view(torch.float32)


def int8(x: Tensor, dim: int | None = None, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Symmetric codes and back; one scale, or one along `dim`."""
    top = x.abs().max() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = top.clamp(min=1e-9) / 127
    return rounding(x / scale).clamp(-127, 127) * scale


def _int4(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 7
    return (x / scale).round().clamp(-7, 7) * scale


def _sign_lost(x: Tensor) -> Tensor:
    """int4 codes whose sign bit is not extended: negative ones become large."""
    scale = x.abs().amax(1, keepdim=True) / 7
    codes = (x / scale).round().clamp(-7, 7)
    return torch.where(codes < 0, codes + 16, codes) * scale


def _wraps(x: Tensor) -> Tensor:
    """Codes that are not clamped and wrap: the largest become their negatives."""
    scale = x.abs().max() / 140
    codes = (x / scale).round()
    return ((codes + 128) % 256 - 128) * scale


def _scale_of_the_next(x: Tensor) -> Tensor:
    top = x.abs().amax(1, keepdim=True)
    return x / top * top.roll(1, 0)


def _bits_as_half(x: Tensor) -> Tensor:
    """bf16 bits read as fp16."""
    return x.bfloat16().view(torch.float16).float()


def _flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 2e-2, torch.zeros_like(x), x)


def _overflows(x: Tensor) -> Tensor:
    """A format whose largest number is 2."""
    return torch.where(x.abs() > 2, torch.full_like(x, float("inf")) * x.sign(), x)


def _in_bf16(modules: Modules) -> None:
    part = at(modules, "seg_1.layer_bottom.mlp.down_proj")
    part.forward = lambda x: torch.nn.functional.linear(
        x.bfloat16(), part.weight.bfloat16(), part.bias.bfloat16()
    ).to(x.dtype)


def _in_half(modules: Modules) -> None:
    part = at(modules, "seg_2.layer_bottom.out_proj")
    part.forward = lambda x: torch.nn.functional.linear(x.half(), part.weight.half(), part.bias.half()).to(
        x.dtype
    )


def _code(name: str, born: str, edit: Any, says: tuple[str, ...], **about: Any) -> Plant:
    return Plant(f"format-{name}", FAMILY, born, edited(edit), says, also=MATRIX, **about)


def _of(name: str, born: str, edit: Any, says: tuple[str, ...]) -> Plant:
    return Plant(f"format-{name}", FAMILY, born, weights(edit), says, on=WEIGHTS, also=MATRIX)


QUANTIZED = "int8|8.bit|quanti"

PLANTS = [
    _code(
        "activation-cut",
        "layer1.norm2",
        _after("seg_1.layer_bottom.ln2", cut),
        ("bf16|bfloat16", "trunc|cut|toward"),
    ),
    _code(
        "activation-rounded",
        "layer2.norm2",
        _after("seg_2.layer_bottom.ln2", lambda x: x.bfloat16().float()),
        ("bf16|bfloat16",),
    ),
    _code(
        "activation-in-half",
        "layer1.norm1",
        _after("seg_0.layer_head.ln1", lambda x: x.half().float()),
        ("fp16|float16|half",),
    ),
    _code("activation-int8", "layer1.norm2", _after("seg_1.layer_bottom.ln2", int8), (QUANTIZED,)),
    _code(
        "activation-int8-cut",
        "layer1.norm2",
        _after("seg_1.layer_bottom.ln2", lambda x: int8(x, rounding=torch.trunc)),
        (QUANTIZED, "trunc|cut|toward|floor"),
    ),
    _code(
        "activation-wraps",
        "layer2.norm2",
        _after("seg_2.layer_bottom.ln2", _wraps),
        ("wrap|overflow|clamp|satur",),
    ),
    _code(
        "activation-saturates",
        "layer1.norm2",
        _after("seg_1.layer_bottom.ln2", lambda x: x.clamp(-2, 2)),
        ("satur|clip|clamp",),
    ),
    _code(
        "activation-flushed",
        "layer2.norm2",
        _after("seg_2.layer_bottom.ln2", _flushed),
        ("flush|small|zero",),
        where={"prefilled": "layer2.norm2@3"},  # no value of the steps before is that small
    ),
    _code(
        "activation-overflows",
        "layer0.mlp",
        _after("seg_0.layer_bottom.mlp.down_proj", _overflows),
        ("inf|overflow|finite",),
    ),
    _code(
        "zero-point-forgotten",
        "layer2.mlp",
        _after("seg_2.layer_bottom.mlp.down_proj", lambda x: x + 0.05),
        ("offset|constant|zero.point|bias|added",),
    ),
    _code("product-in-bf16", "layer1.mlp", _in_bf16, ("bf16|bfloat16",)),
    _code("product-in-half", "layer2.o", _in_half, ("fp16|float16|half",)),
    _code("input-int8", "layer0.o", _before("seg_0.layer_bottom.out_proj", int8), (QUANTIZED,)),
    _of(
        "weight-rounded",
        "layer1.o",
        _held("seg_1.layer_bottom.out_proj", lambda w: w.bfloat16().float()),
        ("bf16|bfloat16",),
    ),
    _of(
        "weight-cut",
        "layer1.o",
        _held("seg_1.layer_bottom.out_proj", cut),
        ("bf16|bfloat16", "trunc|cut|toward"),
    ),
    _of(
        "weight-in-half",
        "layer2.q",
        _held("seg_1.layer_head.q_proj", lambda w: w.half().float()),
        ("fp16|float16|half",),
    ),
    _of(
        "weight-int8",
        "layer2.mlp",
        _held("seg_2.layer_bottom.mlp.down_proj", lambda w: int8(w, 1)),
        (QUANTIZED,),
    ),
    _of(
        "weight-int8-one-scale",
        "layer2.mlp",
        _held("seg_2.layer_bottom.mlp.down_proj", int8),
        (QUANTIZED, "tensor|one scale"),
    ),
    _of("weight-int4", "layer0.act", _held("seg_0.layer_bottom.mlp.up_proj", _int4), ("int4|4.bit",)),
    _of(
        "weight-sign-not-extended",
        "layer0.act",
        _held("seg_0.layer_bottom.mlp.up_proj", _sign_lost),
        ("int4|sign|4.bit",),
    ),
    _of(
        "weight-scale-of-the-next-row",
        "layer1.o",
        _held("seg_1.layer_bottom.out_proj", _scale_of_the_next),
        ("scale",),
    ),
    _of(
        "weight-bits-as-half",
        "layer3.o",
        _held("seg_tail.layer_bottom.out_proj", _bits_as_half),
        ("bits|bf16|fp16",),
    ),
    _of(
        "weight-saturates",
        "layer2.mlp",
        _held("seg_2.layer_bottom.mlp.down_proj", lambda w: w.clamp(-0.2, 0.2)),
        ("satur|clip|clamp|weight",),
    ),
]
