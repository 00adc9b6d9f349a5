"""Attention: scale, mask, heads, and what it is fed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .maths import attend, may_attend, repeat_heads, rounded, softmax
from .op import Memory, Op, Values, Variant, hypothesis
from .softmax import ATTENTION, diluted


def _memory(op: Op) -> Memory:
    assert op.memory is not None
    return op.memory


def _scale(op: Op) -> float:
    return op.number("scale", op.inputs[0].shape[-1] ** -0.5)


@hypothesis("attention", ATTENTION)
def scale_missing(op: Op) -> Iterator[Variant]:
    yield Variant("the scale of the scores left out", attend(op, scale=1.0))


@hypothesis("attention", ATTENTION)
def scale_twice(op: Op) -> Iterator[Variant]:
    yield Variant("the scale of the scores applied twice", attend(op, scale=_scale(op) ** 2))


@hypothesis("attention", ATTENTION)
def scale_of_another_size(op: Op) -> Iterator[Variant]:
    """1 / sqrt(n) with an n that is not the head's width, or without the root."""
    heads, width = op.inputs[0].shape[1:]
    groups = _memory(op).keys.shape[2]
    sizes = {
        "the hidden size": float(heads * width),
        "the number of heads": float(heads),
        "the width of all key heads": float(groups * width),
        "half the width of a head": width / 2,
        "twice the width of a head": 2.0 * width,
    }
    tried = {f"scores scaled by 1 / sqrt({words})": size**-0.5 for words, size in sizes.items()}
    tried |= {
        "scores multiplied by the root": 1.0 / _scale(op),
        "scores scaled by the root of the scale": _scale(op) ** 0.5,
    }
    for words, scale in tried.items():
        if not np.isclose(scale, _scale(op)) and not np.isclose(scale, _scale(op) ** 2):
            yield Variant(words, attend(op, scale=scale))


@hypothesis("attention", ATTENTION)
def causal_mask_missing(op: Op) -> Iterator[Variant]:
    memory = _memory(op)
    later = memory.known.shape[1]
    if (op.position + 1 < later).any():
        yield Variant("the causal mask left out", attend(op, allowed=may_attend(op, memory, ahead=later)))


@hypothesis("attention", ATTENTION)
def causal_mask_one_late(op: Op) -> Iterator[Variant]:
    if (op.position + 1 < _memory(op).known.shape[1]).any():
        yield Variant(
            "a causal mask that shows one later token",
            attend(op, allowed=may_attend(op, _memory(op), ahead=1)),
        )


@hypothesis("attention", ATTENTION)
def current_token_excluded(op: Op) -> Iterator[Variant]:
    """The mask is one early, or the newest row was not yet appended; the very first token sees itself."""
    allowed = may_attend(op, _memory(op), ahead=-1)
    lonely = ~np.asarray(allowed.any(1))
    allowed[lonely] = may_attend(op, _memory(op))[lonely]
    yield Variant("a token's own key and value left out", attend(op, allowed=allowed), ~lonely)


@hypothesis("attention", ATTENTION)
def window_off(op: Op) -> Iterator[Variant]:
    """Too narrow or too wide by a row or two, or not there at all."""
    for by in (-1, 1, -2, 2) if op.around.window is not None else ():
        yield Variant(
            f"a window {abs(by)} {'wider' if by > 0 else 'narrower'}",
            attend(op, allowed=may_attend(op, _memory(op), wider=by)),
        )
    if op.around.window is not None:
        yield Variant(
            "no window: every earlier token is seen",
            attend(op, allowed=may_attend(op, _memory(op), window=False)),
        )


@hypothesis("attention", ATTENTION)
def oldest_row_lost(op: Op) -> Iterator[Variant]:
    allowed = may_attend(op, _memory(op))
    oldest = allowed.argmax(1)
    some = allowed.sum(1) > 1
    allowed[np.flatnonzero(some), oldest[some]] = False
    yield Variant("the oldest row hidden", attend(op, allowed=allowed))


