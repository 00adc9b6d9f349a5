"""Keys and values between the segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parity.targets import caches, prefilled, segmented

from ..patches import appended, views, wiring
from ..plant import Apply, Plant

FAMILY = "cache"
Rows = np.ndarray
HEAD = 32


def _roll(view: Rows) -> Rows:
    return np.roll(view, 1, axis=2)


def _stale_head(view: Rows) -> Rows:
    view[:, 1, :-4] = view[:, 1, -4:].mean()
    return view


def _fp16(view: Rows) -> Rows:
    return view.astype(np.float16).astype(view.dtype)


def _bf16_cut(view: Rows) -> Rows:
    """Towards zero, as dropping sixteen bits does."""
    return (
        (view.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if view.dtype == np.float32 else view
    )


def _int8(view: Rows) -> Rows:
    scale = np.abs(view).max() / 127
    return (np.round(view / scale) * scale).astype(view.dtype)


def _rows_exchanged(view: Rows) -> Rows:
    if view.shape[2] > 4:
        view[:, :, [-4, -3]] = view[:, :, [-3, -4]]
    return view


def _newest_missing(view: Rows) -> Rows:
    return np.concatenate([view[:, :, :1], view[:, :, :-1]], 2)


def _twice(view: Rows) -> Rows:
    if view.shape[2] > 4:
        view[:, :, -3] = view[:, :, -4]
    return view


def _hole(view: Rows) -> Rows:
    if view.shape[2] > 4:
        view[:, :, -3] = 0
    return view


def _head_first_memory(view: Rows) -> Rows:
    """`[S, h, d]` memory read as `[h, S, d]`."""
    return view.transpose(0, 2, 1, 3).reshape(view.shape)


def rotated(rows: Rows, positions: np.ndarray, sign: float) -> Rows:
    """By halves, with the angles of base 1e4."""
    angle = np.maximum(positions, 0)[:, None, :, None] / 10000.0 ** (np.arange(0, HEAD, 2) / HEAD)
    cos, sin = np.cos(angle), np.sin(angle) * sign
    first, second = rows[..., : HEAD // 2], rows[..., HEAD // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(rows.dtype)


def _keys(layer: int, change: Callable[[Rows, np.ndarray], Rows]) -> Apply:
    name = f"layer{layer}.ks"
    return appended(lambda cache, rows, at: change(rows, at) if cache == name else rows)


def _of_another_layer(patch: pytest.MonkeyPatch) -> None:
    for owner in (caches.WindowCache, caches.GrowCache):
        original = owner.view

        def view(self: Any, name: str, original: Any = original) -> Rows:
            return original(self, "layer1.ks" if name == "layer2.ks" else name)

        patch.setattr(owner, "view", view)


def _planes_exchanged(table: Any) -> Any:
    rows = [
        replace(row, source=row.source[:-1] + {"k": "v", "v": "k"}[row.source[-1]])
        if row.cache.startswith("layer1")
        else row
        for row in table.caches
    ]
    return replace(table, caches=tuple(rows))


def _window(rows: int) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        def made(case: Any, layout: str) -> Any:
            return caches.WindowCache(case.scenario.batch, rows)

        patch.setattr(segmented, "new_cache", made)
        patch.setattr(prefilled, "new_cache", made)

    return apply


def _after_append(change: Callable[[Any, str, np.ndarray], None]) -> Apply:
    """`change(cache object, name, positions)` after every append."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = caches.WindowCache.append

        def append(self: Any, cache: str, rows: Rows, positions: np.ndarray) -> None:
            original(self, cache, rows, positions)
            change(self, cache, positions)

        patch.setattr(caches.WindowCache, "append", append)

    return apply


def _rolls_late(self: Any, cache: str, positions: np.ndarray) -> None:
    if positions.max() >= 12 and cache == "layer2.ks":
        self._rows[cache] = np.roll(self._rows[cache], 1, axis=2)


def _overwrites_one_more(self: Any, cache: str, positions: np.ndarray) -> None:
    if positions.max() >= 2 and cache == "layer1.vs":
        self._rows[cache] = self._rows[cache].copy()
        self._rows[cache][:, :, -2] = self._rows[cache][:, :, -1]


def _stops_storing(patch: pytest.MonkeyPatch) -> None:
    """Once the window is full, rows stay as they are while positions advance."""
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: Rows, positions: np.ndarray) -> None:
        before = self._rows.get(cache)
        full = before is not None and (self._held[cache] >= 0).all()
        original(self, cache, rows, positions)
        if full and cache == "layer1.ks":
            self._rows[cache] = before

    patch.setattr(caches.WindowCache, "append", append)


def _oldest_kept(patch: pytest.MonkeyPatch) -> None:
    """Where the window is full, the newest row but one gives way instead of the oldest."""
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: Rows, positions: np.ndarray) -> None:
        before = self._rows.get(cache)
        full = before is not None and (self._held[cache] >= 0).all()
        original(self, cache, rows, positions)
        if full and cache == "layer0.vs":
            self._rows[cache] = np.concatenate([before[:, :, :-1], rows[:, :, -1:]], 2)

    patch.setattr(caches.WindowCache, "append", append)


def _old_rows_visible(patch: pytest.MonkeyPatch) -> None:
    """Neither rows nor positions are cleared: the mask exposes what was before."""

    def reset(self: Any) -> None:
        self._rows = getattr(self, "_rows", {})
        self._held = getattr(self, "_held", {})

    patch.setattr(caches.WindowCache, "reset", reset)


