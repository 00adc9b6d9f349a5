"""Scenarios, cache policies and the plan of steps that follows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from parity.harness.case import CachePolicy, CacheRow, Port, Scenario, Segment, Wiring, plan
from parity.harness.errors import UserError


def scenario(**changes: Any) -> Scenario:
    return Scenario(**{"name": "s", "ids": ((1, 2, 3), (4,)), "steps": 4, **changes})


def test_a_plan_is_one_prefill_and_one_step_per_decoded_token() -> None:
    steps = plan(scenario(ids=((1, 2, 3),)))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.kind for step in steps] == ["prefill", "decode", "decode", "decode", "decode"]
    assert steps[0].tokens == ((1, 2, 3),)
    assert [step.positions for step in steps] == [((0, 1, 2),), ((3,),), ((4,),), ((5,),), ((6,),)]
    assert all(step.tokens is None for step in steps[1:])


def test_a_prompt_may_be_fed_in_chunks_and_decoding_counts_on() -> None:
    steps = plan(scenario(ids=((1, 2, 3, 4, 5),), chunks=(2, 1), steps=2))
    assert [step.kind for step in steps] == ["prefill", "chunk", "chunk", "chunk", "decode", "decode"]
    assert [step.index for step in steps] == list(range(6))
    assert [step.tokens for step in steps[:4]] == [((1, 2),), ((3,),), ((4,),), ((5,),)]
    assert [step.positions[0] for step in steps] == [(0, 1), (2,), (3,), (4,), (5,), (6,)]
    assert steps[-1].last


def test_a_chunk_longer_than_the_prompt_is_all_of_it() -> None:
    whole, chunked = plan(scenario(steps=1)), plan(scenario(steps=1, chunks=(99,)))
    assert whole == chunked


def test_padding_is_cut_into_chunks_as_it_lies() -> None:
    first, second = plan(scenario(chunks=(2,), steps=0))
    assert first.positions == ((0, 1), (0, -1))
    assert second.positions == ((2,), (-1,))


def test_scenarios_without_chunks_are_written_as_before_there_were_any() -> None:
    assert "chunks" not in scenario().to_json()
    chunked = scenario(chunks=(3, 1))
    assert Scenario.from_json(chunked.to_json()) == chunked


@pytest.mark.parametrize("changes", [{"chunks": (0,)}, {"chunks": (2,), "resets": (1,)}])
def test_chunks_that_mean_nothing_are_refused(changes: Any) -> None:
    with pytest.raises(UserError, match="chunks"):
        scenario(**changes)


def test_padding_on_the_right_leaves_positions_of_real_tokens_alone() -> None:
    prefill, decode = plan(scenario(pad_id=9))[:2]
    assert prefill.tokens == ((1, 2, 3), (4, 9, 9))
    assert prefill.positions == ((0, 1, 2), (0, -1, -1))
    assert decode.positions == ((3,), (1,))


def test_padding_on_the_left_counts_positions_from_the_first_real_token() -> None:
    prefill, decode = plan(scenario(padding="left", pad_id=9))[:2]
    assert prefill.tokens == ((1, 2, 3), (9, 9, 4))
    assert prefill.positions == ((0, 1, 2), (-1, -1, 0))
    assert decode.positions == ((3,), (1,))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_pad_to_widens_every_prompt(padding: str) -> None:
    step = plan(scenario(padding=padding, pad_to=5))[0]
    assert step.width == 5
    assert [sum(p >= 0 for p in row) for row in step.positions] == [3, 1]


def test_a_reset_starts_the_prompt_again_at_position_0() -> None:
    steps = plan(scenario(ids=((1, 2),), steps=5, resets=(3,)))
    assert [step.kind for step in steps] == ["prefill", "decode", "decode", "prefill", "decode", "decode"]
    assert [step.reset for step in steps] == [False, False, False, True, False, False]
    assert steps[3].tokens == ((1, 2),)
    assert [step.positions for step in steps[3:]] == [((0, 1),), ((2,),), ((3,),)]


def test_a_reset_may_be_the_first_step_the_last_or_every_step() -> None:
    steps = plan(scenario(ids=((1,),), steps=3, resets=(1, 2, 3)))
    assert [step.reset for step in steps] == [False, True, True, True]
    assert steps[-1].last


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_only_the_final_step_is_the_last(steps: int) -> None:
    made = plan(scenario(steps=steps))
    assert len(made) == steps + 1
    assert [step.last for step in made] == [False] * steps + [True]


@pytest.mark.parametrize("text", ["full", "window(1)", "window(511)"])
def test_a_policy_reads_back_what_it_prints(text: str) -> None:
    assert str(CachePolicy.parse(text)) == text
    assert CachePolicy.parse(f"  {text} ") == CachePolicy.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "window",
        "window()",
        "window(0)",
        "window(-1)",
        "window(2",
        "window(x)",
        "window(1.5)",
        "full(3)",
        "h2o",
        "",
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="cache="):
        CachePolicy.parse(text)


def test_digits_that_are_no_number_are_refused() -> None:
    with pytest.raises(UserError):
        CachePolicy.parse("window(²)")


def test_a_window_of_0_is_refused_however_it_is_made() -> None:
    with pytest.raises(UserError, match="at least 1"):
        CachePolicy("window", 0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ids": ()}, "no tokens"),
        ({"ids": ((1,), ())}, "no tokens"),
        ({"steps": -1}, "steps=-1"),
        ({"padding": "middle"}, "padding='middle'"),
        ({"sampling": "top-p"}, "sampling='top-p'"),
        ({"pad_to": 2}, "pad_to=2"),
        ({"pad_to": 0}, "pad_to=0"),
        ({"resets": (0,)}, "resets"),
        ({"resets": (5,)}, "not a decode step of 1..4"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_with_the_field_named(
    changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        scenario(**changes)


def test_one_prompt_is_replicated_and_a_list_must_fit() -> None:
    single = scenario(ids=((1, 2),), texts=("ab",))
    assert single.with_batch(3).ids == ((1, 2),) * 3
    assert single.with_batch(3).texts == ("ab",) * 3
    assert scenario().with_batch(2) == scenario()
    for made, batch in ((scenario(), 3), (single, 0), (single, -1)):
        with pytest.raises(UserError, match=f"batch={batch}"):
            made.with_batch(batch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy": CachePolicy("window", 7), "padding": "left", "pad_to": 8, "pad_id": 3},
        {"resets": (1, 4), "seed": 5, "texts": ("abc", "d")},
    ],
)
def test_a_scenario_survives_json(changes: dict[str, Any]) -> None:
    made = scenario(**changes)
    assert Scenario.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_every_field_of_a_scenario_is_in_its_json() -> None:
    """A digest is taken of it: what is left out would make two scenarios the same."""
    base = scenario().to_json()
    for changes in ({"ids": ((1,),)}, {"steps": 5}, {"policy": CachePolicy("window", 3)}, {"padding": "left"},
                    {"pad_to": 9}, {"pad_id": 1}, {"resets": (2,)}, {"seed": 1}):  # fmt: skip
        assert replace(scenario(), **changes).to_json() != base, changes


def test_a_wiring_knows_where_a_tap_is_computed_and_what_is_appended() -> None:
    head = Segment(
        "head", (Port("ids", "ids", "b t", ("B", "T")),), (Port("k", "layer0.k", "b h t d", ()),), ("embed",)
    )
    tail = Segment("tail", (), (Port("logits", "logits", "b t v", ()),))
    table = Wiring((head, tail), (CacheRow("layer0.ks", "layer0.k", "tail"),))
    assert [table.producer(tap) for tap in ("embed", "layer0.k", "logits", "layer0.ks", "ids")] == [
        "head", "head", "tail", None, None,
    ]  # fmt: skip
    assert [row.cache for row in table.appends("tail")] == ["layer0.ks"]
    assert list(table.appends("head")) == []
    assert json.loads(json.dumps(table.to_json()))["caches"][0]["source"] == "layer0.k"
