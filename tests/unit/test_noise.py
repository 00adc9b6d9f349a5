"""Trusted runs that differ by noise alone, and the gate that the reference itself must pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from parity.cases import build_case
from parity.floors import measure_noise, measure_spread
from parity.harness.case import Case, ModuleCase
from parity.harness.comparison import Row
from parity.harness.judge import Floor
from parity.harness.noise import AGAIN, Noise, noise_of, unsteady
from parity.harness.progress import Silent
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Trace, TraceWriter
from parity.request import Request
from parity.twins import BATCH, EPSILON, INPUTS, ORDER, THREADS, perturbed, rearranged, twins


def our_case(scenario: str = "one", steps: int = 2) -> Case:
    return build_case(
        Request(weights="random:0", scenario=scenario, steps=steps), progress=Silent(), like=None
    )


class Tabled(nn.Module):
    """A table, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.fc = nn.Embedding(8, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        """[T], [16] -> [T, 16]."""
        return self.fc(self.table(ids) + x)


def module_case(module: nn.Module | None = None) -> ModuleCase:
    inputs = {"ids": np.arange(4), "x": np.linspace(-1, 1, 16, dtype=np.float32)}
    return ModuleCase("theirs:build", module or Tabled(), inputs, "digest")


# --- which runs ---


def test_causes_are_format_order_inputs_and_circumstances() -> None:
    assert [twin.cause for twin in twins(our_case(), "float32")] == ["fp64", ORDER, INPUTS, THREADS, BATCH]
    assert [twin.cause for twin in twins(our_case(), "bfloat16")][:3] == ["fp64", ORDER, "format"]
    assert [twin.cause for twin in twins(module_case(), "float32")] == ["fp64", INPUTS, THREADS, AGAIN]


def test_a_floor_for_fp64_is_measured_in_fp64() -> None:
    assert all(twin.spec.startswith("torch:fp64") for twin in twins(our_case(), "float64"))


@pytest.mark.parametrize("dtype", EPSILON)
def test_inputs_move_by_at_most_an_epsilon_and_weights_stay(dtype: str) -> None:
    case, epsilon = our_case(), EPSILON[dtype]
    moved = perturbed(case, epsilon)
    assert isinstance(moved, Case)
    changed = {key for key in case.state if not torch.equal(case.state[key], moved.state[key])}
    tied = {"embedding.word_embeddings.weight", "lm_head.lm_head.weight"}
    assert changed == (set() if dtype == "float64" else tied), "a tied head overwrites what is loaded before"
    for key in changed:
        before = case.state[key].double()
        step = epsilon + 2.0**-24
        assert (moved.state[key].double() - before).abs().le(step * before.abs()).all()


def test_a_module_is_perturbed_in_a_copy_that_shares_the_other_weights() -> None:
    case = module_case()
    moved = perturbed(case, 1e-3)
    assert isinstance(moved, ModuleCase)
    assert moved.module.fc.weight is case.module.fc.weight
    assert not torch.equal(moved.module.table.weight, case.module.table.weight)
    assert (moved.inputs["ids"] == case.inputs["ids"]).all()
    assert 0 < np.abs(moved.inputs["x"] / case.inputs["x"] - 1).max() <= 1e-3 * 1.001


def test_where_nothing_can_be_moved_nothing_is() -> None:
    case = ModuleCase("theirs:build", nn.Linear(4, 4), {"n": np.arange(4)}, "digest")
    assert perturbed(case, 1e-3) is None


def test_perturbing_is_seeded() -> None:
    one, two, other = (perturbed(module_case(), 1e-3, seed=seed) for seed in (1, 1, 2))
    assert (one.inputs["x"] == two.inputs["x"]).all()
    assert (one.inputs["x"] != other.inputs["x"]).any()


def test_one_sequence_is_run_twice_and_several_backwards() -> None:
    one, order = rearranged(our_case().scenario)
    assert (one.batch, order) == (2, (1,))
    three = our_case("batch3").scenario
    back, order = rearranged(three)
    assert (back.ids, order) == (three.ids[::-1], (2, 1, 0))


def test_sequences_in_another_order_are_put_back_before_they_are_compared(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 32)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [-1, 0, 1, 2], [-1, -1, 0, 1]])
    with TraceWriter(tmp_path / "t.h5") as writer:
        for name, order in (("one", [0, 1, 2]), ("two", [2, 1, 0])):
            with writer.run(name, provenance={"policy": "full"}) as run:
                run.record("x", values[order], step=0, axes="b t d", positions=positions[order])
    one, two = (Trace(tmp_path / "t.h5")[name] for name in ("one", "two"))
    assert noise_of(one, two, BATCH, order=(2, 1, 0))["x"].max_abs == 0.0
    assert noise_of(one, two, BATCH)["x"].max_abs > 0.1


def test_noise_is_counted_by_rows_and_merged_by_the_larger() -> None:
    one = Noise("x", "fp64", Floor(1.0, 5.0), 8, 0, 0.5, 1.0)
    two = Noise("x", "order", Floor(2.0, 3.0), 8, 3, 0.1, 2.0)
    assert one.merge(two) == Noise("x", "order", Floor(2.0, 5.0), 8, 0, 0.5, 1.0)


# --- what is measured ---


