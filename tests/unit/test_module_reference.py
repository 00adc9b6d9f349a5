"""The reference run of any module: what it records, what it says, what it leaves alone."""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase, Step
from parity.harness.errors import UserError
from parity.harness.observer import observer_effect
from parity.harness.outputs import named_outputs
from parity.harness.progress import Silent
from parity.harness.target import Facts, Options
from parity.harness.tracer import recording, trace_tensor
from parity.harness.tracer.memory import MemoryRun
from parity.reference.module import ModuleReference

NOTHING = np.zeros((0, 0), np.int64)


def recorded(
    module: nn.Module, inputs: dict[str, Any], arg: str = "", **options: Any
) -> tuple[MemoryRun, Facts]:
    case = ModuleCase("theirs:build", module, inputs, "digest")
    session = ModuleReference().prepare(
        case, arg=arg, options=Options(**options), reference=None, workdir=Path(), progress=Silent()
    )
    run = MemoryRun("torch")
    with recording(run):
        assert session.step(Step(0, "call", ((),), None), NOTHING, NOTHING, None) is None
    session.close()
    return run, session.facts


class Mlp(nn.Module):
    """Two layers, dropout, a tap of its own, a counter that forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 3]."""
        self.calls += 1
        hidden = torch.relu(self.drop(self.first(x)))
        trace_tensor("hidden", hidden)
        return self.second(hidden)


def test_module_outputs_own_taps_and_the_result_are_recorded_in_execution_order() -> None:
    run, facts = recorded(Mlp(), {"x": np.ones((2, 4), np.float32)})
    assert run.taps == ["module:first", "module:drop", "hidden", "module:second", "output"]
    assert {record.step for record in run.records()} == {0}
    assert facts.dtype == "float32"
    assert facts.layout == "call"
    assert facts.details["observer"] == "outputs are the same bit for bit with hooks and without"


def test_the_users_module_is_left_as_it_was() -> None:
    module = Mlp()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    recorded(module, {"x": np.ones((2, 4), np.float32)}, dtype="fp64")
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module.first.weight.dtype == torch.float32


def test_dropout_is_switched_off_and_that_is_said() -> None:
    run, facts = recorded(Mlp(), {"x": np.ones((2, 4), np.float32)})
    (before,), (after,) = run.records("module:first"), run.records("module:drop")
    np.testing.assert_array_equal(before.read(), after.read())
    assert facts.substitutions == (
        "the module was in training mode, where drop computes otherwise; parity called eval()",
    )


@pytest.mark.parametrize(("word", "name"), [("fp64", "float64"), ("bf16", "bfloat16")])
def test_a_dtype_casts_module_and_floating_inputs_and_is_said(word: str, name: str) -> None:
    run, facts = recorded(Mlp().eval(), {"x": np.ones((2, 4), np.float32)}, arg=word)
    assert {record.dtype for record in run.records()} == {name}
    assert facts.dtype == name
    assert facts.substitutions == (f"module and floating inputs cast to {name}",)


def test_fp64_is_nearer_to_the_truth_than_what_it_is_compared_with() -> None:
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    module = Mlp().eval()
    exact, single = recorded(module, {"x": x}, arg="fp64")[0], recorded(module, {"x": x})[0]
    gap = np.abs(exact.records("output")[0].read() - single.records("output")[0].read())
    assert 0 < gap.max() < 1e-6


