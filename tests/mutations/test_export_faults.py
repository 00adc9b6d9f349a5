"""One fault planted into exported graphs or shipped files: caught, and located at its tap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import parity
from parity.targets import prefilled
from parity.targets.onnx import build
from parity.targets.prefilled_files import Prefilled

pytestmark = pytest.mark.slow
Edit = Callable[[onnx.GraphProto], None]


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`edited("seg_1", edit)`: that segment's graphs are changed after the export."""

    def plant(segment: str, edit: Edit, *, only: str = "") -> None:
        original = build.export

        def export(job: Any) -> Any:
            made = original(job)
            if job.segment.name != segment:
                return made
            names = [only] if only else ["clean", "tapped"]
            return replace(made, **{name: _changed(getattr(made, name), edit) for name in names})

        monkeypatch.setattr(build, "export", export)

    return plant


def _changed(graph: bytes, edit: Edit) -> bytes:
    model = onnx.load_from_string(graph)
    edit(model.graph)
    return bytes(model.SerializeToString())


def _swap_caches(graph: onnx.GraphProto) -> None:
    """Keys and values have one shape, so nothing else notices."""
    other = {"ks": "vs", "vs": "ks"}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = other.get(name, name)


def _loose_norm(graph: onnx.GraphProto) -> None:
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    for attribute in norm.attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-3


def _scale_weight(shape: tuple[int, ...], factor: float) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        found = next(item for item in graph.initializer if tuple(item.dims) in (shape, shape[::-1]))
        found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * np.float32(factor), found.name))

    return edit


GRAPHS: dict[str, tuple[str, Edit, str]] = {
    "M77-caches-bound-crosswise": ("seg_0", _swap_caches, "layer0.attn"),
    "M87-norm-epsilon": ("seg_1", _loose_norm, "layer1.norm2"),
    "scaled-down-projection": ("seg_2", _scale_weight((384, 128), 1.001), "layer2.act"),
    "scaled-vocabulary": ("seg_tail", _scale_weight((512, 128), 1.0005), "logits"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_fault_in_an_exported_graph_is_located(
    name: str, hold: Any, edited: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    segment, edit, tap = GRAPHS[name]
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    edited(segment, edit)
    comparison = hold("onnx", scenario="default", steps=2, exporter="script")
    assert comparison.verdict == "divergence"
    assert [culprit.tap for culprit in comparison.culprits] == [tap]
    assert comparison.culprits[0].segment == segment


def test_a_fault_in_the_clean_build_alone_is_found(
    hold: Any, edited: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The build without taps is the one that ships; the tapped one being right must not cover for it."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    edited("seg_tail", _scale_weight((512, 128), 1.0005), only="clean")
    comparison = hold("onnx", scenario="default", steps=2, exporter="script")
    assert comparison.verdict == "divergence"
    assert comparison.culprits[0].tap == "logits"
    assert any("tapping changed" in finding.text for finding in comparison.findings)


def _rolled_layer(filled: Prefilled) -> Prefilled:
    past_k = filled.past_k.copy()
    past_k[1] = np.roll(past_k[1], 1, axis=2)
    return replace(filled, past_k=past_k)


FILES: dict[str, tuple[Callable[[Prefilled], Prefilled], str]] = {
    "keys-and-values-swapped": (lambda f: replace(f, past_k=f.past_v, past_v=f.past_k), "layer0.ks"),
    "one-layer-rolled": (_rolled_layer, "layer1.ks"),
    "M69-shipped-in-half": (
        lambda f: replace(f, past_v=f.past_v.astype(np.float16).astype(np.float32)),
        "layer0.vs",
    ),
    "M11-rope-starts-one-late": (lambda f: replace(f, rope=np.roll(f.rope, -1, axis=2)), "rope"),
    "layers-exchanged": (lambda f: replace(f, past_v=f.past_v[[0, 2, 1, 3]]), "layer1.vs"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_fault_in_shipped_cache_files_is_located(
    name: str, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, tap = FILES[name]
    monkeypatch.setattr(prefilled, "read", lambda folder, original=prefilled.read: change(original(folder)))
    comparison = hold("prefilled", scenario="default", steps=3)
    assert comparison.verdict == "divergence"
    assert comparison.first is not None
    assert (comparison.first.tap, comparison.first.step) == (tap, 1)
    assert comparison.culprits[0].tap == tap


@pytest.mark.parametrize(
    ("change", "first"),
    [(lambda rope: rope, None), (lambda rope: rope * 0, "rope"), (lambda rope: np.roll(rope, 1, 2), "rope")],
    ids=["as exported", "zeros", "one position late"],
)
def test_the_rotary_table_beside_exported_segments_is_the_one_that_runs(
    change: Callable[[np.ndarray], np.ndarray], first: str | None, hold: Any, tmp_path: Path
) -> None:
    """The board reads it from that file; rows from the checkpoint would cover for it."""
    folder = tmp_path / "exported"
    parity.export(folder, model="klm-tiny", weights="random:0")
    with np.load(folder / "rope.npz") as file:
        rope = file["rope"]
    np.savez(folder / "rope.npz", rope=change(rope))
    comparison = hold(f"onnx:{folder}", scenario="default", steps=2)
    assert comparison.verdict == ("parity" if first is None else "divergence")
    assert first is None or (comparison.first is not None and comparison.first.tap == first)
