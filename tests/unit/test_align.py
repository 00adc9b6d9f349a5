"""Which record answers which: by name, step and absolute position, never by place, size or resemblance."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.align import Aligner, Pair
from parity.harness.errors import UserError
from parity.harness.mapping import TapMap, Transform


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
CACHE = "b h p d"
HISTORY = factory.noise(2, 3, 1100, 4)


def cache_run(layout: str, lengths: list[int], name: str = "torch", window: int = 511) -> Any:
    """A cache tap after steps that bring the history to `lengths`."""
    run = factory.new_run(name)
    for step, length in enumerate(lengths):
        if layout == "grow":
            held = np.arange(length)
        elif layout == "window":
            held = np.arange(length - window, length)
        else:  # a ring: position p lies in slot p % window
            slots = np.arange(window)
            held = slots + (length - 1 - slots) // window * window
        held = np.where(held < 0, -1, held)
        rows = np.where((held >= 0)[None, None, :, None], HISTORY[:, :, held], 55.0).astype(np.float32)
        run.record("ks", rows, step=step, axes=CACHE, positions=held)
    return run


def pairs(reference: Any, candidate: Any, tap: str = "ks", **options: Any) -> list[Pair]:
    return list(Aligner(reference, candidate, **options).pairs(tap))


def both(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Actual and expected, from memory or from the records."""
    if pair.actual is not None:
        return pair.actual, pair.expected
    return pair.candidate.read(), pair.reference.read()


def exact(pair: Pair) -> bool:
    return pair.measurable and np.array_equal(*both(pair))


@pytest.mark.parametrize(
    "layouts", [("grow", "window"), ("grow", "ring"), ("ring", "window"), ("grow", "grow")]
)
def test_a_511_row_window_is_compared_by_position_across_layouts(layouts: tuple[str, str]) -> None:
    lengths = [1, 510, 511, 512, 1023, 1100]
    theirs, own = cache_run(layouts[0], lengths), cache_run(layouts[1], lengths, "cand")
    found = pairs(theirs, own)
    assert [pair.step for pair in found] == list(range(len(lengths)))
    assert all(map(exact, found)), [pair.problem for pair in found]
    wide = own.records("ks")[-1].shape[2]
    assert both(found[-1])[0].shape == (2, 3, wide, 4)


def test_slots_that_were_never_filled_are_left_out_and_counted() -> None:
    (pair,) = pairs(cache_run("grow", [3]), cache_run("window", [3], "cand", window=5))
    assert exact(pair)
    assert both(pair)[0].shape == (2, 3, 3, 4)
    assert pair.hidden == 2 * 2 * 3 * 4
    assert pair.positions.tolist() == [[0, 1, 2]] * 2


def test_rows_of_one_window_that_are_shifted_by_one_are_not_paired_to_fit() -> None:
    own = cache_run("window", [600], "cand")
    record = own.records("ks")[0]
    record.array = np.roll(record.array, 1, axis=2)
    (pair,) = pairs(cache_run("grow", [600]), own)
    assert pair.measurable
    assert not exact(pair)


def token_run(chunks: list[int], name: str = "torch", *, one_step: bool = True, batch: int = 2) -> Any:
    """A tap with a token axis, fed in chunks: as calls of one step, or as steps."""
    run, at = factory.new_run(name), 0
    for index, width in enumerate(chunks):
        where = {"call": index} if one_step else {"step": index}
        positions = np.arange(at, at + width)
        run.record("q", HISTORY[:batch, :, positions], axes="b h t d", positions=positions, **where)
        at += width
    return run


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [6, 1], [2, 2, 3]])
def test_one_prefill_equals_its_chunks(chunks: list[int]) -> None:
    (pair,) = pairs(token_run([7]), token_run(chunks, "cand"), "q")
    assert exact(pair)
    assert both(pair)[0].shape == (2, 3, 7, 4)
    assert f"{len(chunks)} calls" in pair.rule
    (pair,) = pairs(token_run(chunks), token_run([7], "cand"), "q")
    assert exact(pair)


def test_equal_chunks_of_both_sides_are_paired_as_they_are() -> None:
    assert all(map(exact, pairs(token_run([3, 4]), token_run([3, 4], "cand"), "q")))


