"""Any module through ONNX: every tap under the reference's name, whatever the exporter calls its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase, Step
from parity.harness.errors import CandidateError, UserError
from parity.harness.mapping import TapMap
from parity.harness.module_session import prepared, tensors
from parity.harness.progress import Silent
from parity.harness.target import Facts, Options
from parity.harness.tracer import recording, trace_tensor
from parity.harness.tracer.memory import MemoryRun
from parity.reference.module import ModuleReference
from parity.targets.module_export import export, quiet
from parity.targets.onnx_module import OnnxModuleTarget

NOTHING = np.zeros((0, 0), np.int64)
Values = dict[tuple[str, int], np.ndarray]


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def recorded(
    target: Any, case: ModuleCase, folder: Path, arg: str = "", **options: Any
) -> tuple[Values, Facts]:
    """Records by (tap, call), in order; a record that has two names stands under both."""
    session = target.prepare(
        case, arg=arg, options=Options(**options), reference=None, workdir=folder, progress=Silent()
    )
    run = MemoryRun("run")
    with recording(run):
        session.step(Step(0, "call", ((),), None), NOTHING, NOTHING, None)
    session.close()
    values = {(record.tap, record.call): record.read() for record in run.records()}
    for record in run.records():
        for name, call in record.meta.get("alias", {}).items():
            values[name, call] = record.read()
    return values, session.facts


def assert_same(actual: Values, expected: Values, *, without: frozenset[str] = frozenset()) -> None:
    """Same names and calls; values within rounding."""
    assert set(actual) == {key for key in expected if key[0] not in without}
    for key, value in actual.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5, err_msg=str(key))


class Block(nn.Module):
    """Residual block whose middle may be built otherwise."""

    def __init__(self, *, odd: bool = False) -> None:
        super().__init__()
        self.norm, self.fc, self.drop, self.odd = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.1), odd

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] -> [B, 8], the same numbers by another route where `odd`."""
        y = self.fc(self.norm(x))
        if self.odd:
            left, right = y.chunk(2, dim=-1)
            y = torch.cat([left * 2 - left, right + 1 - 1], dim=-1)
        return x + self.drop(torch.tanh(y))


class Mlp(nn.Module):
    """Three blocks; the middle one may take another route, which shifts every later name."""

    def __init__(self, *, odd: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block(odd=odd), Block()])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] -> [B, 4]."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Shared(nn.Module):
    """One layer under two paths, called three times; a constant; functional code; nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.same = nn.Linear(8, 8), nn.Identity()
        self.alias = self.layer
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, xs: list[Tensor], unused: Tensor, *, scale: float) -> dict[str, Any]:
        """Two of [B, 8]."""
        x = self.layer(torch.relu(self.layer(xs[0])))
        x = self.alias(x * self.same(self.table * 2)) * scale
        trace_tensor("scaled", x)
        return {"x": x, "pair": (xs[1], x.sum(-1)), "again": x, "table": self.table}


class Pair(nn.Module):
    """Returns two tensors of one shape, second first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 8]."""
        a = self.a(x)
        return self.b(a), a


class Outer(nn.Module):
    """Uses both outputs of a Pair."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.lstm = Pair(), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] -> [B, 8]."""
        b, a = self.pair(x)
        rows, (state, _) = self.lstm((a - b)[:, None])
        return rows[:, 0] + state[0]


def shared_inputs() -> dict[str, Any]:
    return {"xs.0": floats(2, 8), "xs.1": floats(2, 8), "unused": floats(3), "scale": np.array(0.5)}


def conv() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten())
    module[1].running_mean.uniform_()
    module[1].running_var.uniform_(0.5, 2)
    return module


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "mlp": (Mlp, lambda: {"x": floats(2, 8)}),
    "shared layer, list in, dict out": (Shared, shared_inputs),
    "two outputs and an lstm": (Outer, lambda: {"x": floats(2, 8)}),
    "convolution and batch norm": (conv, lambda: {"input": floats(1, 3, 6, 6)}),
    "transformer layer": (transformer, lambda: {"src": floats(2, 5, 16)}),
    "writes to its input": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2)),
        lambda: {"input": floats(2, 8)},
    ),
    "no submodule": (lambda: nn.Softmax(-1), lambda: {"input": floats(2, 8)}),
}


