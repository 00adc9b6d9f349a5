"""Ways of patching something in, all undone by the MonkeyPatch that they are given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from parity.models.klm import segments
from parity.models.klm.model import KLMModel
from parity.targets import caches, torch_segments
from parity.targets.onnx import target as onnx_target

from .plant import Apply

Modules = dict[str, nn.Module]
Edit = Callable[[onnx.GraphProto], None]
_numbers = itertools.count()


#: Calls of what was wrapped in since the lab last cleared it: a patch that never ran proves nothing.
calls: dict[str, int] = {}


def wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Apply:
    """`wrap(original)` in the place of `owner.name`; its calls are counted."""
    key = f"{getattr(owner, '__name__', owner)}.{name}"

    def apply(patch: pytest.MonkeyPatch) -> None:
        function = wrap(getattr(owner, name))
        calls.setdefault(key, 0)

        def counted(*inputs: Any, **named: Any) -> Any:
            calls[key] += 1
            return function(*inputs, **named)

        patch.setattr(owner, name, counted)

    return apply


def together(*applies: Apply) -> Apply:
    """Several patches as one."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        for one in applies:
            one(patch)

    return apply


# Code of the segments


def rotation(change: Callable[[Any, Any, Tensor, Tensor], Tensor]) -> Apply:
    """`change(original, self, x, rope)` in the place of the rotation of queries and keys."""
    return wrapped(
        segments.LayerHead,
        "_rotated",
        lambda original: lambda self, x, rope: change(original, self, x, rope),
    )


def attention(change: Callable[..., Tensor]) -> Apply:
    """`change(original, self, q, ks, vs, mask)` in the place of the attention."""
    return wrapped(
        segments.LayerBottom,
        "_attention",
        lambda original: lambda self, q, ks, vs, mask: change(original, self, q, ks, vs, mask),
    )


def masking(change: Callable[..., Tensor]) -> Apply:
    """`change(original, self, scores, mask)` in the place of the mask."""
    return wrapped(
        segments.LayerBottom,
        "_hide",
        lambda original: lambda self, scores, mask: change(original, self, scores, mask),
    )


def at(modules: Modules, path: str) -> Any:
    """`at(modules, "seg_1.layer_bottom.out_proj")`."""
    name, _, rest = path.partition(".")
    return modules[name].get_submodule(rest)


def edited(edit: Callable[[Modules], None]) -> Apply:
    """Change the finished segments: constants, order, single modules."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = KLMModel.split

        def split(self: KLMModel, state: Any, *, masked: bool = False) -> Modules:
            built = original(self, state, masked=masked)
            with torch.no_grad():
                edit(built)
            return built

        patch.setattr(KLMModel, "split", split)

    return apply


def weights(edit: Callable[[Modules], None]) -> Apply:
    """Change nothing but weights of the segments; ONNX graphs that were exported before are edited alike."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        healthy: Modules = {}
        original, export = KLMModel.split, onnx_target.build

        def split(self: KLMModel, state: Any, *, masked: bool = False) -> Modules:
            healthy.update(original(self, state, masked=masked))
            built = original(self, state, masked=masked)
            with torch.no_grad():
                edit(built)
            return built

        def built(module: nn.Module, segment: Any, recipe: Any, cache: Path) -> Any:
            made = export(healthy[segment.name], segment, recipe, cache)
            changed = _changed(healthy[segment.name], module)
            return _exchanged(made, changed, cache) if changed else made

        patch.setattr(KLMModel, "split", split)
        patch.setattr(onnx_target, "build", built)

    return apply