def test_equal_layouts_are_streamed_and_not_copied() -> None:
    found = pairs(token_run([3, 4], one_step=False), token_run([3, 4], "cand", one_step=False), "q")
    assert [pair.direct for pair in found] == [True, True]
    assert [pair.rule for pair in found] == ["tap, step, call; same positions"] * 2


def padded(side: str, name: str = "torch", width: int = 5, garbage: float = 9.0) -> Any:
    """Two sequences of 5 and 2 tokens, padded to `width`."""
    run = factory.new_run(name)
    positions = np.full((2, width), -1)
    rows = np.full((2, width, 4), garbage, np.float32)
    for sequence, length in enumerate((5, 2)):
        at = slice(0, length) if side == "right" else slice(width - length, width)
        positions[sequence, at] = np.arange(length)
        rows[sequence, at] = HISTORY[sequence, 0, :length]
    run.record("x", rows, axes="b t d", positions=positions)
    return run


@pytest.mark.parametrize(
    "sides", [("left", "right"), ("right", "left"), ("left", "left"), ("right", "right")]
)
@pytest.mark.parametrize("width", [5, 8])
def test_padding_on_another_side_and_other_garbage_in_it_change_nothing(
    sides: tuple[str, str], width: int
) -> None:
    (pair,) = pairs(padded(sides[0]), padded(sides[1], "cand", width, garbage=-3.0), "x")
    assert exact(pair)
    assert pair.hidden == (2 * width - 7) * 4


def test_not_a_number_in_padding_changes_nothing() -> None:
    (pair,) = pairs(padded("left"), padded("right", "cand", garbage=np.nan), "x")
    assert exact(pair)


def test_sequences_are_not_exchanged_when_the_batch_is() -> None:
    own = factory.new_run("cand")
    record = padded("right").records("x")[0]
    own.record("x", record.array[::-1], axes="b t d", positions=record.positions)
    (pair,) = pairs(padded("right"), own, "x")
    assert pair.measurable
    assert not exact(pair)


def test_another_batch_size_is_a_problem() -> None:
    (pair,) = pairs(token_run([4]), token_run([4], "cand", batch=1), "q")
    assert "batch=1" in pair.problem
    assert not pair.measurable


def test_taps_without_a_token_axis_are_paired_by_step_and_call() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    keys = [(0, 0), (0, 1), (2, 0), (1, 0)]
    for place, (step, call) in enumerate(keys):
        theirs.record("n", factory.noise(4, seed=place), step=step, call=call)
    for place, (step, call) in reversed(list(enumerate(keys))):
        own.record("n", factory.noise(4, seed=place), step=step, call=call)
    found = pairs(theirs, own, "n")
    assert {(pair.step, pair.call) for pair in found} == set(keys)
    assert all(map(exact, found))


def test_a_token_axis_without_positions_is_paired_by_step_and_call() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("q", factory.noise(1, 3, 4), axes="b t d", positions=np.arange(3))
    own.record("q", factory.noise(1, 3, 4), axes="b t d")
    (pair,) = pairs(theirs, own, "q")
    assert pair.rule == "tap, step, call"
    assert exact(pair)


def test_what_one_side_lacks_is_listed_on_both_sides() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    for step in range(3):
        theirs.record("n", factory.noise(2), step=step)
        own.record("n", factory.noise(2), step=step + 1)
    found = pairs(theirs, own, "n")
    assert [(p.step, p.reference is not None, p.candidate is not None) for p in found] == [
        (0, True, False),
        (1, True, True),
        (2, True, True),
        (3, False, True),
    ]


def test_a_step_that_the_candidate_lacks_is_listed_where_positions_are_known() -> None:
    found = pairs(token_run([3, 1, 1], one_step=False), token_run([3, 1], "cand", one_step=False), "q")
    assert [pair.candidate is not None for pair in found] == [True, True, False]


def test_order_is_the_references_and_what_only_the_candidate_has_comes_last() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    for tap in ("z", "m", "a"):
        theirs.record(tap, factory.noise(2))
    for tap in ("a", "new", "m", "z"):
        own.record(tap, factory.noise(2))
    assert Aligner(theirs, own).order == ["z", "m", "a", "new"]


