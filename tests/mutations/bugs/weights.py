"""Norms, activations, weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.models.klm import segments

from ..patches import Modules, at, edited, weights, wrapped
from ..plant import MATRIX, WEIGHTS, Plant

FAMILY = "weights"
HEAD = 32


def _eps(path: str, value: float) -> Callable[[Modules], None]:
    def edit(modules: Modules) -> None:
        at(modules, path).eps = value

    return edit


def _norm(path: str, function: Callable[[Any, Tensor], Tensor]) -> Callable[[Modules], None]:
    def edit(modules: Modules) -> None:
        norm = at(modules, path)
        norm.forward = lambda x: function(norm, x)

    return edit


def _rms(norm: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def _plus_one(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], 1 + norm.weight, norm.bias, norm.eps)


def _unbiased(norm: Any, x: Tensor) -> Tensor:
    spread = (x.var(-1, keepdim=True) + norm.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / spread * norm.weight + norm.bias


def _eps_outside(norm: Any, x: Tensor) -> Tensor:
    """Added to the deviation instead of the variance."""
    spread = x.var(-1, keepdim=True, unbiased=False).sqrt() + 1e-3
    return (x - x.mean(-1, keepdim=True)) / spread * norm.weight + norm.bias


def _in_bf16(norm: Any, x: Tensor) -> Tensor:
    parts = (norm.weight.bfloat16(), norm.bias.bfloat16())
    return F.layer_norm(x.bfloat16(), x.shape[-1:], *parts, norm.eps).to(x.dtype)


def _over_two_halves(norm: Any, x: Tensor) -> Tensor:
    """Each half of the channels is normalized for itself."""
    halves = F.layer_norm(x.unflatten(-1, (2, -1)), (x.shape[-1] // 2,), eps=norm.eps).flatten(-2)
    return halves * norm.weight + norm.bias


def _mlp(function: Callable[[Any, Tensor], Tensor]) -> Any:
    """Another product of gate and up; the rest as it is."""

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


def _activation(function: Callable[[Tensor], Tensor]) -> Any:
    return _mlp(lambda self, x: function(self.up_proj(x)) * self.gate_proj(x))


def _weight(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[Modules], None]:
    def edit(modules: Modules) -> None:
        name, _, leaf = path.rpartition(".")
        held = getattr(at(modules, name), leaf)
        held.copy_(change(held.clone()))

    return edit


def _row(weight: Tensor) -> Tensor:
    weight[17] *= 1.01
    return weight


def _tile(weight: Tensor) -> Tensor:
    weight[32:48, 16:32] = 0
    return weight


def _tiles_exchanged(weight: Tensor) -> Tensor:
    weight[:16, :16], weight[16:32, :16] = weight[16:32, :16].clone(), weight[:16, :16].clone()
    return weight


def _one_value(weight: Tensor) -> Tensor:
    weight[5, 7] = -weight[5, 7] * 40
    return weight


def _nan(weight: Tensor) -> Tensor:
    weight[3, 3] = float("nan")
    return weight


def _interleaved_rows(weight: Tensor) -> Tensor:
    """Rows of each head as pairs where the rotation takes halves."""
    return weight.unflatten(0, (-1, 2, HEAD // 2)).transpose(1, 2).reshape(weight.shape)


def _by_group(weight: Tensor) -> Tensor:
    """Query heads in the order of the other grouping."""
    return weight.unflatten(0, (2, 2, HEAD)).transpose(0, 1).reshape(weight.shape)


def _pairs_exchanged(weight: Tensor) -> Tensor:
    """Neighbouring columns in each other's place: nibbles of a byte in the wrong order."""
    return weight.unflatten(1, (-1, 2)).flip(2).reshape(weight.shape)


def _vocabulary(weight: Tensor) -> Tensor:
    weight[[97, 98]] = weight[[98, 97]].clone()
    return weight


def _exchange(one: str, two: str) -> Callable[[Modules], None]:
    """Two modules' tensors in each other's place."""

    def edit(modules: Modules) -> None:
        left, right = at(modules, one), at(modules, two)
        kept = {name: value.clone() for name, value in left.state_dict().items()}
        left.load_state_dict(right.state_dict())
        right.load_state_dict(kept)

    return edit


