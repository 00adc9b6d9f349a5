"""Models of the transformers library, tiny and random: through ONNX, and as a candidate language model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import parity.driver
from parity.harness.case import Case, ModuleCase, Scenario, Step
from parity.harness.comparison import Comparison
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.target import Facts, Options
from parity.harness.tracer import recording
from parity.harness.tracer.memory import MemoryRun
from parity.reference.module import ModuleReference
from parity.targets.module import ModuleTarget
from parity.targets.module_export import export
from parity.targets.onnx_module import OnnxModuleTarget

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
NOTHING = np.zeros((0, 0), np.int64)


def llama(**about: Any) -> nn.Module:
    """Two layers, grouped heads."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **about,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """Two layers, tied embeddings."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config).eval()


def planted(build: Any) -> nn.Module:
    """With another epsilon in the first norm of the second layer."""
    module = build()
    if build is llama:
        module.model.layers[1].input_layernorm.variance_epsilon = 1e-2
    else:
        module.transformer.h[1].ln_1.eps = 1e-2
    return module


def recorded(target: Any, module: nn.Module, folder: Path, arg: str = "") -> tuple[MemoryRun, Facts]:
    inputs = {"input_ids": np.arange(1, 13).reshape(2, 6), "use_cache": False}
    session = target.prepare(
        ModuleCase("theirs:build", module, inputs, "digest"),
        arg=arg,
        options=Options(),
        reference=None,
        workdir=folder,
        progress=Silent(),
    )
    run = MemoryRun("run")
    with recording(run):
        session.step(Step(0, "call", ((),), None), NOTHING, NOTHING, None)
    session.close()
    return run, session.facts


@pytest.mark.parametrize("build", [llama, gpt2])
def test_every_module_of_a_model_is_seen_through_onnx(tmp_path: Path, build: Any) -> None:
    module = build()
    expected, _ = recorded(ModuleReference(), module, tmp_path)
    actual, facts = recorded(OnnxModuleTarget(), module, tmp_path)
    assert facts.unobserved == ()
    assert actual.taps == expected.taps
    assert len(expected.taps) > 20
    for want, got in zip(expected.records(), actual.records(), strict=True):
        np.testing.assert_allclose(got.read(), want.read(), rtol=1e-3, atol=1e-4, err_msg=want.tap)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_clean_file_is_matched_by_its_scopes(tmp_path: Path, build: Any) -> None:
    module = build()
    expected, _ = recorded(OnnxModuleTarget(), module, tmp_path)
    inputs = {"input_ids": torch.arange(1, 13).reshape(2, 6), "use_cache": False}
    builds = export(module, inputs, tmp_path, Options())
    actual, facts = recorded(OnnxModuleTarget(), module, tmp_path, str(builds.clean))
    assert set(actual.taps) | {item.taps for item in facts.unobserved} == set(expected.taps)
    assert len(actual.taps) > 2 * len(facts.unobserved)
    answers = {(record.tap, record.call): record.read() for record in expected.records()}
    for got in actual.records():
        np.testing.assert_allclose(
            got.read(), answers[got.tap, got.call], rtol=1e-3, atol=1e-4, err_msg=got.tap
        )


def test_a_model_of_the_library_is_driven_over_a_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        vocab_size, name = 64, "fake"

    port = ModuleType("their_llama")
    port.build = llama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_llama", port)
    scenario = Scenario("s", ((1, 2, 3, 4), (5, 6)), steps=2)
    case = Case(Fake(), llama().state_dict(), "digest", scenario)  # type: ignore[arg-type]
    session = ModuleTarget().prepare(
        case, arg="their_llama:build", options=Options(), reference=None, workdir=Path(), progress=Silent()
    )
    run = MemoryRun("module")
    replay(session, scenario, sink=run, progress=Silent(), title="test")
    records = run.records("logits")
    assert [record.shape for record in records] == [(2, 4, 64), (2, 5, 64), (2, 6, 64)]
    assert {record.axes for record in run.records("module:model.layers.0.mlp")} == {"b t d"}
    last = records[-1]
    newest = [row.max() for row in last.positions]
    assert newest == [5, 3]
    with torch.no_grad():
        ids = [record.read() for record in run.records("ids")]
        first = torch.tensor([[1, 2, 3, 4, int(ids[1][0, 0]), int(ids[2][0, 0])]])
        np.testing.assert_allclose(last.read()[0], llama()(first).logits[0].numpy(), rtol=1e-3, atol=1e-4)


def judged(monkeypatch: pytest.MonkeyPatch, folder: Path, one: Any, two: Any) -> Comparison:
    """The comparison of two models of the library, called as they come: with a cache."""
    port = ModuleType("their_port")
    port.one, port.two = one, two  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_port", port)
    monkeypatch.setenv("PARITY_CACHE", str(folder / "cache"))
    ids = {"input_ids": np.arange(1, 19).reshape(2, 9)}
    (found,) = parity.driver.run(
        model="their_port:one", cand="module:their_port:two", inputs=ids, out=folder / "out"
    )
    return found


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_model_with_a_cache_agrees_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    comparison = judged(monkeypatch, tmp_path, build, build)
    assert comparison.exit_code == 0
    assert {row.local for row in comparison.records if row.tap.startswith("module:")} == {0.0}


@pytest.mark.parametrize(
    ("build", "tap"),
    [(llama, "module:model.layers.1.input_layernorm"), (gpt2, "module:transformer.h.1.ln_1")],
)
def test_a_fault_in_a_model_with_a_cache_is_found_where_it_was_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any, tap: str
) -> None:
    comparison = judged(monkeypatch, tmp_path, build, lambda: planted(build))
    assert comparison.exit_code == 1
    assert [culprit.tap for culprit in comparison.culprits][:1] == [tap]


def test_another_rotary_base_is_found_where_angles_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "default", "rope_theta": 9000.0}
    comparison = judged(monkeypatch, tmp_path, llama, lambda: llama(rope_parameters=rope))
    assert comparison.exit_code == 1
    assert comparison.culprits[0].tap == "module:model.rotary_emb.0"