def test_tensors_of_one_size_under_other_names_are_not_paired() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("layer0.q", factory.noise(2))
    own.record("layer0.query", factory.noise(2))
    own.record("layer0.q_", factory.noise(2))
    assert [pair.candidate for pair in pairs(theirs, own, "layer0.q")] == [None]


@pytest.mark.parametrize("axes", ["b t h d", "b d t h", "b h t", "h t d", "t h d"])
def test_other_axes_are_a_problem_and_no_guess(axes: str) -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    rows = factory.noise(4, 4, 4, 4)
    theirs.record("q", rows, axes="b h t d", positions=np.arange(4))
    own.record("q", rows[(0,) * (4 - len(axes.split()))], axes=axes, positions=np.arange(4))
    (pair,) = pairs(theirs, own, "q")
    assert "axes=" in pair.problem
    assert not pair.measurable


def test_other_axes_are_a_problem_without_a_token_axis_too() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("w", np.eye(4, dtype=np.float32), axes="h d")
    own.record("w", np.eye(4, dtype=np.float32), axes="d h")
    assert "axes=" in pairs(theirs, own, "w")[0].problem


def test_cache_rows_and_tokens_are_both_positions() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("ks", HISTORY[:, :, :4], axes="b h t d", positions=np.arange(4))
    own.record("ks", HISTORY[:, :, 1:4], axes="b h p d", positions=np.arange(1, 4))
    assert exact(pairs(theirs, own)[0])


def test_rows_of_another_width_are_a_problem() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("q", factory.noise(1, 4, 8), axes="b t d", positions=np.arange(4))
    own.record("q", factory.noise(1, 8, 4), axes="b t d", positions=np.arange(8))
    assert "shape" in pairs(theirs, own, "q")[0].problem


def test_calls_of_different_row_shapes_are_a_problem() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("q", factory.noise(1, 4, 4), axes="b t d", positions=np.arange(4))
    own.record("q", factory.noise(1, 2, 4), axes="b t d", positions=np.array([0, 1]))
    own.record("q", factory.noise(1, 2, 3), axes="b t d", positions=np.array([2, 3]), call=1)
    assert pairs(theirs, own, "q")[0].problem


def test_a_module_that_is_called_twice_over_the_same_tokens_has_two_records() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    for run in (theirs, own):
        for call in range(2):
            run.record(
                "q", factory.noise(1, 4, 4, seed=call), axes="b t d", positions=np.arange(4), call=call
            )
    assert all(map(exact, pairs(theirs, own, "q")))


# Declared renames and transforms


def test_a_declared_rename_pairs_and_says_so() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("layer0.q", factory.noise(2))
    own.record("blk.0.query", factory.noise(2))
    names = TapMap("m.toml", {"blk.*.query": "layer*.q"})
    aligner = Aligner(theirs, own, mapping=names)
    assert aligner.order == ["layer0.q"]
    (pair,) = aligner.pairs("layer0.q")
    assert exact(pair)
    assert "renamed from blk.0.query (declared in m.toml)" in pair.rule


def test_a_declared_transform_is_applied_to_the_candidate_alone() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("w", factory.noise(3, 4))
    own.record("w", factory.noise(3, 4).T[None])
    chain = (Transform("w", "squeeze", [0]), Transform("w", "transpose", [1, 0]))
    (pair,) = pairs(theirs, own, "w", mapping=TapMap("m.toml", transforms=chain))
    assert exact(pair)
    assert "squeeze [0], transpose [1, 0]" in pair.rule
    (pair,) = pairs(theirs, own, "w")
    assert pair.direct, "without the map nothing is inferred"
    assert pair.candidate.shape != pair.reference.shape


def test_two_names_mapped_onto_one_are_refused() -> None:
    own = factory.new_run("cand")
    for tap in ("a", "b"):
        own.record(tap, factory.noise(2))
    with pytest.raises(UserError, match="both mapped onto 'b'"):
        Aligner(factory.simple(), own, mapping=TapMap("m", {"a": "b"}))


def test_a_renamed_cache_is_still_compared_by_position() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("ks", HISTORY[:, :, :6], axes=CACHE, positions=np.arange(6))
    own.record("past", HISTORY[:, :, 2:6], axes=CACHE, positions=np.arange(2, 6))
    (pair,) = pairs(theirs, own, mapping=TapMap("m", {"past": "ks"}))
    assert exact(pair)