def _one_step_behind(patch: pytest.MonkeyPatch) -> None:
    """A device's buffer that is handed out before the newest copy has arrived."""
    original = caches.WindowCache.view
    kept: dict[str, Rows] = {}

    def view(self: Any, name: str) -> Rows:
        now = original(self, name)
        if name != "layer2.ks":
            return now
        before = kept.get(name, now)
        kept[name] = now
        return before if before.shape == now.shape else now

    patch.setattr(caches.WindowCache, "view", view)


def _view(
    name: str, change: Callable[[Rows], Rows], says: tuple[str, ...], cache: str, **about: Any
) -> Plant:
    about = {"also": ("onnx", "segmented:grow", "segmented:bf16"), **about}
    return Plant(f"cache-{name}", FAMILY, cache, views(cache.partition("@")[0], change), says, **about)


ALONE: dict[str, Any] = {"on": ("segmented", "onnx")}

PLANTS = [
    _view("rolled", _roll, ("roll|shift|one row|by 1|position",), "layer1.ks"),
    _view("stale-head", _stale_head, ("stale|head|h 1|constant|same",), "layer0.ks"),
    _view("in-half", _fp16, ("fp16|float16|half",), "layer2.vs"),
    _view("cut-to-bf16", _bf16_cut, ("bf16|bfloat16", "trunc|cut|toward"), "layer1.ks"),
    _view("rows-exchanged", _rows_exchanged, ("exchang|swap|order|position|permut",), "layer3.vs"),
    _view(
        "newest-missing",
        _newest_missing,
        ("shift|roll|by 1|earlier|one row|newest|step|position",),
        "layer0.vs",
    ),
    _view("row-twice", _twice, ("duplicat|twice|position|row|copy",), "layer2.ks"),
    _view("row-empty", _hole, ("zero|missing|empty|hole",), "layer0.vs"),
    _view("negated", lambda view: -view, ("sign|negat",), "layer3.vs"),
    _view("int8", _int8, ("int8|8 bit|8-bit|quanti",), "layer1.vs"),
    _view("saturated", lambda view: view.clip(-1, 1), ("satur|clip|clamp",), "layer2.vs"),
    _view("heads-exchanged", lambda view: view[:, ::-1], ("head|h slices|order",), "layer1.ks"),
    _view("memory-order", _head_first_memory, ("transpos|laid out|layout|memory|reshap|order",), "layer3.ks"),
    _view("scaled", lambda view: view * np.float32(1.02), ("scale|1.02|factor|times",), "layer0.ks"),
    _view(
        "sequences-crossed",
        lambda view: np.roll(view, 1, axis=0),
        ("sequence|batch|b slices",),
        "layer1.vs",
        setting="batch",
    ),
    Plant(
        "cache-of-another-layer",
        FAMILY,
        "layer2.ks",
        _of_another_layer,
        ("layer1|another layer",),
        also=("onnx", "segmented:grow"),
    ),
    Plant(
        "cache-planes-exchanged",
        FAMILY,
        "layer1.ks",
        wiring(_planes_exchanged),
        ("layer1.v|values|swap|exchang",),
        also=("segmented:grow",),
    ),
    Plant(
        "cache-keys-unrotated",
        FAMILY,
        "layer0.ks",
        _keys(0, lambda rows, at: rotated(rows, at, -1.0)),
        ("rotat|rope|rotary",),
        also=("onnx", "segmented:grow"),
    ),
    Plant(
        "cache-keys-rotated-twice",
        FAMILY,
        "layer2.ks",
        _keys(2, lambda rows, at: rotated(rows, at, 1.0)),
        ("rotat|rope|rotary",),
        also=("onnx", "segmented:grow"),
    ),
    Plant(
        "cache-window-too-short",
        FAMILY,
        "layer0.ks",
        _window(5),
        ("position|missing|window|row",),
        setting="wrap",
        on=("segmented",),
    ),
    Plant(
        "cache-window-too-long",
        FAMILY,
        "layer0.ks",
        _window(7),
        ("position|window|row",),
        setting="wrap",
        on=("segmented",),
    ),
    Plant(
        "cache-rolls-when-full",
        FAMILY,
        "layer2.ks@3",
        _after_append(_rolls_late),
        ("roll|shift|by 1|position",),
        setting="late",
        on=("segmented",),
    ),
    Plant(
        "cache-overwrites-one-more",
        FAMILY,
        "layer1.vs",
        _after_append(_overwrites_one_more),
        ("duplicat|twice|position|row|copy",),
        **ALONE,
    ),
    Plant(
        "cache-stops-storing",
        FAMILY,
        "layer1.ks@3",
        _stops_storing,
        ("stale|step|position|shift|missing|roll",),
        setting="late",
        on=("segmented", "onnx"),
    ),
    Plant(
        "cache-keeps-the-oldest",
        FAMILY,
        "layer0.vs@3",
        _oldest_kept,
        ("stale|position|shift|missing|oldest",),
        setting="late",
        on=("segmented", "onnx"),
    ),
    Plant(
        "cache-old-rows-visible",
        FAMILY,
        "layer0.ks@3",
        _old_rows_visible,
        ("stale|reset|earlier|step|position",),
        setting="reset",
        on=("segmented",),
    ),
    Plant(
        "cache-one-step-behind",
        FAMILY,
        "layer2.ks",
        _one_step_behind,
        ("step|stale|shift|position|earlier",),
        setting="wrap",
        on=("segmented", "onnx"),
        where={"onnx": "layer2.ks@2"},
    ),
]