def _changed(before: nn.Module, after: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights that an edit changed, old and new."""
    old, new = before.state_dict(), after.state_dict()
    return [(old[name].numpy(), new[name].numpy()) for name in old if not torch.equal(old[name], new[name])]


def _exchanged(made: Any, changed: list[tuple[np.ndarray, np.ndarray]], cache: Path) -> Any:
    """A build whose graphs hold the new weights in the places of the old ones, known by their values."""
    folder = cache / f"edited-{next(_numbers)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("clean", "tapped"):
        model = onnx.load(getattr(made, name))
        for item in model.graph.initializer:
            array = numpy_helper.to_array(item)
            for old, new in changed:
                for before, after in ((old, new), (old.T, new.T)):
                    if array.shape == before.shape and np.array_equal(array, before):
                        item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), item.name))
        onnx.save(model, folder / f"{name}.onnx")
    return replace(made, clean=folder / "clean.onnx", tapped=folder / "tapped.onnx")


# What lies outside every graph


def rope_rows(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Apply:
    """`change(rows, positions)` of the rotary rows that segments are handed."""

    def wrap(original: Any) -> Any:
        return lambda self, positions: change(original(self, positions), positions)

    return wrapped(torch_segments.RopeTable, "__call__", wrap)


def rope_positions(change: Callable[[np.ndarray], np.ndarray]) -> Apply:
    """Rotary rows of `change(positions)`."""

    def wrap(original: Any) -> Any:
        return lambda self, positions: original(self, change(positions))

    return wrapped(torch_segments.RopeTable, "__call__", wrap)


def views(cache: str, change: Callable[[np.ndarray], np.ndarray]) -> Apply:
    """Something else is handed out of this cache than what it holds."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        for owner in (caches.WindowCache, caches.GrowCache):
            original = owner.view

            def view(self: Any, name: str, original: Any = original) -> np.ndarray:
                held = original(self, name)
                return np.ascontiguousarray(change(held.copy())) if name == cache else held

            patch.setattr(owner, "view", view)

    return apply


def appended(change: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> Apply:
    """`change(cache, rows, positions)` is kept in the place of the rows."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        for owner in (caches.WindowCache, caches.GrowCache):
            original = owner.append

            def append(
                self: Any, cache: str, rows: np.ndarray, positions: np.ndarray, original: Any = original
            ) -> None:
                original(self, cache, change(cache, rows, positions), positions)

            patch.setattr(owner, "append", append)

    return apply


def wiring(change: Callable[[Any], Any]) -> Apply:
    """`change(wiring)` in the place of the table that says who feeds whom."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        from parity.targets import prefilled, segmented

        original = segmented.torch_session

        def session(*arguments: Any) -> Any:
            built = original(*arguments)
            built.wiring = change(built.wiring)
            return built

        patch.setattr(segmented, "torch_session", session)
        patch.setattr(prefilled, "torch_session", session)

    return apply


def fed(segment: str, crossed: Mapping[str, str]) -> Apply:
    """A segment's input is bound to another value: `fed("seg_1", {"ks": "layer1.vs"})`."""

    def change(table: Any) -> Any:
        return replace(table, segments=tuple(_rebound(s) if s.name == segment else s for s in table.segments))

    def _rebound(one: Any) -> Any:
        ports = tuple(replace(port, value=crossed.get(port.name, port.value)) for port in one.inputs)
        return replace(one, inputs=ports)

    return wiring(change)


# Files and graphs


def graph(segment: str, edit: Edit, *, only: str = "") -> Apply:
    """An exported segment's graphs are changed behind the exporter: both builds, or `only` one."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        export = onnx_target.build

        def built(module: nn.Module, part: Any, recipe: Any, cache: Path) -> Any:
            made = export(module, part, recipe, cache)
            if part.name != segment:
                return made
            folder = cache / f"edited-{next(_numbers)}"
            folder.mkdir(parents=True, exist_ok=True)
            paths = {}
            for name in [only] if only else ["clean", "tapped"]:
                model = onnx.load(getattr(made, name))
                edit(model.graph)
                paths[name] = folder / f"{name}.onnx"
                onnx.save(model, paths[name])
            return replace(made, **paths)

        patch.setattr(onnx_target, "build", built)

    return apply


def shipped(change: Callable[[Any], Any]) -> Apply:
    """`change(files)` of the prefilled cache that is read."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        from parity.targets import prefilled

        original = prefilled.read
        patch.setattr(prefilled, "read", lambda folder: change(original(folder)))

    return apply