def _hidden(op: Op) -> Values:
    return may_attend(op, _memory(op), ahead=_memory(op).known.shape[1], window=False) & ~may_attend(
        op, _memory(op)
    )


@hypothesis("attention", ATTENTION)
def mask_too_weak(op: Op) -> Iterator[Variant]:
    """An additive constant that does not hide; 1 less would be a boolean mask added as a number."""
    for constant in (-2.0, -5.0, -10.0, -20.0, -100.0) if _hidden(op).any() else ():
        yield Variant(f"hidden scores lowered by {-constant:g} only", attend(op, hidden=constant))


@hypothesis("attention", ATTENTION)
def mask_as_number(op: Op) -> Iterator[Variant]:
    """A boolean mask added as 0 and 1."""
    hidden = _hidden(op)
    if hidden.any():
        yield Variant(
            "the boolean mask added as 0 and 1",
            attend(op, allowed=np.ones_like(hidden), bias=(~hidden).astype(float)),
        )
        yield Variant(
            "the boolean mask added as 0 and 1, 1 where hidden",
            attend(op, allowed=np.ones_like(hidden), bias=hidden.astype(float)),
        )


@hypothesis("attention", ATTENTION)
def mask_inverted(op: Op) -> Iterator[Variant]:
    hidden = _hidden(op)
    there = np.asarray(hidden.any(1))
    if there.any():
        yield Variant("the mask inverted", attend(op, allowed=hidden), there)


@hypothesis("attention", ATTENTION)
def mask_multiplied(op: Op) -> Iterator[Variant]:
    """Hidden scores become 0 in place of -inf."""
    hidden = _hidden(op)
    if hidden.any():
        shown = ~hidden

        def weigh(scores: Values, rows: Values) -> Values:
            return softmax(np.where(rows, scores, 0.0))

        out = np.empty_like(op.expected)
        for sequence in np.unique(op.sequence):
            mine = np.flatnonzero(op.sequence == sequence)
            out[mine] = attend(
                _part(op, mine), allowed=np.ones_like(hidden[mine]), weigh=partial(weigh, rows=shown[mine])
            )
        yield Variant("hidden scores set to 0 instead of hidden", out)


@hypothesis("attention", ATTENTION)
def unfilled_slots_attended(op: Op) -> Iterator[Variant]:
    """Rows of zeros share in the softmax: as many as the window or the build has too many.

    Where the slots themselves are known, hypotheses about masks of slots say more.
    """
    memory = _memory(op)
    if op.slots is not None and op.slots.tell:
        return
    seen = may_attend(op, memory).sum(1)
    sizes = {size for size in (op.around.window, op.around.slots, (op.around.window or 0) + 1) if size}
    if not sizes:
        sizes = {memory.known.shape[1]}
    for size in sorted(sizes):
        spare = np.maximum(size - seen, 0)
        if spare.any():
            yield Variant(f"unfilled rows attended to, {size} in all", _with_zeros(op, spare))


@hypothesis("attention", ATTENTION)
def mask_moved_by_a_slot(op: Op) -> Iterator[Variant]:
    """The oldest row, or the newest, is hidden, and an unfilled one on the other side is seen instead."""
    memory = _memory(op)
    if op.slots is not None and op.slots.tell:
        return
    seen = may_attend(op, memory)
    spare = (seen.sum(1) < (op.around.slots or op.around.window or 0)).astype(int)
    oldest = seen.copy()
    oldest[np.arange(len(seen)), seen.argmax(1)] = False
    if spare.any():
        yield Variant("a mask moved on by one slot", _with_zeros(op, spare, oldest))
        yield Variant(
            "a mask moved back by one slot", _with_zeros(op, spare, may_attend(op, memory, ahead=-1))
        )


def _with_zeros(op: Op, spare: Values, allowed: Values | None = None) -> Values:
    """Softmax over `spare` more scores of 0 whose values are 0."""
    out = np.empty_like(op.expected)
    for number in np.unique(spare):
        for sequence in np.unique(op.sequence):
            rows = np.flatnonzero((spare == number) & (op.sequence == sequence))
            if rows.size:
                shown = None if allowed is None else allowed[rows]
                out[rows] = attend(_part(op, rows), allowed=shown, weigh=partial(diluted, spare=int(number)))
    return out


