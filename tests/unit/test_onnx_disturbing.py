"""Taps that change what a runtime computes are found and named; rounding names none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import parity
from parity.harness.case import Port, Segment
from parity.targets.onnx import disturbing
from parity.targets.onnx.build import Build
from parity.targets.onnx.disturbing import Search, departs, grave
from parity.targets.onnx.executor import OnnxExecutor
from parity.targets.onnx.runtime import Runtime

X = np.linspace(-3, 3, 256, dtype=np.float32).reshape(4, 64)
TAPS = ("scaled", "erf", "one", "half", "gelu", "turned")
FUSED = {"scaled", "erf", "one", "half"}


def graph(path: Path, taps: tuple[str, ...], *, loud: float) -> Path:
    """sin(loud * gelu(x)): ONNX Runtime fuses the gelu, unless an inner value of it is an output.

    Fused, gelu differs by a rounding step or two; `loud` makes as much of it as a deep network might.
    """
    one, two, root = (np.float32(value) for value in (1, 2, np.sqrt(2)))
    constants = {"c_root": root, "c_one": one, "c_half": one / two, "c_loud": np.float32(loud)}
    nodes = [
        helper.make_node("Div", ["x", "c_root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "c_one"], ["one"]),
        helper.make_node("Mul", ["x", "one"], ["half"]),
        helper.make_node("Mul", ["half", "c_half"], ["gelu"]),
        helper.make_node("Mul", ["gelu", "c_loud"], ["turned"]),
        helper.make_node("Sin", ["turned"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in ("y", *taps)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def executor(folder: Path, *, loud: float, level: str = "all") -> OnnxExecutor:
    clean, tapped = graph(folder / "clean.onnx", (), loud=loud), graph(folder / "t.onnx", TAPS, loud=loud)
    build = Build("seg", clean, tapped, dict.fromkeys(TAPS, "b d"), 17, ())
    segment = Segment("seg", (Port("x", "x", "b d", (4, 64)),), (Port("y", "y", "b d", (4, 64)),), TAPS)
    return OnnxExecutor([segment], {"seg": build}, Runtime(1, level), (*TAPS, "y"))


def test_the_taps_that_keep_a_runtime_from_fusing_are_named_and_no_others(tmp_path: Path) -> None:
    made = executor(tmp_path, loud=1e5)
    made.call("seg", {"x": X})
    seen = made.observer.effect["y"]
    assert seen["bitwise"] is False
    assert set(seen["taps"]) == FUSED
    assert seen["grave"]


def test_they_are_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = executor(tmp_path, loud=1e5)
    made.call("seg", {"x": X})
    monkeypatch.setattr(Search, "named", None)
    made.call("seg", {"x": X})


def test_rounding_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "named", None)
    made = executor(tmp_path, loud=1.0)
    made.call("seg", {"x": X})
    assert made.observer.effect["y"]["bitwise"] is False
    assert "taps" not in made.observer.effect["y"]


def test_without_fusing_nothing_changes(tmp_path: Path) -> None:
    made = executor(tmp_path, loud=1e5, level="disable")
    made.call("seg", {"x": X})
    assert made.observer.effect["y"] == {"max_abs": 0.0, "bitwise": True}


def search(folder: Path, clean: np.ndarray) -> Search:
    path = graph(folder / "t.onnx", TAPS, loud=1.0)
    return Search(Runtime(1), path, "seg", {"x": X}, {"y": clean}, {name: name for name in TAPS})


def test_a_tapped_graph_that_differs_by_itself_blames_no_tap(tmp_path: Path) -> None:
    assert search(tmp_path, np.ones((4, 64), np.float32)).named() == []


def changing(monkeypatch: pytest.MonkeyPatch, *groups: set[str]) -> list[tuple[str, ...]]:
    """Let builds change exactly where they hold all of one of these groups; what was built."""
    built: list[tuple[str, ...]] = []

    def changed(self: Search, values: tuple[str, ...]) -> bool:
        if values not in self._seen:
            built.append(values)
            self._seen[values] = any(group <= set(values) for group in groups)
        return self._seen[values]

    monkeypatch.setattr(Search, "_changed", changed)
    return built


def test_taps_that_change_only_together_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(monkeypatch, {"scaled", "turned"})
    (told,) = search(tmp_path, X).named()
    assert told == "scaled, erf, one, half, gelu, turned (together)"


def test_one_tap_of_many_takes_two_builds_for_every_halving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = changing(monkeypatch, {"t700"})
    made = search(tmp_path, X)
    made.taps = {f"t{i}": f"t{i}" for i in range(1000)}
    assert made.named() == ["t700"]
    assert len(built) <= 2 * 10 + 1


def test_the_search_ends_where_every_tap_changes_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = changing(monkeypatch, *({f"t{i}"} for i in range(1000)))
    made = search(tmp_path, X)
    made.taps = {f"t{i}": f"t{i}" for i in range(1000)}
    told = made.named()
    assert len(built) <= disturbing.MOST + 2
    assert told[-1].endswith("more (one or more of them)")


@pytest.mark.parametrize(
    ("tapped", "more", "much"),
    [
        ([1.0, 2.0, np.inf], False, False),
        ([1.0, 2.000002, np.inf], False, False),
        ([1.0, 2.001, np.inf], True, False),
        ([1.0, 2.01, np.inf], True, True),
        ([1.0, 2.0, 3.0], True, True),
    ],
)
def test_more_than_rounding_is_told_by_the_largest_finite_value(
    tapped: list[float], more: bool, much: bool
) -> None:
    pair = np.float32([1.0, 2.0, np.inf]), np.float32(tapped)
    assert (departs(*pair), grave(*pair)) == (more, much)


class Loud(nn.Module):
    """A gelu of hand, its error function a module of its own, and then something that is sensitive."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.erf, self.loud = Erf(), loud

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return torch.sin(self.loud * (0.5 * x * (1.0 + self.erf(x / 2.0**0.5))))


class Erf(nn.Module):
    """The error function."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.erf(x)


def build() -> nn.Module:
    """For --model."""
    return Loud(1e5)


def quiet() -> nn.Module:
    """For --model."""
    return Loud(1.0)


@pytest.mark.parametrize("name", ["build", "quiet"])
def test_a_users_module_is_told_its_taps_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = parity.run(
        model=f"test_onnx_disturbing:{name}",
        inputs={"x": X},
        cand="onnx",
        exporter="script",
        out=tmp_path / "o",
    )["onnx"]
    told = [finding for finding in found.findings if "as outputs these taps change" in finding.text]
    if name == "quiet":
        assert told == []
        return
    (finding,) = told
    assert finding.level == "warning"
    assert "module:erf" in finding.text
    assert "inner values are of that build, not of the clean one" in finding.text


def test_a_graph_of_the_users_is_told_its_taps_too(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", (), loud=1e5)
    found = parity.run(model=str(path), inputs={"x": X}, cand="off=onnx:opt=disable", out=tmp_path / "o")
    (finding,) = [one for one in found["off"].findings if "as outputs these taps" in one.text]
    assert finding.level == "warning"
    assert finding.text.startswith("the reference onnx: as outputs these taps change y by ")
    told = finding.text.partition(": ")[2].partition(": ")[2].partition("; inner")[0]
    assert set(told.split("; ")) == FUSED
