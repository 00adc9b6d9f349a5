"""Taps survive export: collected, they are graph outputs of the same names; else they leave no mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from parity.harness.tracer import collecting, executing, recording, tap_modules, trace_tensor
from parity.harness.tracer.memory import MemoryRun

# torch deprecates its own exporter and its own pieces; strict export warns that a collection is filled.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

NAMES = ["layer0.attn.q", "layer0.attn.q#1", "layer0.mlp", "logits"]
X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Net(torch.nn.Module):
    """Nested scopes, a tap that is edited in place, one that is an output, one hit twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.mlp = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with executing("layer0"):
            with executing("attn"):
                q = self.q(x)
                trace_tensor("q", q, axes="b d")
                q.mul_(3)
                trace_tensor("q", q)
            trace_tensor("mlp", self.mlp(q))
        logits = torch.tanh(q)
        trace_tensor("logits", logits)
        return logits


class Tapped(torch.nn.Module):
    """The model with its taps as further outputs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        with collecting() as taps:
            y = self.model(x)
        return y, taps


class Flat(Tapped):
    """The same as a flat tuple, which the script exporter wants."""

    def forward(self, x: torch.Tensor) -> Any:
        y, taps = super().forward(x)
        return (y, *taps.values())


@pytest.fixture
def net() -> torch.nn.Module:
    return Net().eval()


@pytest.fixture
def expected(net: torch.nn.Module) -> list[np.ndarray[Any, Any]]:
    run = MemoryRun("torch")
    with recording(run), torch.no_grad():
        net(X)
    assert [f"{r.tap}#{r.call}" if r.call else r.tap for r in run.records()] == NAMES
    return [record.read() for record in run.records()]


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_returns_the_taps_by_name(
    net: torch.nn.Module, expected: list[np.ndarray[Any, Any]], strict: bool
) -> None:
    program = torch.export.export(Tapped(net), (X,), strict=strict)
    _, taps = program.module()(X)
    assert list(taps) == NAMES
    for got, want in zip(taps.values(), expected, strict=True):
        torch.testing.assert_close(got.detach(), torch.from_numpy(want))


@pytest.mark.parametrize("dynamo", [True, False])
def test_both_onnx_exporters_return_the_taps_under_their_names(
    net: torch.nn.Module, expected: list[np.ndarray[Any, Any]], dynamo: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    run = MemoryRun("during export")
    with recording(run):
        torch.onnx.export(
            Flat(net).eval(),
            (X,),
            str(path),
            input_names=["x"],
            output_names=["y", *NAMES],
            dynamo=dynamo,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["y", *NAMES]
    outputs = session.run(NAMES, {"x": X.numpy()})
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert run.records() == [], "example values of an export are not records"


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_outside_a_collection_is_the_clean_graph_even_while_recording(
    net: torch.nn.Module, strict: bool
) -> None:
    run = MemoryRun("during export")
    with recording(run):
        program = torch.export.export(net, (X,), strict=strict)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in calls if "clone" in name or "parity" in name]
    assert len(program.graph_signature.user_outputs) == 1
    assert run.records() == []


def test_strict_export_outside_a_collection_warns_of_no_side_effect(
    net: torch.nn.Module, recwarn: pytest.WarningsRecorder
) -> None:
    with recording(MemoryRun("x")):
        torch.export.export(net, (X,), strict=True)
    assert not [w for w in recwarn if "side effect" in str(w.message)]


def test_hooks_are_collected_too(net: torch.nn.Module) -> None:
    with tap_modules(net, include=["q", "mlp"]):
        program = torch.export.export(Tapped(net), (X,), strict=False)
    _, taps = program.module()(X)
    assert [name for name in taps if name.startswith("module:")] == ["module:q", "module:mlp"]
