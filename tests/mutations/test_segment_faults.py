"""One fault planted into the torch segments: it must be caught, and located at its tap and step.

Numbers such as M01 are those of the project's list of mutation ideas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity.models.klm import segments

pytestmark = pytest.mark.slow

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """How it is planted and where it is born; `scenario` is one that reaches it."""

    plant: Plant
    tap: str
    step: int = 0
    scenario: str = "short"
    cand: str = "segmented"


def _replace(owner: type, name: str, wrap: Callable[[Any], Any]) -> Plant:
    return lambda patch: patch.setattr(owner, name, wrap(getattr(owner, name)))


def _interleaved(_: Any) -> Any:
    def rotated(self: Any, x: Tensor, rope: Tensor) -> Tensor:
        cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    return rotated


def _only_keys(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], Any]:
    """Apply `change(x, rope)` to the rotary rows of keys (fewer heads than queries)."""

    def wrap(original: Any) -> Any:
        def rotated(self: Any, x: Tensor, rope: Tensor) -> Tensor:
            return original(self, x, change(x, rope) if x.shape[1] == 2 else rope)

        return rotated

    return wrap


def _on_rope(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda original: lambda self, x, rope: original(self, x, change(rope))


def _scaled(factor: float) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        def attention(self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
            return original(self, q * factor, ks, vs, mask)

        return attention

    return wrap


def _tiled(original: Any) -> Any:
    """Query head h reads kv head h % G instead of h // (H / G)."""

    def attention(self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        groups = self.num_kv_heads
        order = [h for g in range(groups) for h in range(g, q.shape[1], groups)]
        back = [order.index(h) for h in range(q.shape[1])]
        return original(self, q[:, order], ks, vs, mask)[:, back]

    return attention


def _low_softmax(original: Any) -> Any:
    def attention(self: Any, q: Tensor, ks: Tensor, vs: Tensor, mask: Tensor | None) -> Tensor:
        return original(self, q.bfloat16().float(), ks, vs, mask)

    return attention


def _future(original: Any) -> Any:
    """New rows of one chunk see each other's future."""
    return lambda self, scores, mask: scores if mask is None else scores + mask


def _mask_off_by_one(original: Any) -> Any:
    def hide(self: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
        return original(self, scores, None if mask is None else torch.roll(mask, 1, dims=-1))

    return hide


def _gate(original: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.up_proj, self.gate_proj = self.gate_proj, self.up_proj
        try:
            return original(self, x)
        finally:
            self.up_proj, self.gate_proj = self.gate_proj, self.up_proj

    return forward


def _residual_after_norm(original: Any) -> Any:
    def forward(self: Any, residual: Tensor, *rest: Any) -> Tensor:
        return original(self, torch.nn.functional.layer_norm(residual, residual.shape[-1:]), *rest)

    return forward


def _edited(edit: Callable[[dict[str, nn.Module]], None]) -> Plant:
    """Change the finished segments: weights, constants, order."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from parity.models.klm.model import KLMModel

        original = KLMModel.split

        def split(self: KLMModel, state: Any, *, masked: bool = False) -> dict[str, nn.Module]:
            built = original(self, state, masked=masked)
            with torch.no_grad():
                edit(built)
            return built

        patch.setattr(KLMModel, "split", split)

    return plant


def _eps(segment: str) -> Callable[[dict[str, nn.Module]], None]:
    def edit(built: dict[str, nn.Module]) -> None:
        built[segment].layer_bottom.ln2.eps = 1e-3

    return edit


def _swap_bottoms(built: dict[str, nn.Module]) -> None:
    one, two = built["seg_0"].layer_bottom, built["seg_1"].layer_bottom
    built["seg_0"].layer_bottom, built["seg_1"].layer_bottom = two, one


def _no_bias(built: dict[str, nn.Module]) -> None:
    built["seg_1"].layer_head.ln1.bias.add_(0.01)


def _one_weight_row(built: dict[str, nn.Module]) -> None:
    built["seg_2"].layer_bottom.mlp.down_proj.weight[17] *= 1.01


def _transposed(built: dict[str, nn.Module]) -> None:
    weight = built["seg_1"].layer_bottom.out_proj.weight
    weight.copy_(weight.T.clone())


def _vocabulary_swap(built: dict[str, nn.Module]) -> None:
    weight = built["seg_tail"].lm_head.weight
    weight[[97, 98]] = weight[[98, 97]].clone()


def _embedding_shift(built: dict[str, nn.Module]) -> None:
    weight = built["seg_head"].embedding["word_embeddings"].weight
    weight.copy_(weight.roll(1, dims=0).clone())


FAULTS: dict[str, Fault] = {
    "M01-interleaved-rope": Fault(_replace(segments.LayerHead, "_rotated", _interleaved), "layer0.q"),
    "M03-sign-on-keys": Fault(
        _replace(
            segments.LayerHead, "_rotated", _only_keys(lambda x, rope: torch.stack((rope[0], -rope[1])))
        ),
        "layer0.k",
    ),
    "M07-cos-sin-swapped": Fault(
        _replace(segments.LayerHead, "_rotated", _on_rope(lambda rope: rope.flip(0))), "layer0.q"
    ),
    "M09-rope-rounded": Fault(
        _replace(segments.LayerHead, "_rotated", _on_rope(lambda rope: rope.bfloat16().float())), "layer0.q"
    ),
    "M23-future-leak": Fault(
        _replace(segments.LayerBottom, "_hide", _future),
        "layer0.attn",
        cand="segmented:grow",
        scenario="full",
    ),
    "mask-off-by-one": Fault(
        _replace(segments.LayerBottom, "_hide", _mask_off_by_one), "layer0.attn", scenario="batch3"
    ),
    "M35-scale-of-hidden-size": Fault(
        _replace(segments.LayerBottom, "_attention", _scaled(0.5)), "layer0.attn"
    ),
    "M37-low-precision-scores": Fault(
        _replace(segments.LayerBottom, "_attention", _low_softmax), "layer0.attn"
    ),
    "gqa-tiled": Fault(_replace(segments.LayerBottom, "_attention", _tiled), "layer0.attn"),
    "M73-bottoms-swapped": Fault(_edited(_swap_bottoms), "layer0.o"),
    "M75-residual-after-norm": Fault(
        _replace(segments.LayerBottom, "forward", _residual_after_norm), "layer0.mid"
    ),
    "M87-eps": Fault(_edited(_eps("seg_1")), "layer1.norm2"),
    "M91-norm-bias": Fault(_edited(_no_bias), "layer2.norm1"),
    "M93-silu-on-gate": Fault(_replace(segments.GatedMLP, "forward", _gate), "layer0.act"),
    "one-weight-row": Fault(_edited(_one_weight_row), "layer2.mlp"),
    "transposed-weight": Fault(_edited(_transposed), "layer1.o"),
    "two-logits-swapped": Fault(_edited(_vocabulary_swap), "logits"),
    "M131-embedding-shift": Fault(_edited(_embedding_shift), "embed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_segment_is_caught_and_located(
    name: str, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    comparison = hold(fault.cand, scenario=fault.scenario)
    assert comparison.verdict == "divergence"
    assert comparison.first is not None
    assert (comparison.first.tap, comparison.first.step) == (fault.tap, fault.step)
    assert (comparison.culprits[0].tap, comparison.culprits[0].step) == (fault.tap, fault.step)
