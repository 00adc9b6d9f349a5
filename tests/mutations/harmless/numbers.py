"""The same mathematics in another order, with other kernels, in other words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from parity.models.klm import segments

from ..patches import at, attention, edited, masking, rotation, wrapped
from ..plant import Apply, Harmless

FAMILY = "numbers"
HEAD = 32


def _linear(change: Callable[[nn.Linear, Tensor], Tensor]) -> Apply:
    """Every projection of the segments; the reference's are left alone."""

    def edit(modules: dict[str, nn.Module]) -> None:
        for module in modules.values():
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    part.forward = lambda x, part=part: change(part, x)

    return edited(edit)


def _biased(part: nn.Linear, y: Tensor) -> Tensor:
    return y if part.bias is None else y + part.bias


def _reversed(part: nn.Linear, x: Tensor) -> Tensor:
    return _biased(part, x.flip(-1) @ part.weight.flip(1).T)


def _halves(part: nn.Linear, x: Tensor) -> Tensor:
    half = part.in_features // 2
    return _biased(part, x[..., half:] @ part.weight[:, half:].T + x[..., :half] @ part.weight[:, :half].T)


def _tiles(part: nn.Linear, x: Tensor) -> Tensor:
    """Split-k: eight partial sums, added up one after the other."""
    parts = zip(x.chunk(8, -1), part.weight.chunk(8, 1), strict=True)
    return _biased(part, sum(a @ b.T for a, b in parts))


def _by_rows(part: nn.Linear, x: Tensor) -> Tensor:
    """Each output channel's sum by a plain reduction."""
    return _biased(part, (x.unsqueeze(-2) * part.weight).sum(-1))


def _wide(part: nn.Linear, x: Tensor) -> Tensor:
    return _biased(part, (x.double() @ part.weight.double().T).to(x.dtype))


