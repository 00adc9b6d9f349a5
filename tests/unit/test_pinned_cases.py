"""Whole runs with planted faults: two in one segment are both named, what only carries one on is not."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from parity.harness.comparison import Comparison
from parity.models.klm.model import KLMModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
Plant = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Floors are measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def hold(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Comparison]:
    """`hold("segmented")`: that candidate against torch."""
    monkeypatch.setenv("PARITY_CACHE", str(cache))

    def run(cand: str, **options: Any) -> Comparison:
        chosen = {"model": "klm-tiny", "scenario": "short", "weights": "random:0", "steps": 3, **options}
        return next(iter(parity.run("torch", [cand], out=tmp_path / "out", report=False, **chosen)))

    return run


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plant], None]:
    """`plant(edit)`: the finished segments are changed."""

    def change(edit: Plant) -> None:
        original = KLMModel.split

        def split(self: KLMModel, state: Any, *, masked: bool = False) -> dict[str, nn.Module]:
            built = original(self, state, masked=masked)
            with torch.no_grad():
                edit(built)
            return built

        monkeypatch.setattr(KLMModel, "split", split)

    return change


def blamed(found: Comparison) -> list[tuple[str, str]]:
    return [(culprit.tap, culprit.segment) for culprit in found.culprits]


def two_in_one(built: dict[str, Any]) -> None:
    bottom = built["seg_1"].layer_bottom
    bottom.ln2.eps = 1e-2
    bottom.mlp.down_proj.weight[17] *= 1.5


def ends_of_one(built: dict[str, Any]) -> None:
    segment = built["seg_0"]
    segment.layer_bottom.out_proj.weight.mul_(1.1)
    segment.layer_head.k_proj.weight.mul_(1.1)
    segment.layer_head.v_proj.bias.add_(0.5)


def a_sum(built: dict[str, Any]) -> None:
    bottom = built["seg_1"].layer_bottom
    bottom.mlp.register_forward_hook(lambda module, args, out: out * 1.0 + 0.1 * args[0])


FAULTS: dict[str, tuple[Plant, list[tuple[str, str]]]] = {
    "two in one segment": (two_in_one, [("layer1.norm2", "seg_1"), ("layer1.mlp", "seg_1")]),
    "first, last and last but one of a segment": (
        ends_of_one,
        [("layer0.o", "seg_0"), ("layer1.k", "seg_0"), ("layer1.v", "seg_0")],
    ),
    "a value that is handed out and used inside": (a_sum, [("layer2.residual", "seg_1")]),
}


@pytest.mark.parametrize("cand", ["segmented", "segmented:recompute", "prefilled"])
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_and_nothing_downstream(name: str, cand: str, hold: Any, plant: Any) -> None:
    edit, culprits = FAULTS[name]
    plant(edit)
    found = hold(cand)
    assert found.verdict == "divergence"
    assert found.isolation.kind == "taps"
    assert blamed(found) == culprits


def test_in_a_coarse_format_what_stands_out_of_its_noise_is_named_and_nothing_else(
    hold: Any, plant: Any
) -> None:
    def coarse(built: dict[str, Any]) -> None:
        built["seg_1"].layer_bottom.out_proj.weight[:] *= 1.5
        built["seg_1"].layer_bottom.mlp.down_proj.weight[17] *= 3.0

    plant(coarse)
    assert blamed(hold("segmented:bf16")) == [("layer1.o", "seg_1"), ("layer1.mlp", "seg_1")]


@pytest.mark.parametrize("cand", ["onnx", "onnx:masked"])
def test_faults_in_one_exported_segment_are_told_apart(cand: str, hold: Any, plant: Any) -> None:
    plant(two_in_one)
    found = hold(cand, exporter="script")
    assert blamed(found) == [("layer1.norm2", "seg_1"), ("layer1.mlp", "seg_1")]


def test_faults_in_a_whole_graph_are_told_apart(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity.targets.onnx import whole

    original = whole._eager

    def eager(case: Any) -> nn.Module:
        made = original(case)
        with torch.no_grad():
            made.model.body.blocks[1].ln2.eps = 1e-2
            made.model.body.blocks[2].mlp.down_proj.weight[17] *= 1.5
        return made

    monkeypatch.setattr(whole, "_eager", eager)
    found = hold("onnx:whole", exporter="script")
    assert [culprit.tap for culprit in found.culprits] == ["layer1.norm2", "layer2.mlp"]


@pytest.mark.parametrize("cand", ["segmented", "segmented:bf16", "segmented:grow", "prefilled", "onnx"])
@pytest.mark.parametrize("scenario", ["short", "batch3"])
def test_healthy_runs_are_right_at_every_tap_alone(cand: str, scenario: str, hold: Any) -> None:
    found = hold(cand, scenario=scenario)
    local = [row.local_ratio for row in found.records if row.local_ratio is not None]
    assert found.verdict == "parity"
    assert found.culprits == ()
    assert len(local) > 100
    assert max(local) < 1.0


# Models of others


@pytest.fixture
def theirs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Comparison]:
    """`theirs(edit, "llama")`: the library's model against itself after `edit`."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("PARITY_CACHE", str(cache))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pinned_models.py").write_text(MODELS)
    sys.modules.pop("pinned_models", None)

    numbers = itertools.count()

    def run(edit: Callable[[Any], None], base: str, **options: Any) -> Comparison:
        models = importlib.import_module("pinned_models")
        monkeypatch.setattr(models, "EDIT", edit)
        monkeypatch.setattr(models, "BASE", base)
        ids = {"input_ids": np.arange(24).reshape(2, 12) % 60}
        found = parity.run(
            cand=["module:pinned_models:port"],
            model=f"pinned_models:{base}",
            inputs=ids,
            out=tmp_path / f"out-{next(numbers)}",
            report=False,
            **options,
        )
        return next(iter(found))

    return run