def _packed_wrongly(modules: Modules) -> None:
    """gate|up read as up|gate in the second half of a packed tensor."""
    mlp = at(modules, "seg_1.layer_bottom.mlp")
    half = mlp.up_proj.weight.shape[0] // 2
    for leaf in ("weight", "bias"):
        up, gate = getattr(mlp.up_proj, leaf), getattr(mlp.gate_proj, leaf)
        kept = up[half:].clone()
        up[half:] = gate[:half]
        gate[:half] = kept


def _layers_exchanged(modules: Modules) -> None:
    _exchange("seg_0.layer_head", "seg_1.layer_head")(modules)
    _exchange("seg_1.layer_bottom", "seg_2.layer_bottom")(modules)


def _bias_by_ranks(modules: Modules) -> None:
    """Added on each of two ranks."""
    at(modules, "seg_1.layer_bottom.out_proj").bias.mul_(2)


def _code(name: str, born: str, apply: Any, says: tuple[str, ...], **about: Any) -> Plant:
    return Plant(name, FAMILY, born, apply, says, also=MATRIX, **about)


def _of(name: str, born: str, edit: Any, says: tuple[str, ...], **about: Any) -> Plant:
    about = {"on": WEIGHTS, "also": MATRIX, **about}
    return Plant(f"weight-{name}", FAMILY, born, weights(edit), says, **about)