class Embeds(nn.Module):
    """Whole numbers and booleans go in, floats and a boolean come out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, ids: Tensor, keep: Tensor) -> dict[str, Any]:
        """[B] and [B] -> rows [B, 3] and the mask."""
        return {"rows": self.table(ids) * keep[:, None], "kept": keep, "count": 3, "none": None}


def test_whole_numbers_and_booleans_keep_their_type_under_a_cast() -> None:
    inputs = {"ids": np.array([0, 4]), "keep": np.array([True, False])}
    run, _ = recorded(Embeds(), inputs, arg="bf16")
    assert {record.tap: record.dtype for record in run.records()} == {
        "module:table": "bfloat16",
        "output.rows": "bfloat16",
        "output.kept": "bool",
    }


def test_a_module_without_submodules_has_its_output() -> None:
    assert recorded(nn.ReLU(), {"input": np.array([-1.0, 1.0])})[0].taps == ["output"]


class Twice(nn.Module):
    """One layer called twice, the second time under another path."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.alias = self.layer

    def forward(self, xs: list[Tensor], *, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        """A list of [3] and a number."""
        return self.alias(self.layer(xs[0])) * scale, xs[1]


def test_a_layer_called_twice_has_two_calls_and_a_list_goes_in() -> None:
    inputs = {"xs.0": np.ones(3, np.float32), "xs.1": np.zeros(2, np.float32), "scale": np.array(0.0)}
    run, _ = recorded(Twice(), inputs)
    assert [(record.tap, record.call) for record in run.records()] == [
        ("module:layer", 0),
        ("module:layer", 1),
        ("output.0", 0),
        ("output.1", 0),
    ]
    assert not run.records("output.0")[0].read().any()


class Noisy(nn.Module):
    """Draws random numbers whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Functional dropout is on by default."""
        return nn.functional.dropout(x, 0.5)


class Overwrites(nn.Module):
    """Writes to its input and returns things that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        """Doubles in place."""
        return self.act(x.mul_(2)), object()


def test_an_input_that_is_overwritten_is_fresh_in_every_call() -> None:
    x = np.array([1.0, -1.0], np.float32)
    run, facts = recorded(Overwrites(), {"x": x})
    np.testing.assert_array_equal(run.records("output.0")[0].read(), [2, 0])
    np.testing.assert_array_equal(run.records("module:act")[0].read(), [2, 0])
    np.testing.assert_array_equal(x, [1, -1])
    assert facts.details["warnings"] == ["output.1 (object) is no tensor and not recorded"]


@pytest.mark.parametrize(
    ("tapped", "text", "grave"),
    [
        ([1.0, np.inf, np.nan], "are the same bit for bit", False),
        ([1.0 + 1e-6, np.inf, np.nan], "change with hooks: y by up to 1e-06; those without", False),
        ([2.0, np.inf, np.nan], "change with hooks: y by up to 1", True),
        ([1.0, -np.inf, np.nan], "y in 1 values that are not finite", True),
        ([1.0, 1.0], r"y has shape \[2\] instead of \[3\]", True),
    ],
)
def test_an_effect_of_looking_is_grave_when_rounding_cannot_explain_it(
    tapped: list[float], text: str, grave: bool
) -> None:
    effect = observer_effect({"y": np.array([1.0, np.inf, np.nan])}, {"y": np.array(tapped)}, "with hooks")
    assert re.search(text, effect.text)
    assert effect.grave == grave


def test_random_numbers_in_eval_mode_are_seeded_and_warned_of() -> None:
    x = np.ones(64, np.float32)
    (first, facts), (second, _) = recorded(Noisy(), {"x": x}, seed=3), recorded(Noisy(), {"x": x}, seed=3)
    np.testing.assert_array_equal(first.records("output")[0].read(), second.records("output")[0].read())
    assert facts.details["warnings"] == [
        "the module draws random numbers even in eval mode; torch was seeded with 3"
    ]


def test_a_fused_path_that_hooks_leave_is_said_and_the_untouched_output_recorded() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    run, facts = recorded(layer, {"src": x})
    with torch.no_grad():
        np.testing.assert_array_equal(run.records("output")[0].read(), layer(torch.from_numpy(x)).numpy())
    assert "module:linear2" in run.taps
    assert facts.details["observer"].startswith("outputs ")


def test_a_module_that_fails_names_line_inputs_and_the_likely_reason() -> None:
    with pytest.raises(
        UserError, match=r"failed on x=float64\[2, 4\].*computes in float32, save x in that type"
    ):
        recorded(Mlp(), {"x": np.ones((2, 4))})


def test_a_module_that_returns_no_tensor_and_an_unknown_dtype_are_refused() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> int:
            return 3

    with pytest.raises(UserError, match="returned int without any tensor"):
        recorded(Empty(), {"x": np.ones(1)})
    with pytest.raises(UserError, match="Did you mean 'bf16'"):
        recorded(Mlp(), {"x": np.ones(1)}, arg="bf15")


def test_outputs_are_named_by_key_place_and_field() -> None:
    @dataclass
    class Both:
        left: Tensor
        right: Any

    pair = namedtuple("pair", "q k")
    one = torch.ones(1)
    found = named_outputs({"a": [one, (one, None)], "b": Both(one, object()), "c": pair(one, one)})
    assert list(found.tensors) == ["output.a.0", "output.a.1.0", "output.b.left", "output.c.q", "output.c.k"]
    assert found.others == {"output.b.right": "object"}