def case_of(name: str) -> ModuleCase:
    build, inputs = MODULES[name]
    return ModuleCase("theirs:build", build(), inputs(), "digest")


@pytest.mark.parametrize("exporter", ["script", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(MODULES))
def test_every_tap_of_the_reference_is_shown_and_right(tmp_path: Path, name: str, exporter: str) -> None:
    case = case_of(name)
    expected, _ = recorded(ModuleReference(), case, tmp_path)
    actual, facts = recorded(OnnxModuleTarget(), case, tmp_path, exporter=exporter)
    assert facts.unobserved == ()
    assert_same(actual, expected)
    assert list(tmp_path.iterdir()) == [], "the graphs are removed when the session is closed"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_scopes_never_contradict_hooks(tmp_path: Path, name: str) -> None:
    case = case_of(name)
    expected, _ = recorded(OnnxModuleTarget(), case, tmp_path)
    module, _ = prepared(case.module, dtype=None, device="cpu")
    builds = export(module, tensors(module, case.inputs, dtype=None, device="cpu"), tmp_path, Options())
    actual, facts = recorded(OnnxModuleTarget(), case, tmp_path, str(builds.clean))
    hidden = frozenset(item.taps for item in facts.unobserved)
    assert_same(actual, expected, without=hidden)
    assert actual


def test_a_fused_path_is_exported_in_parts_and_put_back(tmp_path: Path) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    facts = recorded(OnnxModuleTarget(), case_of("transformer layer"), tmp_path, exporter="script")[1]
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert facts.details["exporter"] == "script"


def test_names_follow_the_modules_when_the_exporters_names_shift(tmp_path: Path) -> None:
    inputs = {"x": floats(2, 8)}
    plain, odd = (ModuleCase("theirs:build", Mlp(odd=odd), inputs, "digest") for odd in (False, True))
    expected, _ = recorded(ModuleReference(), plain, tmp_path)
    actual, _ = recorded(OnnxModuleTarget(), odd, tmp_path)
    assert_same(actual, expected)


def exported(module: nn.Module, inputs: dict[str, np.ndarray], path: Path) -> Path:
    """What somebody else would have done: the plain exporter, no word of ours."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with quiet(), torch.no_grad():
        torch.onnx.export(module.eval(), (), str(path), kwargs=tensors, dynamo=True, verbose=False)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two exports of the same function; in the second every name after the middle block has shifted."""
    folder = tmp_path_factory.mktemp("files")
    made = [exported(Mlp(odd=odd), {"x": floats(2, 8)}, folder / f"{odd}.onnx") for odd in (False, True)]
    return made[0], made[1]


def test_a_file_of_others_is_read_by_its_scopes_even_when_names_shift(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    case = ModuleCase("theirs:build", Mlp(), {"x": floats(2, 8)}, "digest")
    expected, _ = recorded(ModuleReference(), case, tmp_path)
    names = [{value for node in onnx.load(file).graph.node for value in node.output} for file in files]
    assert "add_2" in names[0]
    assert "add_2" in names[1], "the trap is only set if one name means two tensors"
    drops = frozenset(f"module:blocks.{i}.drop" for i in range(3))
    for file in files:
        actual, facts = recorded(OnnxModuleTarget(), case, tmp_path, str(file))
        assert_same(actual, expected, without=drops)
        assert {item.taps for item in facts.unobserved} == drops
        assert {item.reason for item in facts.unobserved} == {
            "no node carries its scope: folded, fused or without an op of its own"
        }


def test_a_bug_planted_in_a_file_shows_first_in_the_module_that_has_it(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    case = ModuleCase("theirs:build", Mlp(), {"x": floats(2, 8)}, "digest")
    expected, _ = recorded(ModuleReference(), case, tmp_path)
    model = onnx.load(files[1])
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    next(item for item in norms[1].attribute if item.name == "epsilon").f = 0.1
    onnx.save(model, tmp_path / "bad.onnx")
    actual, _ = recorded(OnnxModuleTarget(), case, tmp_path, str(tmp_path / "bad.onnx"))
    wrong = [
        key for key, value in actual.items() if not np.allclose(value, expected[key], rtol=1e-4, atol=1e-5)
    ]
    assert wrong[0] == ("module:blocks.1.norm", 0)


def test_what_scopes_cannot_settle_is_left_unobserved_and_not_guessed(tmp_path: Path) -> None:
    case = ModuleCase("theirs:build", Outer(), {"x": floats(2, 8)}, "digest")
    file = exported(case.module, {"x": floats(2, 8)}, tmp_path / "file.onnx")
    expected, _ = recorded(ModuleReference(), case, tmp_path)
    actual, facts = recorded(OnnxModuleTarget(), case, tmp_path, str(file))
    reasons = {item.taps: item.reason for item in facts.unobserved}
    for tap in ("module:pair.0", "module:pair.1"):
        assert reasons[tap] == "2 values leave its scope, none of which is its output without a doubt"
    assert ("module:pair.a", 0) in actual
    assert_same(actual, expected, without=frozenset(reasons))


def bare(path: Path) -> Path:
    """A file by hand, without a word of modules: y = relu(first) + 1."""
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 8]) for n in ("first", "result")
    ]
    one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [1.0])
    nodes = [
        onnx.helper.make_node("Relu", ["first"], ["inner"]),
        onnx.helper.make_node("Add", ["inner", "one"], ["result"]),
    ]
    graph = onnx.helper.make_graph(nodes, "bare", values[:1], values[1:], [one])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


