"""Segmentation and export: what is loaded where, handed to whom, frozen or left in training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.models.klm import segments

from ..patches import Modules, at, edited, fed, weights, wrapped
from ..plant import MATRIX, WEIGHTS, Plant

FAMILY = "cutting"


def _bottoms_exchanged(modules: Modules) -> None:
    one, two = modules["seg_0"].layer_bottom, modules["seg_1"].layer_bottom
    modules["seg_0"].layer_bottom, modules["seg_1"].layer_bottom = two, one


def _heads_exchanged(modules: Modules) -> None:
    one, two = modules["seg_0"].layer_head, modules["seg_1"].layer_head
    modules["seg_0"].layer_head, modules["seg_1"].layer_head = two, one


def _bottom_of_the_next(modules: Modules) -> None:
    modules["seg_1"].layer_bottom.load_state_dict(modules["seg_2"].layer_bottom.state_dict())


def _mlps_exchanged(modules: Modules) -> None:
    one, two = at(modules, "seg_1.layer_bottom"), at(modules, "seg_2.layer_bottom")
    one.mlp, two.mlp = two.mlp, one.mlp


def _tail_norm(modules: Modules) -> None:
    """The last norm of the model is loaded with the one before the last layer's MLP."""
    tail = modules["seg_tail"]
    tail.final_ln.load_state_dict(tail.layer_bottom.ln2.state_dict())


def _residual_after_norm(original: Any) -> Any:
    def forward(self: Any, residual: Tensor, *rest: Any) -> Tensor:
        return original(self, F.layer_norm(residual, residual.shape[-1:]), *rest)

    return forward


def _without_residual(original: Any) -> Any:
    def forward(self: Any, residual: Tensor, *rest: Any) -> Tensor:
        return original(self, residual * 0, *rest)

    return forward


def _norm_before_addition(original: Any) -> Any:
    """The second norm reads the layer's input: attention and MLP side by side."""

    def forward(self: Any, residual: Tensor, *rest: Any) -> Tensor:
        inner, self.ln2 = self.ln2, _Reading(self.ln2, residual)
        try:
            return original(self, residual, *rest)
        finally:
            self.ln2 = inner

    return forward


class _Reading(torch.nn.Module):
    """A norm that reads something else than what it is given."""

    def __init__(self, norm: torch.nn.Module, instead: Tensor) -> None:
        super().__init__()
        self.norm, self.instead = norm, instead

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.instead)


def _dropout(modules: Modules) -> None:
    mlp = at(modules, "seg_1.layer_bottom.mlp")
    inner = mlp.down_proj.forward
    generator = torch.Generator().manual_seed(3)

    def forward(x: Tensor) -> Tensor:
        y = inner(x)
        return y * (torch.rand(y.shape, generator=generator) > 0.1).to(y.dtype) / 0.9

    mlp.down_proj.forward = forward


def _skipped(modules: Modules) -> None:
    at(modules, "seg_2.layer_bottom.mlp.down_proj").forward = lambda x: x[..., :128] * 0


def _frozen(modules: Modules) -> None:
    """A branch that the example took stands in the graph as a constant."""
    projection = at(modules, "seg_0.layer_bottom.out_proj")
    inner, kept = projection.forward, {}

    def forward(x: Tensor) -> Tensor:
        kept.setdefault("first", inner(x))
        return kept["first"] if kept["first"].shape == x.shape else inner(x)

    projection.forward = forward


def _rows_late(modules: Modules) -> None:
    """The head reads row n instead of n - 1."""
    tail = modules["seg_tail"]
    inner = tail.lm_head.forward
    tail.lm_head.forward = lambda x: inner(torch.roll(x, -1, dims=1))


def _embedding_scaled(modules: Modules) -> None:
    modules["seg_head"].embedding["word_embeddings"].weight.mul_(128**0.5)


def _embedding_shift(modules: Modules) -> None:
    weight = modules["seg_head"].embedding["word_embeddings"].weight
    weight.copy_(weight.roll(1, dims=0).clone())


def _final_norm_left_out(modules: Modules) -> None:
    modules["seg_tail"].final_ln.forward = lambda x: x


