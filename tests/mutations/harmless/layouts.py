"""The same run with its rows lying elsewhere, in other builds, on other threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from parity.targets import caches

from ..patches import graph
from ..plant import Apply, Harmless

FAMILY = "layouts"
LAYOUTS = ("segmented", "segmented:grow", "segmented:recompute", "torch:grow", "prefilled")


def _nothing(patch: pytest.MonkeyPatch) -> None:
    """The run itself differs."""


def _garbage(make: Any) -> Apply:
    """Other finite numbers in slots that the mask hides."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = caches.WindowCache.view

        def view(self: Any, cache: str) -> np.ndarray:
            rows = original(self, cache).copy()
            batch, row = np.nonzero(self.positions(cache) < 0)
            rows[batch, :, row] = make((len(batch), *rows.shape[1::2])).astype(rows.dtype)
            return rows

        patch.setattr(caches.WindowCache, "view", view)

    return apply


def _permuted(patch: pytest.MonkeyPatch) -> None:
    """Slots in another order, their positions (and so the mask) with them."""
    view, positions = caches.WindowCache.view, caches.WindowCache.positions

    def order(count: int) -> np.ndarray:
        return np.random.default_rng(count).permutation(count)

    def shown(self: Any, cache: str) -> np.ndarray:
        rows = view(self, cache)
        return rows[:, :, order(rows.shape[2])]

    def held(self: Any, cache: str) -> np.ndarray:
        found = positions(self, cache)
        return found[:, order(found.shape[1])]

    patch.setattr(caches.WindowCache, "view", shown)
    patch.setattr(caches.WindowCache, "positions", held)


def _not_cleared(patch: pytest.MonkeyPatch) -> None:
    """A reset that forgets positions only: old rows stay where the mask hides them."""

    def reset(self: Any) -> None:
        self._rows = getattr(self, "_rows", {})
        self._held = {}

    patch.setattr(caches.WindowCache, "reset", reset)


def _commuted(found: onnx.GraphProto) -> None:
    for node in found.node:
        if node.op_type in ("Add", "Mul"):
            node.input[0], node.input[1] = node.input[1], node.input[0]


def _renamed(found: onnx.GraphProto) -> None:
    """Inner values get other names, as another exporter would give."""
    kept = {item.name for item in (*found.input, *found.output)}
    names = {
        out: f"v{place}" for place, node in enumerate(found.node) for out in node.output if out not in kept
    }
    for node in found.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = names.get(name, name)


def _identities(found: onnx.GraphProto) -> None:
    """A copy behind every projection."""
    for node in [node for node in found.node if node.op_type == "MatMul"]:
        inner = f"{node.output[0]}_copied"
        copy = helper.make_node("Identity", [inner], [node.output[0]])
        node.output[0] = inner
        found.node.insert(list(found.node).index(node) + 1, copy)


def _change(name: str, apply: Apply = _nothing, **about: Any) -> Harmless:
    return Harmless(name, FAMILY, apply, **about)


CHANGES = [
    *(
        _change(f"layout-{scenario}", setting=f"whole-{scenario}", on=LAYOUTS)
        for scenario in ("default", "batch3", "reset")
    ),
    _change("layout-exact", setting="whole-exact", on=("onnx", "prefilled")),
    *(_change(f"weights-{seed}", setting=f"seed-{seed}", on=("segmented", "onnx")) for seed in (1, 2, 3)),
    *(_change(f"threads-{count}", options={"threads": count}, on=("segmented", "onnx")) for count in (1, 2)),
    _change("padded-right", setting="right", on=("segmented", "prefilled", "onnx")),
    _change("batch-reordered", setting="batch-reordered", on=("segmented", "onnx")),
    _change("chunk", setting="chunk", on=("segmented:grow", "torch:grow", "onnx")),
    _change("wrap", setting="wrap", on=("segmented", "onnx", "prefilled")),
    _change("late", setting="late", on=("segmented", "onnx")),
    _change("reset", setting="reset", on=("segmented", "onnx")),
    _change(
        "garbage",
        _garbage(lambda shape: np.full(shape, 3.75)),
        setting="batch",
        on=("segmented", "onnx", "segmented:bf16", "segmented:fp16"),
    ),
    _change(
        "large-garbage",
        _garbage(lambda shape: np.full(shape, -2e4)),
        setting="batch",
        on=("segmented", "onnx", "segmented:bf16"),
    ),
    _change(
        "random-garbage",
        _garbage(lambda shape: np.random.default_rng(0).standard_normal(shape)),
        setting="late",
        on=("onnx",),
    ),
    _change("slots-permuted", _permuted, setting="late", on=("segmented", "onnx")),
    _change("slots-permuted-under-a-mask", _permuted, setting="batch", on=("segmented", "onnx")),
    _change("old-rows-hidden", _not_cleared, setting="reset", on=("segmented", "onnx")),
    *(_change(f"optimised-{level}", on=(f"onnx:opt={level}",)) for level in ("disable", "basic", "extended")),
    _change("masked-build", on=("onnx:masked",)),
    _change("whole-graph", setting="chunk", on=("onnx:whole",)),
    _change("files-without-taps", on=("onnx:exported",)),
    _change("another-opset", options={"opset": 18}, on=("onnx",)),
    _change("another-exporter", options={"exporter": "dynamo"}, on=("onnx",)),
    _change("operands-commuted", graph("seg_1", _commuted), on=("onnx",)),
    _change("values-renamed", graph("seg_1", _renamed), on=("onnx",)),
    _change("copies-inserted", graph("seg_1", _identities), on=("onnx",)),
]