class Bare(nn.Module):
    """What the file by hand computes."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """[2, 8]."""
        y = self.relu(x)
        trace_tensor("between", y * 1)
        return y + 1


def test_a_file_without_scopes_shows_its_outputs_and_says_so(tmp_path: Path) -> None:
    case = ModuleCase("theirs:build", Bare(), {"x": floats(2, 8), "extra": floats(1)}, "digest")
    declared = TapMap(inputs={"first": "x"})
    path = str(bare(tmp_path / "bare.onnx"))
    actual, facts = recorded(OnnxModuleTarget(), case, tmp_path, path, mapping=declared)
    expected, _ = recorded(ModuleReference(), case, tmp_path)
    assert_same(actual, expected, without=frozenset({"module:relu", "between"}))
    assert {item.taps: item.reason for item in facts.unobserved} == {
        "module:relu": "the file does not say which module its values come from",
        "between": "the file has no output of that name",
    }
    assert facts.substitutions == ("input extra is not taken by bare.onnx",)


def test_inputs_of_a_file_that_are_not_declared_are_asked_for(tmp_path: Path) -> None:
    case = ModuleCase("theirs:build", Bare(), {"x": floats(2, 8)}, "digest")
    with pytest.raises(
        UserError, match=r"input 'first' has no counterpart.*\[inputs\] \"first\" = \"ARGUMENT\""
    ):
        recorded(OnnxModuleTarget(), case, tmp_path, str(bare(tmp_path / "bare.onnx")))


def test_files_and_words_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    case = ModuleCase("theirs:build", Bare(), {"x": floats(2, 8)}, "digest")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(UserError, match=r"onnx:.*text\.onnx"):
        recorded(OnnxModuleTarget(), case, tmp_path, str(tmp_path / "text.onnx"))
    with pytest.raises(UserError, match="exported whole"):
        OnnxModuleTarget().check("whole", Options())
    with pytest.raises(UserError, match="computes in fp64, fp32, fp16"):
        OnnxModuleTarget().check("", Options(dtype="bf16"))


def test_what_the_exporter_cannot_translate_is_a_failed_candidate_in_one_sentence(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    case = ModuleCase("theirs:build", Branches(), {"x": floats(2)}, "digest")
    with pytest.raises(CandidateError, match="the dynamo exporter failed") as caught:
        recorded(OnnxModuleTarget(), case, tmp_path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


class Differs(nn.Module):
    """Has an op that the script exporter does not know, before which it prints the whole graph."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] -> [B, C - 1]."""
        return torch.diff(x)


def test_an_exporter_that_fails_prints_nothing_where_json_may_stand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = ModuleCase("theirs:build", Differs(), {"x": floats(2, 4)}, "digest")
    print("before")
    with pytest.raises(CandidateError, match=r"script exporter failed: .*aten::diff"):
        recorded(OnnxModuleTarget(), case, tmp_path, exporter="script")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