MODELS = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

EDIT, BASE = None, ""


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config).eval()


def port():
    module = globals()[BASE]()
    EDIT(module)
    return module
"""


def wrapped(part: nn.Module, change: Callable[..., Any]) -> None:
    """`change(forward, **arguments)` in place of this one module's forward."""
    original = type(part).forward

    class Changed(type(part)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **about: Any) -> Any:
            return change(lambda **given: original(self, **given), hidden_states=hidden_states, **about)

    part.__class__ = Changed


def sine_turned(model: Any) -> None:
    def change(forward: Any, *, position_embeddings: Any, **about: Any) -> Any:
        cos, sin = position_embeddings
        return forward(position_embeddings=(cos, -sin), **about)

    wrapped(model.model.layers[2].self_attn, change)


def mask_shifted(model: Any) -> None:
    def change(forward: Any, *, attention_mask: Tensor, **about: Any) -> Any:
        return forward(attention_mask=attention_mask.roll(-1, -1), **about)

    wrapped(model.model.layers[1].self_attn, change)


def scores_unscaled(model: Any) -> None:
    model.model.layers[0].self_attn.scaling *= 1.5


def residual_scaled(model: Any) -> None:
    layer = model.model.layers[1]

    class Scaled(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **about: Any) -> Tensor:
            made = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **about)[0]
            hidden_states = hidden_states + 1.5 * made
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    layer.__class__ = Scaled


def gpt2_unscaled(model: Any) -> None:
    model.transformer.h[2].attn.scaling = 0.9
    model.transformer.h[2].attn.scale_attn_weights = False


BETWEEN: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "rotary": (sine_turned, "llama", "model.layers.2.self_attn.o_proj"),
    "mask": (mask_shifted, "llama", "model.layers.1.self_attn.o_proj"),
    "scale": (scores_unscaled, "llama", "model.layers.0.self_attn.o_proj"),
    "residual": (residual_scaled, "llama", "model.layers.1.post_attention_layernorm"),
    "gpt2 scale": (gpt2_unscaled, "gpt2", "transformer.h.2.attn.c_proj"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_wrong_code_between_modules_of_a_library_is_convicted_by_what_it_hands_on(
    name: str, theirs: Any
) -> None:
    edit, base, path = BETWEEN[name]
    found = theirs(edit, base)
    assert [culprit.tap for culprit in found.culprits] == [f"module:{path}"]
    assert f"the code before it in {path.rpartition('.')[0]}" in found.culprits[0].evidence


def test_a_module_and_the_code_between_modules_are_both_convicted(theirs: Any) -> None:
    def both(model: Any) -> None:
        model.model.layers[0].post_attention_layernorm.variance_epsilon = 0.1
        sine_turned(model)

    assert [culprit.tap for culprit in theirs(both, "llama").culprits] == [
        "module:model.layers.0.post_attention_layernorm",
        "module:model.layers.2.self_attn.o_proj",
    ]


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}], ids=["as built", "bf16"])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_a_healthy_port_is_right_alone_and_handed_what_is_right(
    base: str, options: dict[str, str], theirs: Any
) -> None:
    found = theirs(lambda model: None, base, **options)
    assert found.verdict == "parity"
    assert found.isolation.kind == "taps"
    assert max(row.local_ratio for row in found.records if row.local_ratio is not None) < 1.0


def test_a_calibration_file_also_holds_floors_of_what_modules_are_handed_and_nobody_is_warned(
    theirs: Any, tmp_path: Path
) -> None:
    healthy = theirs(lambda model: None, "llama")
    assert healthy.verdict == "parity"
    np.savez(tmp_path / "in.npz", input_ids=np.arange(24).reshape(2, 12) % 60)
    floors = tmp_path / "floors.toml"
    parity.calibrate(floors, model="pinned_models:llama", inputs=tmp_path / "in.npz")
    assert ":in." in floors.read_text()
    found = theirs(scores_unscaled, "llama", tol=str(floors))
    assert [culprit.tap for culprit in found.culprits] == ["module:model.layers.0.self_attn.o_proj"]
    assert [finding.text for finding in found.findings if "no run has" in finding.text] == []


def test_a_finding_between_modules_survives_a_report_file(theirs: Any, tmp_path: Path) -> None:
    found = theirs(scores_unscaled, "llama")
    again = Comparison.from_json(found.to_json())
    assert [(row.tap, row.ratio) for row in again.handed] == [(row.tap, row.ratio) for row in found.handed]
    assert again.isolation == found.isolation
    trace = tmp_path / "out-0" / "trace.h5"
    stored = parity.compare_traces(trace, trace, ref_run="torch", cand_run=found.label)
    assert [culprit.tap for culprit in stored.culprits] == [culprit.tap for culprit in found.culprits]