@pytest.mark.slow
def test_every_tap_has_a_level_with_its_cause_and_the_second_time_nothing_runs(tmp_path, monkeypatch) -> None:
    case = our_case("batch3", 2)
    measured = measure_noise(case, ("float32",), tmp_path, progress=Silent())
    assert set(measured.levels) >= set(case.model.taps) - {"ids"}
    assert {noise.cause for noise in measured.explained.values()} <= {"fp64", ORDER, INPUTS}
    assert all(noise.rows > 0 for noise in measured.levels.values())
    worst = max(noise.floor.rms for noise in measured.spread.values())
    assert worst < 1e-5, "threads and batch order change no more than rounding"
    monkeypatch.setattr("parity.floors.record", None)
    assert measure_noise(case, ("float32",), tmp_path, progress=Silent()) == measured
    assert measure_spread(case, "float32", tmp_path, progress=Silent()) == measured.spread


@pytest.mark.slow
def test_the_response_to_moved_inputs_grows_with_the_format(tmp_path) -> None:
    case = our_case()
    levels = [
        measure_noise(case, (dtype,), tmp_path, progress=Silent()).explained["final"].floor.rms
        for dtype in ("float64", "float32", "bfloat16")
    ]
    assert levels[0] < 1e-12 < levels[1] < 1e-4 < levels[2]


def test_other_code_is_measured_anew(tmp_path, monkeypatch) -> None:
    case = module_case()
    monkeypatch.setattr("parity.floors._code", lambda case: "before")
    measure_noise(case, ("float32",), tmp_path, progress=Silent())
    assert len(list(tmp_path.rglob("*.json"))) == 1
    monkeypatch.setattr("parity.floors._code", lambda case: "after")
    measure_noise(case, ("float32",), tmp_path, progress=Silent())
    assert len(list(tmp_path.rglob("*.json"))) == 2


# --- the gate ---


def row(status: str = "pass", dtype: str = "float32") -> Row:
    return Row(0, "x", 0, 0, status, dtype=dtype, expected_dtype=dtype)


def spread(max_abs: float, rms: float, cause: str = THREADS) -> dict[str, Noise]:
    return {"x": Noise("x", cause, Floor(rms, rms), 8, 0, max_abs, 1.0)}


@pytest.mark.parametrize(
    ("tol", "max_abs", "cause", "steady"),
    [
        ("fp32", 1e-4, THREADS, True),
        ("fp32", 3e-4, THREADS, False),
        ("exact", 1e-7, THREADS, True),
        ("exact", 1e-7, AGAIN, False),
        ("fp32", float("nan"), THREADS, False),
    ],
)
def test_a_reference_is_steady_within_the_tolerance(
    tol: str, max_abs: float, cause: str, steady: bool
) -> None:
    found = unsteady([row()], spread(max_abs, max_abs, cause), load_tolerance(tol), {})
    assert (found is None) == steady


def test_with_a_noise_floor_it_is_steady_within_what_the_format_explains() -> None:
    auto, floors = load_tolerance("auto"), {"x": Floor(1e-6, 5e-6)}
    assert unsteady([row()], spread(1e-5, 7e-6), auto, floors) is None
    assert unsteady([row()], spread(1e-4, 9e-6), auto, floors) is not None
    assert unsteady([row()], spread(0.5, 0.5, AGAIN), auto, {"x": Floor(1.0, 5.0)}) is not None


def test_equal_bits_need_no_steadiness() -> None:
    assert unsteady([row("equal")], spread(1.0, 1.0), load_tolerance("auto"), {}) is None


CODE = """
import torch
from torch import nn
from torch.nn import functional as F

CALLS = [0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class Dropping(Net):
    def between(self, x):
        return F.dropout(x, 0.5, training=True)


class Global(Net):
    def between(self, x):
        CALLS[0] += 1
        return x * (1 + 0.1 * CALLS[0])


class Counting(Net):
    def between(self, x):
        self.count += 1
        return x * self.count
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with modules that are not steady."""
    (tmp_path / "unsteady_net.py").write_text(CODE)
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("parity.driver._cache", lambda: tmp_path / "cache")
    yield tmp_path
    found: ModuleType | None = sys.modules.pop("unsteady_net", None)
    assert found is not None


def held(name: str, cand: str, **options: object) -> parity.Comparison:
    result = parity.run(
        cand=[cand], model=f"unsteady_net:{name}", inputs="in.npz", report=False, out=f"out-{name}", **options
    )
    return result.comparisons[0]


@pytest.mark.slow
@pytest.mark.parametrize("tol", ["auto", "fp32"])
@pytest.mark.parametrize("name", ["Dropping", "Global"])
def test_nothing_follows_from_a_reference_that_departs_from_itself(theirs, name: str, tol: str) -> None:
    found = held(name, "onnx", tol=tol)
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert "run again with another seed, it departs from itself at" in found.unsound
    assert any("departs from itself first at" in f.text for f in found.findings if f.level == "warning")


@pytest.mark.slow
def test_a_counter_in_a_buffer_disturbs_nobody(theirs) -> None:
    found = held("Counting", "module:unsteady_net:Counting", share_weights=True)
    assert (found.verdict, found.unsound) == ("parity", "")
    assert not [f.text for f in found.findings if f.level != "note" and "departs" in f.text]


@pytest.mark.slow
def test_the_same_random_numbers_on_both_sides_agree(theirs) -> None:
    found = held("Dropping", "module:unsteady_net:Dropping", share_weights=True)
    assert found.verdict == "parity"
