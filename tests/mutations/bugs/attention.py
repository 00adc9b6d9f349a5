"""Masks and attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patches import at, attention, edited, masking
from ..plant import MATRIX, Plant

FAMILY = "attention"
HEAD = 32


def _scaled(factor: float) -> Any:
    return lambda original, self, q, ks, vs, mask: original(self, q * factor, ks, vs, mask)


def _tiled(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
    """Query head h reads kv head h % G instead of h // (H / G)."""
    groups = self.num_kv_heads
    order = [h for g in range(groups) for h in range(g, q.shape[1], groups)]
    back = [order.index(h) for h in range(q.shape[1])]
    return original(self, q[:, order], ks, vs, mask)[:, back]


def _one_kv_head(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, q, ks[:, :1].expand_as(ks), vs[:, :1].expand_as(vs), mask)


def _low_queries(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, q.bfloat16().to(q.dtype), ks, vs, mask)


def _plain(self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None, softmax: Any) -> Tensor:
    """The attention with another softmax over its masked scores `[B, H, T, W]`."""
    repeat = q.shape[1] // self.num_kv_heads
    k, v = (rows.repeat_interleave(repeat, 1) for rows in (ks, vs))
    return softmax(self._hide(q @ k.transpose(2, 3) * self.scale, mask)) @ v


def _softmax(function: Any) -> Any:
    return lambda original, self, q, ks, vs, mask: _plain(self, q, ks, vs, mask, function)


def _plus_one(scores: Tensor) -> Tensor:
    """1 in the denominator: the softmax that may attend to nothing."""
    weights = scores.exp()
    return weights / (1 + weights.sum(-1, keepdim=True))


def _without_own_row(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    """A token does not see itself (but the first, which sees nothing else)."""
    hidden = original(self, scores, mask)
    if scores.shape[-1] == 1:
        return hidden
    return torch.cat((hidden[..., :-1], torch.full_like(hidden[..., -1:], -1e4)), -1)


def _dead_head(modules: dict[str, Any]) -> None:
    bottom = at(modules, "seg_2.layer_bottom")
    inner = bottom._attention
    alive = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 4, 1, 1)
    bottom._attention = lambda q, *rest: inner(q, *rest) * alive.to(q.dtype)


def _heads_exchanged(modules: dict[str, Any]) -> None:
    bottom = at(modules, "seg_1.layer_bottom")
    inner = bottom._attention
    bottom._attention = lambda *inputs: inner(*inputs)[:, [1, 0, 2, 3]]


def _channel_first(modules: dict[str, Any]) -> None:
    """Heads are flattened channel by channel before the projection."""
    projection = at(modules, "seg_1.layer_bottom.out_proj")
    inner = projection.forward
    projection.forward = lambda x: inner(x.unflatten(-1, (4, HEAD)).transpose(-1, -2).flatten(-2))


def _values_for_keys(modules: dict[str, Any]) -> None:
    bottom = at(modules, "seg_0.layer_bottom")
    inner = bottom._attention
    bottom._attention = lambda q, ks, vs, mask: inner(q, ks, ks, mask)


def _hidden(name: str, change: Any, says: tuple[str, ...], **about: Any) -> Plant:
    about = {"setting": "batch", "also": ("onnx", "segmented:grow", "segmented:bf16"), **about}
    return Plant(f"mask-{name}", FAMILY, "layer0.attn", masking(change), says, **about)


def _attend(name: str, change: Any, says: tuple[str, ...], **about: Any) -> Plant:
    about = {"also": MATRIX, **about}
    return Plant(f"attention-{name}", FAMILY, "layer0.attn", attention(change), says, **about)


def _one_layer(name: str, edit: Any, says: tuple[str, ...], born: str) -> Plant:
    return Plant(f"attention-{name}", FAMILY, born, edited(edit), says, also=MATRIX)


