"""Taps, scopes, steps: what is recorded, under which name, and that it is a copy."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

from parity.harness.errors import UserError
from parity.harness.tracer import collecting, executing, recording, step, trace_tensor
from parity.harness.tracer.memory import MemoryRun


@pytest.fixture
def run() -> MemoryRun:
    return MemoryRun("torch")


def only(run: MemoryRun) -> Any:
    (record,) = run.records()
    return record


def test_nothing_happens_outside_a_recording() -> None:
    trace_tensor("q", object())


def test_scopes_name_a_tap_without_the_leading_dot(run: MemoryRun) -> None:
    with recording(run), executing("layer0"), executing("attn"):
        trace_tensor("q", np.ones(2))
    assert run.taps == ["layer0.attn.q"]


def test_the_original_tools_leading_dot_is_not_kept(run: MemoryRun) -> None:
    with recording(run):
        trace_tensor(".layer0.q", np.ones(2))
    assert run.taps == ["layer0.q"]


def test_a_dotted_scope_is_left_as_it_was_entered(run: MemoryRun) -> None:
    with recording(run), executing("model"):
        with executing("layer.0"):
            trace_tensor("q", np.ones(2))
        trace_tensor("logits", np.ones(2))
    assert run.taps == ["model.layer.0.q", "model.logits"]


def test_a_scope_ends_when_its_block_raises(run: MemoryRun) -> None:
    with recording(run):
        with pytest.raises(RuntimeError), executing("a"), executing("b.c"):
            raise RuntimeError
        trace_tensor("q", np.ones(2))
    assert run.taps == ["q"]


def test_a_scope_decorates_a_function(run: MemoryRun) -> None:
    @executing("layer0")
    def forward(depth: int) -> None:
        trace_tensor("q", np.ones(2))
        if depth:
            forward(depth - 1)

    with recording(run):
        forward(1)
    assert run.taps == ["layer0.q", "layer0.layer0.q"]


def test_in_place_edits_after_the_call_do_not_reach_the_record(run: MemoryRun) -> None:
    x, y = torch.zeros(3), np.zeros(3)
    with recording(run):
        trace_tensor("x", x)
        trace_tensor("y", y)
        x += 1
        y += 1
    assert [record.read().tolist() for record in run.records()] == [[0, 0, 0], [0, 0, 0]]


def test_a_view_of_a_reused_buffer_keeps_what_it_showed(run: MemoryRun) -> None:
    buffer = torch.zeros(2, 8)
    with recording(run):
        for i in range(3):
            buffer.fill_(i)
            trace_tensor("ks", buffer[:, i : i + 2])
    assert [record.read().tolist() for record in run.records()] == [[[i, i], [i, i]] for i in range(3)]
    assert all(record.read().base is None for record in run.records())


def test_a_repeated_tap_is_another_call_of_the_step_not_an_overwrite(run: MemoryRun) -> None:
    with recording(run):
        for index in (0, 1):
            with step(index):
                trace_tensor("q", [index, 0])
                trace_tensor("q", [index, 1])
        with step(1):
            trace_tensor("q", [1, 2])
    assert [(r.step, r.call, r.read().tolist()) for r in run.records()] == [
        (0, 0, [0, 0]), (0, 1, [0, 1]), (1, 0, [1, 0]), (1, 1, [1, 1]), (1, 2, [1, 2]),
    ]  # fmt: skip


def test_rows_keeps_the_last_tokens_and_takes_the_positions_of_the_step(run: MemoryRun) -> None:
    x = torch.arange(24.0).reshape(1, 2, 6, 2)
    with recording(run), step(0, rows=2, positions=[[7, 8]]):
        trace_tensor("q", x, axes="b h t d")
        trace_tensor("ks", x, axes="b h p d")
        trace_tensor("last", x[:, :, -1:], axes="b h t d")
        trace_tensor("plain", x)
    q, ks, last, plain = run.records()
    assert np.array_equal(q.read(), x[:, :, -2:].numpy())
    assert np.array_equal(ks.read(), x[:, :, -2:].numpy())
    assert [r.positions.tolist() for r in (q, ks, last)] == [[[7, 8]], [[7, 8]], [[8]]]
    assert plain.shape == (1, 2, 6, 2)
    assert plain.positions is None


def test_scores_are_cut_along_the_token_axis_and_not_along_the_cache_axis(run: MemoryRun) -> None:
    with recording(run), step(0, rows=1):
        trace_tensor("scores", np.zeros((1, 2, 4, 8)), axes="b h t p")
    assert only(run).shape == (1, 2, 1, 8)


def test_own_positions_win_and_are_cut_with_the_rows(run: MemoryRun) -> None:
    with recording(run), step(0, rows=2, positions=[9, 9]):
        trace_tensor("q", np.zeros((4, 2)), axes="t d", positions=torch.tensor([3, 4, 5, 6]))
    assert only(run).positions.tolist() == [5, 6]


def test_more_rows_than_the_step_has_positions_is_an_error_that_says_what_to_give(run: MemoryRun) -> None:
    with (
        recording(run),
        step(0, positions=[1, 2]),
        pytest.raises(UserError, match="gives 2, but tap 'ks' has 5"),
    ):
        trace_tensor("ks", np.zeros((5, 2)), axes="p d")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axes": "b t"}, "2 letters, but tap 'q' has shape"),
        ({"axes": "b t d", "positions": [0.5, 1.5]}, "must be whole numbers"),
        ({"axes": "b t d", "positions": [[[1]]]}, "must be whole numbers"),
    ],
)
def test_axes_and_positions_that_do_not_fit_are_user_errors(
    run: MemoryRun, arguments: dict[str, Any], words: str
) -> None:
    with recording(run), pytest.raises(UserError, match=words):
        trace_tensor("q", np.zeros((1, 2, 3)), **arguments)


def test_a_tap_without_a_name_is_a_user_error(run: MemoryRun) -> None:
    with recording(run), pytest.raises(UserError, match="needs a name"):
        trace_tensor("", np.ones(1))


@pytest.mark.parametrize("arguments", [{"index": -1}, {"index": 0, "rows": 0}])
def test_a_step_that_cannot_be_is_a_user_error(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError), step(**arguments):
        pass


def test_an_inner_recording_takes_over_and_the_outer_one_comes_back() -> None:
    outer, inner = MemoryRun("outer"), MemoryRun("inner")
    with recording(outer):
        trace_tensor("a", [1])
        with pytest.raises(RuntimeError), recording(inner):  # noqa: PT012
            trace_tensor("b", [1])
            raise RuntimeError
        trace_tensor("c", [1])
    trace_tensor("d", [1])
    assert (outer.taps, inner.taps) == (["a", "c"], ["b"])


def test_threads_do_not_mix(run: MemoryRun) -> None:
    other, ready = MemoryRun("other"), threading.Barrier(2, timeout=10)

    def work() -> None:
        trace_tensor("unheard", [1])
        with recording(other), executing("theirs"), step(5):
            ready.wait()
            for _ in range(50):
                trace_tensor("q", [1])
            ready.wait()

    thread = threading.Thread(target=work)
    with recording(run), executing("mine"):
        thread.start()
        ready.wait()
        for _ in range(50):
            trace_tensor("q", [1])
        ready.wait()
        thread.join()
    assert (run.taps, other.taps) == (["mine.q"], ["theirs.q"])
    assert {r.step for r in run.records()} == {0}
    assert [r.call for r in other.records()] == list(range(50))


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"]
)
def test_every_torch_type_keeps_its_bits(run: MemoryRun, dtype: str) -> None:
    x = torch.tensor([0.0, 1.0, 3.0]).to(getattr(torch, dtype))
    with recording(run):
        trace_tensor("x", x)
    assert only(run).dtype == dtype
    assert only(run).read().astype(float).tolist() == x.double().tolist()


def test_a_tensor_with_gradients_is_recorded_and_its_graph_is_untouched(run: MemoryRun) -> None:
    x = torch.ones(2, requires_grad=True)
    with recording(run):
        y = x * 3
        trace_tensor("y", y)
        y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]
    assert only(run).read().tolist() == [3, 3]


def test_anything_that_holds_numbers_is_recorded(run: MemoryRun) -> None:
    class Dlpack:
        def __init__(self) -> None:
            self.inner = np.arange(3.0)

        def __dlpack__(self, **_: Any) -> Any:
            return self.inner.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return self.inner.__dlpack_device__()

    class Array:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(2)

    with recording(run), step(0, rows=1):
        for index, x in enumerate([Dlpack(), Array(), 3.5, np.float32(2), [1, 2]]):
            trace_tensor(f"x{index}", x)
    assert [r.read().tolist() for r in run.records()] == [[0, 1, 2], [0, 1], 3.5, 2, [1, 2]]


def test_what_holds_no_numbers_is_a_user_error(run: MemoryRun) -> None:
    with recording(run), pytest.raises(UserError, match="holds no numbers"):
        trace_tensor("x", object())


def test_a_cast_keeps_the_original_type_beside_it_and_leaves_whole_numbers(run: MemoryRun) -> None:
    with recording(run, dtype="float16"):
        trace_tensor("x", torch.ones(1, dtype=torch.bfloat16))
        trace_tensor("y", np.ones(1))
        trace_tensor("ids", torch.tensor([70000]))
        trace_tensor("same", np.ones(1, np.float16))
    assert [(r.dtype, r.meta.get("original_dtype")) for r in run.records()] == [
        ("float16", "bfloat16"), ("float16", "float64"), ("int64", None), ("float16", None),
    ]  # fmt: skip


def test_collected_taps_show_neither_later_edits_nor_one_tensor_twice(run: MemoryRun) -> None:
    x = torch.zeros(2)
    with recording(run), collecting() as taps, executing("layer0"):
        trace_tensor("q", x)
        x += 1
        trace_tensor("q", x)
        trace_tensor("out", x)
    assert list(taps) == ["layer0.q", "layer0.q#1", "layer0.out"]
    assert [tap.tolist() for tap in taps.values()] == [[0, 0], [1, 1], [1, 1]]
    assert len({id(tap) for tap in taps.values()}) == 3
    assert len(run.records()) == 3


def test_what_is_no_torch_tensor_cannot_become_a_graph_output() -> None:
    with collecting(), pytest.raises(UserError, match="cannot be a graph output"):
        trace_tensor("x", np.ones(2))


def test_an_inner_collection_leaves_the_outer_one_alone() -> None:
    with collecting() as outer:
        with collecting() as inner:
            trace_tensor("a", torch.ones(1))
        trace_tensor("b", torch.ones(1))
    assert (list(outer), list(inner)) == (["b"], ["a"])


def test_numpy_alone_needs_no_torch_and_the_package_alone_needs_no_numpy() -> None:
    code = """
import sys
import parity.harness.tracer as tracer
assert not {"torch", "numpy", "h5py"} & sys.modules.keys(), "import loads too much"
from parity.harness.tracer.memory import MemoryRun
import numpy
run = MemoryRun("x")
with tracer.recording(run), tracer.executing("a"), tracer.step(1):
    tracer.trace_tensor("q", numpy.ones(2))
assert run.taps == ["a.q"]
assert "torch" not in sys.modules, "numpy records load torch"
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=child_env())


def child_env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_the_recorded_program_computes_the_same_bits_and_draws_no_random_numbers(run: MemoryRun) -> None:
    def program() -> torch.Tensor:
        x = torch.randn(8, 8)
        for i in range(3):
            with executing(f"layer{i}"):
                x = torch.nn.functional.dropout(x @ x, 0.5)
                trace_tensor("out", x)
        return x

    torch.manual_seed(0)
    plain, state = program(), torch.get_rng_state()
    torch.manual_seed(0)
    with recording(run):
        traced = program()
    assert torch.equal(plain, traced)
    assert torch.equal(state, torch.get_rng_state())
