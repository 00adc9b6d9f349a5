"""Mistakes of a mask over the slots of a cache are named: hidden slots hold the candidate's own leavings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import parity
from parity.harness.explaining import CATALOGUE
from parity.models.klm import segments

Hide = Callable[[Tensor, Tensor], Tensor]


def hidden(mask: Tensor) -> Tensor:
    return mask < -1.0


def inverted(scores: Tensor, mask: Tensor) -> Tensor:
    """Where nothing was hidden all would be: such rows stay as they are."""
    other = hidden(mask)
    every = ~other.any(-1, keepdim=True)
    return torch.where(every, scores, scores.masked_fill(~other, -math.inf))


BUGS: dict[str, Hide] = {
    "mask of slots missing": lambda scores, mask: scores,
    "mask of slots too weak": lambda scores, mask: scores - 5.0 * hidden(mask),
    "mask of slots as number": lambda scores, mask: scores + (~hidden(mask)).float(),
    "mask of slots inverted": inverted,
    "mask of slots moved": lambda scores, mask: scores + mask.roll(1, -1),
    "mask of another sequence": lambda scores, mask: scores + mask[:1],
}


ONE, *MORE = BUGS


@pytest.mark.parametrize("name", [ONE, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_mistake_of_a_mask_over_slots_is_named(name, tmp_path, monkeypatch):
    """Three prompts of different lengths in a window of 64 rows: some slots are empty, some hold padding."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    original = segments.LayerBottom._hide

    def hide(self, scores, mask):
        return original(self, scores, mask) if mask is None else BUGS[name](scores, mask)

    monkeypatch.setattr(segments.LayerBottom, "_hide", hide)
    case = {"scenario": "batch3", "weights": "random:0", "steps": 2, "tol": "fp32", "report": False}
    found = parity.run("torch", ["segmented"], out=tmp_path / "out", **case)["segmented"]
    (explained,) = parity.explain(tmp_path / "out" / "trace.h5", tap="layer0.attn")
    assert explained.explanations[0].kinds == (name,)
    assert any(cause.tap == "layer0.attn" for cause in found.causes)


def test_every_hypothesis_about_slots_has_a_test():
    assert set(BUGS) == {h.name for h in CATALOGUE if h.family == "slots"}
