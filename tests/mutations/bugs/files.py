"""Prefilled caches and tables that were shipped as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ..patches import shipped
from ..plant import Plant
from .cache import rotated

FAMILY = "files"
Files = Any


def _keys(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], Files]:
    return lambda files: replace(files, past_k=np.ascontiguousarray(change(files.past_k.copy())))


def _values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], Files]:
    return lambda files: replace(files, past_v=np.ascontiguousarray(change(files.past_v.copy())))


def _rope(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Files], Files]:
    return lambda files: replace(files, rope=np.ascontiguousarray(change(files.rope)))


def _rolled_layer(past: np.ndarray) -> np.ndarray:
    past[1] = np.roll(past[1], 1, axis=2)
    return past


def _another_character(past: np.ndarray) -> np.ndarray:
    """Row 4 of every layer as if another character stood there."""
    past[:, :, :, 4] = past[:, :, :, 7]
    return past


def _last_row_lost(past: np.ndarray) -> np.ndarray:
    past[:, :, :, -1] = 0
    return past


def _layer_lost(past: np.ndarray) -> np.ndarray:
    past[3] = 0
    return past


def _unrotated(files: Files) -> Files:
    keys = np.stack([rotated(layer, files.positions, -1.0) for layer in files.past_k])
    return replace(files, past_k=keys.astype(np.float32))


def _file(
    name: str, change: Callable[[Files], Files], born: str, says: tuple[str, ...], **about: Any
) -> Plant:
    return Plant(f"file-{name}", FAMILY, f"{born}@1", shipped(change), says, on=("prefilled",), **about)


def _table_beside(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    """The table in the folder of exported segments is what their device reads."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        from parity.targets.onnx import shipped_rope

        class Changed(shipped_rope.ShippedRope):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                self._table = change(self._table)

        patch.setattr(shipped_rope, "ShippedRope", Changed)

    return apply


def _beside(name: str, change: Callable[[np.ndarray], np.ndarray], says: tuple[str, ...]) -> Plant:
    return Plant(f"file-{name}", FAMILY, "rope", _table_beside(change), says, on=("onnx:exported",))


PLANTS = [
    _file(
        "keys-for-values",
        lambda f: replace(f, past_k=f.past_v, past_v=f.past_k),
        "layer0.ks",
        ("value|vs|swap|exchang|layer0.v",),
    ),
    _file("one-layer-shifted", _keys(_rolled_layer), "layer1.ks", ("shift|roll|by 1|position|one row",)),
    _file(
        "one-token-short",
        _keys(lambda past: np.roll(past, 1, axis=3)),
        "layer0.ks",
        ("shift|roll|by 1|position|one row",),
    ),
    _file(
        "in-half",
        _values(lambda past: past.astype(np.float16).astype(np.float32)),
        "layer0.vs",
        ("fp16|float16|half",),
    ),
    _file(
        "layers-exchanged", _values(lambda past: past[[0, 2, 1, 3]]), "layer1.vs", ("layer2|another layer",)
    ),
    _file(
        "layers-one-late",
        _keys(lambda past: np.roll(past, 1, axis=0)),
        "layer0.ks",
        ("layer3|another layer",),
    ),
    _file("heads-exchanged", _keys(lambda past: past[:, :, ::-1]), "layer0.ks", ("head|h slices|order",)),
    _file(
        "tokens-before-heads",
        _values(lambda past: past.transpose(0, 1, 3, 2, 4).reshape(past.shape)),
        "layer0.vs",
        ("transpos|layout|memory|order|reshap",),
    ),
    _file("of-another-text", _keys(_another_character), "layer0.ks", ("position|row|duplicat|twice|copy",)),
    _file("last-row-lost", _values(_last_row_lost), "layer0.vs", ("zero|missing|empty|row",)),
    _file("one-layer-lost", _values(_layer_lost), "layer3.vs", ("zero|missing|empty|lost|by 0",)),
    _file("keys-unrotated", _unrotated, "layer0.ks", ("rotat|rope|rotary",)),
    _file(
        "rope-one-late", _rope(lambda rope: np.roll(rope, -1, axis=2)), "rope", ("position|later|by 1|step",)
    ),
    _file(
        "rope-one-early",
        _rope(lambda rope: np.roll(rope, 1, axis=2)),
        "rope",
        ("position|earlier|by 1|step",),
    ),
    _file(
        "rope-in-half",
        _rope(lambda rope: rope.astype(np.float16).astype(np.float32)),
        "rope",
        ("fp16|float16|half",),
    ),
    _file("rope-sine-first", _rope(lambda rope: rope[::-1]), "rope", ("cos", "sin")),
    _beside("table-of-zeros", lambda rope: rope * 0, ("zero",)),
    _beside("table-one-late", lambda rope: np.roll(rope, 1, 2), ("position|earlier|by 1|later|shift",)),
]