def _post_norm(modules: Modules) -> None:
    """The second norm comes after its MLP."""
    bottom = at(modules, "seg_2.layer_bottom")
    bottom.ln2.forward = lambda x: x


def _code(name: str, born: str, apply: Any, says: tuple[str, ...], **about: Any) -> Plant:
    about = {"also": MATRIX, **about}
    return Plant(f"cut-{name}", FAMILY, born, apply, says, **about)


def _load(name: str, born: str, edit: Any, says: tuple[str, ...], **about: Any) -> Plant:
    about = {"on": WEIGHTS, "also": MATRIX, **about}
    return Plant(f"cut-{name}", FAMILY, born, weights(edit), says, **about)


BOTTOM = segments.LayerBottom
WRONG_WEIGHTS = "another layer|layer ?\\d|weight|exchang|swap"

PLANTS = [
    _load("bottoms-exchanged", "layer0.o", _bottoms_exchanged, (WRONG_WEIGHTS,)),
    _load("heads-exchanged", "layer1.norm1", _heads_exchanged, (WRONG_WEIGHTS,)),
    _load("bottom-of-the-next", "layer1.o", _bottom_of_the_next, (WRONG_WEIGHTS,)),
    _load("mlps-exchanged", "layer1.act", _mlps_exchanged, (WRONG_WEIGHTS,)),
    _load("last-norm-of-another", "final", _tail_norm, ("norm|weight",)),
    _load(
        "embedding-scaled", "embed", _embedding_scaled, ("scale|times|factor|sqrt",), on=("segmented", "onnx")
    ),
    _load("embedding-shifted", "embed", _embedding_shift, ("id|row|shift|off by|by 1|token",)),
    _code(
        "residual-after-norm",
        "layer0.mid",
        wrapped(BOTTOM, "forward", _residual_after_norm),
        ("residual|norm",),
    ),
    _code(
        "residual-left-out",
        "layer0.mid",
        wrapped(BOTTOM, "forward", _without_residual),
        ("residual|without|missing|left out|\\bo\\b",),
    ),
    _code(
        "norm-reads-the-input",
        "layer0.norm2",
        wrapped(BOTTOM, "forward", _norm_before_addition),
        ("residual|input|addition|without",),
    ),
    _code(
        "dropout-active",
        "layer1.mlp",
        edited(_dropout),
        ("dropout|train|zero",),
        on=("segmented", "prefilled"),
        also=(),
    ),
    _code("mlp-skipped", "layer2.mlp", edited(_skipped), ("zero|skip|missing|by 0|left out",)),
    _code(
        "branch-frozen",
        "layer0.o@1",
        edited(_frozen),
        ("step|frozen|constant|stale|earlier|before",),
        on=("segmented",),
        setting="one",
        also=(),
    ),
    _code(
        "head-reads-another-row",
        "logits",
        edited(_rows_late),
        ("token|row|position|shift|roll|by 1",),
        setting="chunk",
        on=("segmented:grow", "segmented:recompute"),
        also=(),
    ),
    _code(
        "last-norm-left-out",
        "final",
        edited(_final_norm_left_out),
        ("norm|identity|unnormal|left out|missing|skip",),
    ),
    _code(
        "second-norm-left-out",
        "layer2.norm2",
        edited(_post_norm),
        ("norm|identity|mid|left out|missing|skip",),
    ),
    _code(
        "caches-bound-crosswise",
        "layer1.attn",
        fed("seg_1", {"ks": "layer1.vs", "vs": "layer1.ks"}),
        ("key|value|swap|exchang|cross",),
        also=("segmented:grow",),
    ),
    _code(
        "residual-of-another-layer",
        "layer2.mid",
        fed("seg_2", {"residual": "layer1.residual"}),
        ("layer1|another layer|residual|earlier",),
        also=("segmented:grow",),
    ),
    _code(
        "queries-of-another-layer",
        "layer3.attn",
        fed("seg_tail", {"q": "layer2.q"}),
        ("layer2|another layer|q",),
        also=("segmented:grow",),
    ),
]
