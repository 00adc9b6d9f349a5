"""Positions and rotary embedding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from parity.models.klm import segments
from parity.targets.torch_segments import RopeTable

from ..patches import at, edited, rope_positions, rope_rows, rotation, wrapped
from ..plant import MATRIX, Apply, Plant

FAMILY = "positions"
KV_HEADS, HEAD = 2, 32
PROMPT = 10


def _interleaved(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def _interleaved_tables(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Adjacent pairs, with the tables laid out for them."""
    cos, sin = (plane[..., : HEAD // 2].repeat_interleave(2, -1).unsqueeze(1) for plane in rope)
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def _sign(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return original(self, x, torch.stack((rope[0], -rope[1])))


def _sign_on_keys(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return _sign(original, self, x, rope) if x.shape[1] == KV_HEADS else original(self, x, rope)


def _twice_on_queries(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    once = original(self, x, rope)
    return once if x.shape[1] == KV_HEADS else original(self, once, rope)


def _swapped(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return original(self, x, rope.flip(0))


def _rounded(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return original(self, x, rope.bfloat16().to(rope.dtype))


def _partial(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Only the first half of the channels is rotated, as where a rotary share of 0.5 was configured."""
    half = HEAD // 2
    cos, sin = rope[0].unsqueeze(1)[..., :half], rope[1].unsqueeze(1)[..., :half]
    x1, x2 = x[..., :half].chunk(2, -1)
    turned = x[..., :half] * cos + torch.cat((-x2, x1), -1) * sin
    return torch.cat((turned, x[..., half:]), -1)


def _quarters(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Rotated by quarters: a coefficient of 4 where 2 is meant."""
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
    a, b, c, d = x.chunk(4, -1)
    return x * cos + torch.cat((-b, a, -d, c), -1) * sin


def _unturned_halves(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """(second, first) without the minus."""
    cos, sin = rope[0].unsqueeze(1), rope[1].unsqueeze(1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((second, first), -1) * sin


def _first_row_for_all(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    return original(self, x, rope[:, :, :1].expand_as(rope))


def _newest_row_twice(original: Any, self: Any, x: Tensor, rope: Tensor) -> Tensor:
    """Rows of a chunk begin one late and the last is used twice."""
    return original(self, x, torch.cat((rope[:, :, 1:], rope[:, :, -1:]), 2))


def _values_rotated(original: Any) -> Any:
    def forward(self: Any, residual: Tensor, rope: Tensor) -> Any:
        residual, q, k, v = original(self, residual, rope)
        return residual, q, k, self._rotated(v, rope)

    return forward


def _unrotated_keys(modules: dict[str, Any]) -> None:
    head = at(modules, "seg_1.layer_head")
    rotated = head._rotated
    head._rotated = lambda x, rope: x if x.shape[1] == KV_HEADS else rotated(x, rope)


def _one_late_in_one_layer(modules: dict[str, Any]) -> None:
    """Layer 2 alone keeps a position of its own, one behind."""
    head = at(modules, "seg_1.layer_head")
    rotated, kept = head._rotated, {}

    def late(x: Tensor, rope: Tensor) -> Tensor:
        kind = x.shape[1]
        before = kept.get(kind, rope)
        kept[kind] = rope
        return rotated(x, before if before.shape == rope.shape else rope)

    head._rotated = late


def _after_prompt(offset: int) -> Apply:
    return rope_positions(lambda at: np.where(at >= PROMPT, at + offset, at))


def _base(base: float, *, dtype: type = np.float32) -> Apply:
    """Rotary rows of another base, or of angles in another number format."""

    def rows(_: np.ndarray, positions: np.ndarray) -> np.ndarray:
        frequency = (1.0 / base ** (np.arange(0, HEAD, 2) / HEAD)).astype(dtype)
        angle = np.maximum(positions, 0)[..., None].astype(dtype) * frequency
        angle = np.concatenate([angle, angle], -1).astype(np.float64)
        return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)

    return rope_rows(rows)


def _stale_after_reset(patch: pytest.MonkeyPatch) -> None:
    original = RopeTable.__call__
    seen = {"newest": -1, "reset": 0}

    def rows(self: Any, positions: np.ndarray) -> np.ndarray:
        if positions.max() < seen["newest"]:
            seen["reset"] = seen["newest"] + 1
        seen["newest"] = int(positions.max())
        return original(self, positions + seen["reset"])

    patch.setattr(RopeTable, "__call__", rows)


def _bf16(rows: np.ndarray, _: np.ndarray) -> np.ndarray:
    return rows.astype(ml_dtypes.bfloat16).astype(rows.dtype)


def _half(rows: np.ndarray, _: np.ndarray) -> np.ndarray:
    return rows.astype(np.float16).astype(rows.dtype)


def _rope(name: str, change: Any, says: tuple[str, ...], born: str = "layer0.q", **about: Any) -> Plant:
    about = {"also": MATRIX, **about}
    return Plant(f"rope-{name}", FAMILY, born, rotation(change), says, **about)


def _table(name: str, apply: Apply, says: tuple[str, ...], born: str = "rope", **about: Any) -> Plant:
    about = {"on": ("segmented", "onnx"), "also": ("segmented:grow", "segmented:bf16"), **about}
    return Plant(f"rope-{name}", FAMILY, born, apply, says, **about)


PLANTS = [
    _rope("interleaved", _interleaved, ("interleav|pair|adjacent",)),
    _rope("interleaved-tables", _interleaved_tables, ("interleav|pair|adjacent",)),
    _rope("sign", _sign, ("sign|minus|negat|opposite|backward",)),
    _rope("sign-on-keys", _sign_on_keys, ("sign|minus|negat|opposite|backward",), "layer0.k"),
    _rope("twice-on-queries", _twice_on_queries, ("twice|double",)),
    _rope("cos-sin-swapped", _swapped, ("cos", "sin")),
    _rope("rows-rounded", _rounded, ("bf16|bfloat16",)),
    _rope("partial", _partial, ("partial|part of|half of|first .* channels|share",)),
    _rope("by-quarters", _quarters, ("quarter|coefficient",)),
    _rope("halves-without-minus", _unturned_halves, ("sign|minus",)),
    _rope(
        "first-row-for-all",
        _first_row_for_all,
        ("position|row|left out",),  # the first chunk's first row turns nothing
        setting="chunk",
        on=("segmented:grow", "segmented"),
        also=(),
        where={"segmented": "layer0.q", "segmented:grow": "layer0.q"},
    ),
    _rope(
        "chunk-one-late",
        _newest_row_twice,
        ("position|later|off by|shift",),
        setting="chunk",
        on=("segmented:grow", "segmented"),
        also=(),
    ),
    Plant(
        "rope-on-values",
        FAMILY,
        "layer0.v",
        wrapped(segments.LayerHead, "forward", _values_rotated),
        ("rotat|rope|rotary",),
        also=MATRIX,
    ),
    Plant(
        "rope-missing-on-one-layers-keys",
        FAMILY,
        "layer2.k",
        edited(_unrotated_keys),
        ("unrotated|not rotated|without rot|no rot|missing|left out",),
        also=MATRIX,
    ),
    Plant(
        "rope-one-layer-one-step-behind",
        FAMILY,
        "layer2.q",
        edited(_one_late_in_one_layer),
        ("position|earlier|stale|step|behind",),
        on=("segmented",),
    ),
    _table("table-rounded", rope_rows(_bf16), ("bf16|bfloat16",)),
    _table("table-in-half", rope_rows(_half), ("fp16|float16|half",)),
    _table("base-5e5", _base(5e5), ("base|theta",)),
    _table("angles-in-half", _base(1e4, dtype=np.float16), ("fp16|float16|half",)),
    _table(
        "one-late-after-the-prompt",
        _after_prompt(1),
        ("position", r"\+ ?1|one|off by 1|by 1|later"),
        "rope@1",
    ),
    _table("one-early-after-the-prompt", _after_prompt(-1), ("position|step",), "rope@1"),
    _table(
        "frozen-after-the-prompt",
        rope_positions(lambda at: np.minimum(at, PROMPT)),
        ("step|position",),
        "rope@2",
    ),
    _table("stretched", rope_positions(lambda at: at // 2), ("position|scal",)),
    _table(
        "from-the-window",
        rope_positions(lambda at: np.minimum(at, 5)),
        ("position",),
        setting="wrap",
        on=("segmented", "onnx"),
        where={"onnx": "rope@1"},
    ),
    _table("not-reset", _stale_after_reset, ("position|offset",), "rope@3", setting="reset"),
    _table(
        "counted-from-the-padding",
        rope_positions(lambda at: at + (at.shape[0] == 3) * np.array([[4], [7], [0]])[: len(at)]),
        ("position|offset|pad",),
        setting="batch",
    ),
    _table(
        "sequences-crossed",
        rope_positions(lambda at: np.roll(at, 1, axis=0)),
        ("sequence|batch|b slices",),
        setting="batch",
    ),
]