def _no_mask(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores + 0 * mask


def _added_as_bits(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, scores, None if mask is None else (mask == 0).to(scores.dtype))


def _rolled(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, scores, None if mask is None else torch.roll(mask, 1, dims=-1))


def _weak(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, scores, None if mask is None else mask.clamp(min=-4))


def _first_sequence(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return original(self, scores, None if mask is None else mask[-1:].expand_as(mask))


def _inverted(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    return original(
        self, scores, None if mask is None else torch.where(mask == 0, -1e4, 0.0).to(scores.dtype)
    )


def _future(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    """New rows of one chunk see each other's future."""
    return scores if mask is None else scores + mask


def _future_by_one(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    """The triangle lets every row see one row too many."""
    new, rows = scores.shape[2:]
    if mask is not None or new == 1:
        return original(self, scores, mask)
    newest = torch.arange(new) + (rows - new) + 1
    return scores.masked_fill(torch.arange(rows) > newest[:, None], float("-inf"))


def _past_by_one(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    """The triangle hides a row's own token."""
    new, rows = scores.shape[2:]
    if mask is not None or new == 1:
        return original(self, scores, mask)
    newest = (torch.arange(new) + (rows - new) - 1).clamp(min=0)
    return scores.masked_fill(torch.arange(rows) > newest[:, None], float("-inf"))


CHUNK: dict[str, Any] = {"setting": "chunk", "on": ("segmented:grow", "segmented"), "also": ()}

PLANTS = [
    _hidden("missing", _no_mask, ("mask|pad|hidden|every row|all rows|unfilled",)),
    _hidden("added-as-zero-and-one", _added_as_bits, ("mask|bias|0/1|boolean",)),
    _hidden("off-by-one", _rolled, ("mask", "one|shift|roll|off by|by 1|earlier|later")),
    _hidden("too-weak", _weak, ("mask", "fill|-4|weak|constant|large enough|small")),
    _hidden("of-one-sequence-for-all", _first_sequence, ("mask|sequence|batch|pad",)),
    _hidden("inverted", _inverted, ("mask|invert",)),
    _hidden("future-visible", _future, ("future|causal|mask",), **CHUNK),
    _hidden("future-visible-by-one", _future_by_one, ("future|causal|mask",), **CHUNK),
    _hidden("own-token-hidden", _past_by_one, ("causal|mask|own|itself|current",), **CHUNK),
    _hidden("own-row-hidden", _without_own_row, ("own|current|newest|itself|mask",), setting="brief"),
    _attend("scale-of-hidden-size", _scaled(0.5), ("scale",)),
    _attend("without-scale", _scaled(HEAD**0.5), ("scale",)),
    _attend("scaled-twice", _scaled(HEAD**-0.5), ("scale",)),
    _attend("kv-heads-tiled", _tiled, ("tile|group|repeat|kv head|modulo",)),
    _attend("one-kv-head-for-all", _one_kv_head, ("kv head|group|head",)),
    _attend("queries-rounded", _low_queries, ("bf16|bfloat16",)),
    _attend("softmax-plus-one", _softmax(_plus_one), ("plus one|1 added|sink|denominator",)),
    _attend("softmax-in-bf16", _softmax(lambda s: s.bfloat16().softmax(-1).to(s.dtype)), ("bf16|bfloat16",)),
    _attend("softmax-in-half", _softmax(lambda s: s.half().softmax(-1).to(s.dtype)), ("fp16|float16|half",)),
    _attend("scores-capped", _softmax(lambda s: (5 * (s / 5).tanh()).softmax(-1)), ("cap|tanh",)),
    _attend(
        "softmax-base-two",
        _softmax(lambda s: (s * 0.6931471805599453).softmax(-1)),
        ("scale|base|powers of 2",),
    ),
    _attend("sigmoid-for-softmax", _softmax(F.sigmoid), ("sigmoid",)),
    _one_layer("dead-head", _dead_head, ("head|zero",), "layer2.attn"),
    _one_layer("heads-exchanged", _heads_exchanged, ("head|h slices|order",), "layer1.attn"),
    _one_layer(
        "channel-first", _channel_first, ("transpos|channel|layout|order|flatten|permut",), "layer1.o"
    ),
    _one_layer("keys-for-values", _values_for_keys, ("key|ks|swap|value",), "layer0.attn"),
]