def _part(op: Op, rows: Values) -> Op:
    """The op with some of its rows only."""
    return replace(
        op,
        inputs=(op.inputs[0][rows],),
        sequence=op.sequence[rows],
        position=op.position[rows],
        expected=op.expected[rows],
    )


@hypothesis("attention", ATTENTION)
def heads_tiled(op: Op) -> Iterator[Variant]:
    """Query head h reads key head h mod G where neighbours should share one, or the reverse."""
    heads, groups = op.inputs[0].shape[1], _memory(op).keys.shape[2]
    if 1 < groups < heads:
        yield Variant("key heads tiled instead of repeated", attend(op, heads=np.arange(heads) % groups))


@hypothesis("attention", ATTENTION)
def heads_in_another_order(op: Op) -> Iterator[Variant]:
    heads, groups = op.inputs[0].shape[1], _memory(op).keys.shape[2]
    if groups > 1:
        own = repeat_heads(heads, groups)
        yield Variant("key heads in reverse order", attend(op, heads=own[::-1]))
        yield Variant("key heads moved on by one", attend(op, heads=(own + 1) % groups))
        yield Variant("the first key head for every query head", attend(op, heads=np.zeros_like(own)))


@hypothesis("attention", ATTENTION)
def fed_in_low_precision(op: Op) -> Iterator[Variant]:
    """Queries, keys or values rounded on the way in."""
    memory = _memory(op)
    for name in ("bfloat16", "float16"):
        q = rounded(op.inputs[0], name)
        low = replace(memory, keys=rounded(memory.keys, name), values=rounded(memory.values, name))
        yield Variant(f"queries rounded to {name}", attend(op, q=q))
        yield Variant(f"keys rounded to {name}", attend(op, memory=replace(memory, keys=low.keys)))
        yield Variant(f"values rounded to {name}", attend(op, memory=replace(memory, values=low.values)))
        yield Variant(f"keys and values rounded to {name}", attend(op, memory=low))
        yield Variant(f"queries, keys and values rounded to {name}", attend(op, q=q, memory=low))


@hypothesis("attention", ATTENTION)
def keys_and_values_swapped(op: Op) -> Iterator[Variant]:
    """Each in the other's place, or one of them in both."""
    keys, values = _memory(op).keys, _memory(op).values
    if keys.shape != values.shape:
        return
    for words, one, two in (
        ("keys and values swapped", values, keys),
        ("keys in place of values", keys, keys),
        ("values in place of keys", values, values),
    ):
        yield Variant(words, attend(op, memory=replace(_memory(op), keys=one, values=two)))


@hypothesis("attention", ATTENTION)
def keys_shifted_against_values(op: Op) -> Iterator[Variant]:
    memory = _memory(op)
    for by in (1, -1):
        yield Variant(
            f"values of the row {'before' if by > 0 else 'after'} each key's",
            attend(op, memory=replace(memory, values=np.roll(memory.values, by, 1))),
        )


@hypothesis("attention", ATTENTION)
def query_of_another_row(op: Op) -> Iterator[Variant]:
    """The query of the token before asks with this token's mask."""
    for shift, words in ((-1, "before"), (1, "after")):
        found = op.around.rows(op.reads[0], shift)
        if found is not None and found[1].any():
            yield Variant(f"the query of the token {words}", attend(op, q=found[0]), found[1])


@hypothesis("attention", ATTENTION)
def other_sequence(op: Op) -> Iterator[Variant]:
    """Batch rows mixed: keys and values of the next sequence."""
    memory = _memory(op)
    if len(memory.keys) > 1:
        mixed = Memory(*(np.roll(part, -1, 0) for part in (memory.keys, memory.values, memory.known)))
        there = np.asarray(may_attend(op, mixed).any(1))
        yield Variant("keys and values of another sequence", attend(op, memory=mixed), there)