PLANTS = [
    _code(
        "norm-eps-1e-3", "layer1.norm2", edited(_eps("seg_1.layer_bottom.ln2", 1e-3)), ("eps", "1e-0?3|0.001")
    ),
    _code("norm-eps-1e-6", "layer1.norm2", edited(_eps("seg_1.layer_bottom.ln2", 1e-6)), ("eps",)),
    _code("norm-eps-of-the-last", "final", edited(_eps("seg_tail.final_ln", 1e-2)), ("eps",)),
    _code("norm-without-mean", "layer1.norm1", edited(_norm("seg_0.layer_head.ln1", _rms)), ("rms|mean",)),
    _code(
        "norm-weight-plus-one",
        "layer2.norm2",
        edited(_norm("seg_2.layer_bottom.ln2", _plus_one)),
        ("plus one|1 added",),
    ),
    _code(
        "norm-unbiased",
        "layer1.norm1",
        edited(_norm("seg_0.layer_head.ln1", _unbiased)),
        ("unbiased|n - 1|n-1|bessel|variance",),
    ),
    _code(
        "norm-eps-outside", "layer2.norm2", edited(_norm("seg_2.layer_bottom.ln2", _eps_outside)), ("eps",)
    ),
    _code(
        "norm-in-bf16", "layer0.norm1", edited(_norm("seg_head.layer_head.ln1", _in_bf16)), ("bf16|bfloat16",)
    ),
    _code(
        "norm-of-halves",
        "layer3.norm2",
        edited(_norm("seg_tail.layer_bottom.ln2", _over_two_halves)),
        ("norm|half|halves|group",),
    ),
    _code(
        "gate-and-up-crossed",
        "layer0.act",
        _mlp(lambda s, x: F.silu(s.gate_proj(x)) * s.up_proj(x)),
        ("gate|up|swap|exchang",),
    ),
    _code("activation-gelu", "layer0.act", _activation(F.gelu), ("gelu",)),
    _code(
        "activation-gelu-tanh", "layer0.act", _activation(lambda x: F.gelu(x, approximate="tanh")), ("gelu",)
    ),
    _code(
        "activation-quick",
        "layer0.act",
        _activation(lambda x: x * torch.sigmoid(1.702 * x)),
        ("gelu|1.702|quick",),
    ),
    _code("activation-relu", "layer0.act", _activation(F.relu), ("relu",)),
    _code(
        "activation-left-out",
        "layer0.act",
        _activation(lambda x: x),
        ("linear|identity|without|no activation|left out|missing",),
    ),
    _code(
        "activation-after-product",
        "layer0.act",
        _mlp(lambda s, x: F.silu(s.up_proj(x) * s.gate_proj(x))),
        ("product|after|silu",),
    ),
    _code("activation-hard", "layer0.act", _activation(F.hardswish), ("hard",)),
    _of("norm-bias-lost", "layer2.norm1", _weight("seg_1.layer_head.ln1.bias", torch.zeros_like), ("bias",)),
    _of(
        "norm-weight-lost",
        "layer1.norm2",
        _weight("seg_1.layer_bottom.ln2.weight", torch.ones_like),
        ("weight|gain|scale",),
    ),
    _of("bias-lost", "layer3.v", _weight("seg_2.layer_head.v_proj.bias", torch.zeros_like), ("bias",)),
    _of("bias-on-two-ranks", "layer1.o", _bias_by_ranks, ("bias", "twice|double|2")),
    _of(
        "one-row",
        "layer2.mlp",
        _weight("seg_2.layer_bottom.mlp.down_proj.weight", _row),
        ("row|channel|weight|scale",),
    ),
    _of(
        "one-value",
        "layer1.mlp",
        _weight("seg_1.layer_bottom.mlp.down_proj.weight", _one_value),
        ("weight off by .* at",),
    ),
    _of(
        "tile-lost",
        "layer0.o",
        _weight("seg_0.layer_bottom.out_proj.weight", _tile),
        ("row|channel|weight|tile",),
    ),
    _of(
        "tiles-exchanged",
        "layer3.o",
        _weight("seg_tail.layer_bottom.out_proj.weight", _tiles_exchanged),
        ("row|channel|weight|tile",),
    ),
    _of(
        "not-a-number",
        "layer2.act",
        _weight("seg_2.layer_bottom.mlp.gate_proj.weight", _nan),
        ("nan|finite",),
    ),
    _of(
        "transposed", "layer1.o", _weight("seg_1.layer_bottom.out_proj.weight", lambda w: w.T), ("transpos",)
    ),
    _of(
        "scaled",
        "layer2.act",
        _weight("seg_2.layer_bottom.mlp.gate_proj.weight", lambda w: w * 1.001),
        ("scale|times|factor|1.001",),
    ),
    _of(
        "vocabulary-scaled",
        "logits",
        _weight("seg_tail.lm_head.weight", lambda w: w * 1.0005),
        ("scale|times|factor|1.0005",),
    ),
    _of(
        "negated",
        "layer0.mlp",
        _weight("seg_0.layer_bottom.mlp.down_proj.weight", lambda w: -w),
        ("sign|negat",),
    ),
    _of(
        "rows-as-pairs",
        "layer2.q",
        _weight("seg_1.layer_head.q_proj.weight", _interleaved_rows),
        ("interleav|pair|order|permut|d slices",),
    ),
    _of(
        "heads-by-group",
        "layer1.q",
        _weight("seg_0.layer_head.q_proj.weight", _by_group),
        ("head|group|order|permut",),
    ),
    _of(
        "pairs-exchanged",
        "layer1.mlp",
        _weight("seg_1.layer_bottom.mlp.down_proj.weight", _pairs_exchanged),
        ("order|pair|permut|nibble|column",),
    ),
    _of(
        "two-words-exchanged",
        "logits",
        _weight("seg_tail.lm_head.weight", _vocabulary),
        ("order|exchang|swap|permut|row",),
    ),
    _of(
        "keys-for-values",
        "layer1.k",
        _exchange("seg_0.layer_head.k_proj", "seg_0.layer_head.v_proj"),
        ("v_proj|value|swap|exchang|k and v|layer1.v",),
    ),
    _of(
        "up-for-gate",
        "layer1.act",
        _exchange("seg_1.layer_bottom.mlp.up_proj", "seg_1.layer_bottom.mlp.gate_proj"),
        ("gate|up|swap|exchang",),
    ),
    _of("packed-wrongly", "layer1.act", _packed_wrongly, ("gate|up|pack|half|halves|order",)),
    _of("layers-exchanged", "layer1.norm1", _layers_exchanged, ("layer ?2|another layer|weight",)),
    _of("embedding-for-head", "logits", lambda modules: _tied(modules), ("tied|embedding|weight",)),
]


def _tied(modules: Modules) -> None:
    """The embedding's rows in the place of a head that is not tied to it."""
    head, table = modules["seg_tail"].lm_head, modules["seg_head"].embedding["word_embeddings"]
    head.weight.copy_(table.weight.roll(1, 0))