def _repeated(self: Any, q: Tensor, ks: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    repeat = q.shape[1] // self.num_kv_heads
    return ks.repeat_interleave(repeat, 1), vs.repeat_interleave(repeat, 1)


def _form(weights: Callable[[Tensor], Tensor], *, where: str = "scores") -> Apply:
    """The attention over repeated heads, its softmax as `weights(scores)`."""

    def attend(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        k, v = _repeated(self, q, ks, vs)
        if where == "queries":
            scores = (q * self.scale) @ k.transpose(2, 3)
        elif where == "both":
            scores = (q * self.scale**0.5) @ (k * self.scale**0.5).transpose(2, 3)
        else:
            scores = q @ k.transpose(2, 3) * self.scale
        return weights(self._hide(scores, mask)) @ v

    return attention(attend)


def _shifted(scores: Tensor) -> Tensor:
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def _unshifted(scores: Tensor) -> Tensor:
    """Legal while no score is beyond what exp can hold."""
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def _fused(backend: SDPBackend) -> Apply:
    def attend(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        k, v = _repeated(self, q, ks, vs)
        if mask is None:
            zeros = torch.zeros(1, 1, q.shape[2], ks.shape[2], dtype=q.dtype)
            mask = segments.LayerBottom._hide(self, zeros, None)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)

    return attention(attend)


def _online(original: Any, self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
    """Blocks of four rows with a running maximum, as flash kernels go."""
    k, v = _repeated(self, q, ks, vs)
    scores = self._hide(q @ k.transpose(2, 3) * self.scale, mask)
    top = torch.full_like(scores[..., :1], -1e30)
    total, mixed = torch.zeros_like(top), torch.zeros_like(q)
    for block, rows in zip(scores.split(4, -1), v.split(4, 2), strict=True):
        newest = torch.maximum(top, block.amax(-1, keepdim=True))
        weights, kept = (block - newest).exp(), (top - newest).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        mixed, top = mixed * kept + weights @ rows, newest
    return mixed / total


def _low(value: float) -> Apply:
    """Another number at hidden scores; each is far enough below any score."""

    def hide(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return original(self, scores, mask)
        return torch.where(mask == 0, scores, torch.full_like(scores, value))

    return masking(hide)


def _added(value: float) -> Apply:
    def hide(original: Any, self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
        changed = None if mask is None else torch.where(mask == 0, 0.0, value).to(scores.dtype)
        return original(self, scores, changed)

    return masking(hide)


def _complex(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    half = HEAD // 2
    turn = torch.complex(rope[0][..., :half], rope[1][..., :half]).unsqueeze(1)
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
    return torch.cat((turned.real, turned.imag), -1)


def _by_matrix(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """The halves are turned by a constant matrix product."""
    half, eye = HEAD // 2, torch.eye(HEAD, dtype=x.dtype)
    turn = torch.cat((-eye[:, half:], eye[:, :half]), 1)
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
    return x * cos + (x @ turn) * sin


def _interleaved_throughout(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Permuted to pairs, rotated by pairs, permuted back."""
    half = HEAD // 2
    pairs = x.unflatten(-1, (2, half)).transpose(-1, -2)
    cos, sin = (plane[..., :half].unsqueeze(1) for plane in rope)
    first, second = pairs[..., 0], pairs[..., 1]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _wide_rotation(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return original(self, x.double(), rope.double()).to(x.dtype)


def _norms(function: Callable[[nn.LayerNorm, Tensor], Tensor]) -> Apply:
    def edit(modules: dict[str, nn.Module]) -> None:
        for module in modules.values():
            for part in module.modules():
                if isinstance(part, nn.LayerNorm):
                    part.forward = lambda x, part=part: function(part, x)

    return edited(edit)


def _norm_by_parts(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def _norm_by_moments(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """E[x^2] - E[x]^2: cancels a little more."""
    mean = x.mean(-1, keepdim=True)
    spread = (x.pow(2).mean(-1, keepdim=True) - mean * mean).clamp(min=0) + norm.eps
    return (x - mean) / spread.sqrt() * norm.weight + norm.bias


def _norm_wide(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    parts = (norm.weight.double(), norm.bias.double())
    return F.layer_norm(x.double(), x.shape[-1:], *parts, norm.eps).to(x.dtype)


def _mlp(function: Callable[[Any, Tensor], Tensor]) -> Apply:
    """Another way to the same product of gate and up."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, x: Tensor) -> Tensor:
            from parity.harness.tracer import trace_tensor

            act = function(self, x)
            trace_tensor("act", act, axes="b t f")
            mlp = self.down_proj(act)
            trace_tensor("mlp", mlp, axes="b t d")
            return mlp

        return forward

    return wrapped(segments.GatedMLP, "forward", wrap)


def _one_product(self: Any, x: Tensor) -> Tensor:
    """gate and up as one packed projection."""
    weight = torch.cat((self.up_proj.weight, self.gate_proj.weight))
    up, gate = F.linear(x, weight, torch.cat((self.up_proj.bias, self.gate_proj.bias))).chunk(2, -1)
    return F.silu(up) * gate


def _compiled(patch: pytest.MonkeyPatch) -> None:
    """torch.compile takes the ops apart; what it writes is run eagerly, so that nothing is built."""

    def edit(modules: dict[str, nn.Module]) -> None:
        mlp = at(modules, "seg_1.layer_bottom.mlp")
        mlp.up_proj.forward = torch.compile(mlp.up_proj.forward, backend="aot_eager_decomp_partition")
        norm = at(modules, "seg_1.layer_bottom.ln2")
        norm.forward = torch.compile(norm.forward, backend="aot_eager_decomp_partition")

    edited(edit)(patch)


def _change(name: str, apply: Apply, **about: Any) -> Harmless:
    return Harmless(name, FAMILY, apply, **about)


BOTH: dict[str, Any] = {"on": ("segmented", "segmented:bf16")}
MASKED: dict[str, Any] = {"setting": "batch", "on": ("segmented",)}

CHANGES = [
    _change("sum-reversed", _linear(_reversed), **BOTH),
    _change("sum-in-halves", _linear(_halves), **BOTH),
    _change("sum-in-tiles", _linear(_tiles), **BOTH),
    _change("sum-by-rows", _linear(_by_rows)),
    _change("sum-in-double", _linear(_wide), **BOTH),
    _change("softmax-by-hand", _form(_shifted), **BOTH),
    _change("softmax-unshifted", _form(_unshifted)),
    _change("softmax-of-logarithms", _form(lambda scores: scores.log_softmax(-1).exp()), **BOTH),
    _change("softmax-in-double", _form(lambda scores: scores.double().softmax(-1).to(scores.dtype)), **BOTH),
    _change("scale-on-queries", _form(lambda scores: scores.softmax(-1), where="queries"), **BOTH),
    _change("scale-on-both", _form(lambda scores: scores.softmax(-1), where="both"), **BOTH),
    _change(
        "heads-repeated",
        _form(lambda scores: scores.softmax(-1)),
        setting="chunk",
        on=("segmented:grow", "onnx"),
    ),
    _change("fused-attention", _fused(SDPBackend.MATH), **BOTH),
    _change("flash-attention", _fused(SDPBackend.FLASH_ATTENTION), **BOTH),
    _change("blockwise-attention", attention(_online), setting="batch"),
    _change("mask-minus-infinity", _low(float("-inf")), setting="late", on=("segmented",)),
    _change("mask-1e4", _low(-1e4), **MASKED),
    _change("mask-of-the-smallest", _low(torch.finfo(torch.float32).min), **MASKED),
    _change("mask-added-1000", _added(-1000.0), **MASKED),
    _change("mask-added-1e9", _added(-1e9), **MASKED),
    _change("rope-complex", rotation(_complex)),
    _change("rope-by-matrix", rotation(_by_matrix), **BOTH),
    _change("rope-through-pairs", rotation(_interleaved_throughout), **BOTH),
    _change("rope-in-double", rotation(_wide_rotation), **BOTH),
    _change("norm-by-parts", _norms(_norm_by_parts), **BOTH),
    _change("norm-by-moments", _norms(_norm_by_moments)),
    _change("norm-in-double", _norms(_norm_wide), **BOTH),
    _change("silu-fused", _mlp(lambda s, x: F.silu(s.up_proj(x)) * s.gate_proj(x)), **BOTH),
    _change("silu-by-exp", _mlp(lambda s, x: s.up_proj(x) / (1 + (-s.up_proj(x)).exp()) * s.gate_proj(x))),
    _change("gate-and-up-packed", _mlp(_one_product), **BOTH),
    _change("compiled", _compiled),
]
