"""Rotary positions: which channels are partners, which angle they turn by, and where that came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .maths import frequencies, linear, rotate, rounded, tables, turned, unrotate
from .op import ROTATED, Op, Values, Variant, hypothesis

#: Bases of published models, and how far a position may be off.
BASES = (1e2, 1e3, 5e3, 1e4, 2e4, 1e5, 5e5, 1e6, 1e7)
OFFSETS = (1, -1, 2, -2, 3, -3, 4, -4, 8, -8, 16, -16)
TABLE = frozenset({"rope_table"})
TURNED = ROTATED | TABLE

Build = Callable[[Values, Values], Values]


def planes(op: Op) -> tuple[Values, Values]:
    """The reference's cosines and sines `[N, D]`."""
    rows = op.expected if op.role == "rope_table" else op.inputs[1]
    return rows[:, 0], rows[:, 1]


def before(op: Op) -> Values:
    """What is rotated, `[N, H, D]`: computed where the weights are at hand, else the output turned back."""
    if op.weights:
        return op.shaped(linear(op.x, op.weight, op.bias))
    return unrotate(op.expected, *planes(op), pairs=paired(op))


def paired(op: Op) -> bool:
    """Whether the reference itself rotates pairs of neighbours."""
    return bool(op.number("pairs", 0.0))


def with_tables(op: Op) -> Build:
    """Cosines and sines -> the output that they give."""
    if op.role == "rope_table":
        return lambda cos, sin: np.stack((cos, sin), 1)
    return partial(rotate, before(op), pairs=paired(op))


def slowest(op: Op) -> tuple[Values, float] | None:
    """Frequencies of the pairs `[D / 2]` and their base, read off two neighbouring positions."""
    tap = op.tap if op.role == "rope_table" else op.reads[1]
    for shift in (-1, 1):
        found = op.around.rows(tap, shift)
        if found is not None and found[1].any():
            at = int(np.argmax(found[1]))
            here, there = (complex_of(rows[at], paired(op)) for rows in (np.stack(planes(op), 1), found[0]))
            frequency = np.angle(here / there) * -shift
            if len(frequency) > 1 and (frequency > 0).all() and frequency[1] < frequency[0]:
                return frequency, float((frequency[0] / frequency[1]) ** len(frequency))
    return None


def complex_of(rows: Values, pairs: bool) -> Values:
    """One position's `[2, D]` as cos + i sin of each pair."""
    own = rows[:, ::2] if pairs else rows[:, : rows.shape[1] // 2]
    return np.asarray(own[0] + 1j * own[1])


def spelled(base: float) -> str:
    """A base to two digits, 1e4 rather than 1e+04."""
    mantissa, exponent = f"{base:.1e}".split("e+")
    return f"{base:.4g}" if base < 1e3 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def known(op: Op) -> Values | None:
    """Frequencies to compute other positions with: a base's exactly where the measured ones are a base's."""
    found = slowest(op)
    if found is None:
        return None
    frequency, base = found
    near = min(BASES, key=lambda known: abs(np.log(known / base)))
    exact = frequencies(near, 2 * len(frequency))
    return exact if np.abs(frequency - exact).max() < 1e-2 else frequency


@hypothesis("rope", ROTATED)
def the_other_partners(op: Op) -> Iterator[Variant]:
    """Halves against pairs, with the table as it is and with each angle beside its partner."""
    found = slowest(op)
    base = "" if found is None else f", base {spelled(found[1])}"
    words = ("half-split" if paired(op) else "interleaved") + f" RoPE{base}"
    cos, sin = planes(op)
    x, pairs = before(op), not paired(op)
    half = cos.shape[-1] // 2
    if pairs:
        yield Variant(
            words, rotate(x, np.repeat(cos[:, :half], 2, -1), np.repeat(sin[:, :half], 2, -1), pairs=True)
        )
    else:
        yield Variant(words, rotate(x, np.tile(cos[:, ::2], 2), np.tile(sin[:, ::2], 2)))
    yield Variant(f"{words}, its table left as it was", rotate(x, cos, sin, pairs=pairs))


@hypothesis("rope", TURNED)
def sign_of_rotation(op: Op) -> Iterator[Variant]:
    cos, sin = planes(op)
    yield Variant("RoPE of the opposite sign", with_tables(op)(cos, -sin))


@hypothesis("rope", TURNED)
def cosine_and_sine_swapped(op: Op) -> Iterator[Variant]:
    cos, sin = planes(op)
    yield Variant("cosines and sines of RoPE swapped", with_tables(op)(sin, cos))


@hypothesis("rope", TURNED)
def position_off(op: Op) -> Iterator[Variant]:
    """A constant offset, for each of a few."""
    build, frequency = with_tables(op), known(op)
    for by in OFFSETS if frequency is not None else ():
        assert frequency is not None
        cos, sin = tables(op.position + by, frequency, pairs=paired(op))
        there = op.position + by >= 0
        yield Variant(f"RoPE positions off by {by:+d}", build(cos, sin), there)


@hypothesis("rope", TURNED)
def position_relative(op: Op) -> Iterator[Variant]:
    """Counted from somewhere else than the start of the sequence."""
    build, frequency = with_tables(op), known(op)
    if frequency is None:
        return
    first = np.zeros_like(op.position)
    for sequence in np.unique(op.sequence):
        mine = op.sequence == sequence
        first[mine] = op.position[mine].min()
    last = np.zeros_like(op.position)
    for sequence in np.unique(op.sequence):
        last[op.sequence == sequence] = op.position[op.sequence == sequence].max()
    choices = {
        "RoPE positions that start again at 0 in each step": op.position - first,
        "RoPE positions counted from the padding": op.position + last.max() - last,
    }
    if op.around.window is not None:
        window = op.around.window
        choices["RoPE positions counted within the window"] = np.minimum(op.position, window - 1)
    for words, position in choices.items():
        if (position != op.position).any():
            yield Variant(words, build(*tables(position, frequency, pairs=paired(op))))


@hypothesis("rope", TURNED)
def position_fixed(op: Op) -> Iterator[Variant]:
    """One position for all tokens of a step; position 0 would be no rotation."""
    build, frequency = with_tables(op), known(op)
    if frequency is None or len(np.unique(op.position)) < 2:
        return
    for words, one in (("first", op.position.min()), ("last", op.position.max())):
        if one == 0 and op.role != "rope_table":
            continue
        position = np.full_like(op.position, one)
        yield Variant(
            f"RoPE positions all those of the step's {words} token",
            build(*tables(position, frequency, pairs=paired(op))),
        )


@hypothesis("rope", TURNED)
def position_scaled(op: Op) -> Iterator[Variant]:
    """Positions interpolated for longer contexts; twice the angle would be a second rotation."""
    build, frequency = with_tables(op), known(op)
    double = (2.0,) if op.role == "rope_table" else ()
    for by in (0.5, *double, 0.25, 4.0, 0.125, 8.0) if frequency is not None else ():
        assert frequency is not None
        yield Variant(
            f"RoPE positions times {by:g}", build(*tables(op.position, frequency * by, pairs=paired(op)))
        )


@hypothesis("rope", TURNED)
def other_base(op: Op) -> Iterator[Variant]:
    build, found = with_tables(op), slowest(op)
    for base in BASES if found is not None else ():
        assert found is not None
        if abs(np.log(base / found[1])) > 0.1:
            frequency = frequencies(base, 2 * len(found[0]))
            yield Variant(
                f"RoPE of base {spelled(base)}", build(*tables(op.position, frequency, pairs=paired(op)))
            )


@hypothesis("rope", TURNED)
def other_exponent(op: Op) -> Iterator[Variant]:
    """Frequencies base^(-2i / n) with another n than the head's width."""
    build, found = with_tables(op), slowest(op)
    if found is None:
        return
    width, base = 2 * len(found[0]), found[1]
    heads = op.number("num_heads", 0.0)
    wrong = {"half the width of a head": width / 2, "twice the width of a head": 2.0 * width}
    if op.role != "rope_table":
        wrong["the hidden size"] = float(op.x.shape[1])
        wrong["the number of heads"] = heads
    for words, exponent in wrong.items():
        if exponent and exponent != width:
            frequency = frequencies(base, width, exponent)
            yield Variant(
                f"RoPE frequencies with {words} in the exponent",
                build(*tables(op.position, frequency, pairs=paired(op))),
            )


@hypothesis("rope", TURNED)
def table_rounded(op: Op) -> Iterator[Variant]:
    cos, sin = planes(op)
    for name in ("bfloat16", "float16"):
        yield Variant(
            f"a RoPE table rounded to {name}", with_tables(op)(rounded(cos, name), rounded(sin, name))
        )
    frequency = known(op)
    for name in ("bfloat16", "float16") if frequency is not None else ():
        assert frequency is not None
        angle = rounded(op.position[:, None] * frequency, name)
        both = np.repeat(angle, 2, -1) if paired(op) else np.concatenate((angle, angle), -1)
        yield Variant(f"RoPE angles rounded to {name}", with_tables(op)(np.cos(both), np.sin(both)))


@hypothesis("rope", TURNED)
def table_not_rounded(op: Op) -> Iterator[Variant]:
    """Computed anew where the checkpoint holds rounded rows."""
    found = slowest(op)
    if found is not None:
        near = min(BASES, key=lambda base: abs(np.log(base / found[1])))
        frequency = frequencies(near, 2 * len(found[0]))
        yield Variant(
            f"a RoPE table computed anew in float32, base {spelled(near)}",
            with_tables(op)(*tables(op.position, frequency, pairs=paired(op))),
        )


@hypothesis("rope", TURNED)
def table_of_the_other_layout(op: Op) -> Iterator[Variant]:
    """Each angle stands beside its copy where the halves repeat it, or the reverse."""
    cos, sin = planes(op)
    half = cos.shape[-1] // 2
    if paired(op):
        yield Variant(
            "a RoPE table laid out for halves",
            with_tables(op)(np.tile(cos[:, ::2], 2), np.tile(sin[:, ::2], 2)),
        )
    else:
        yield Variant(
            "a RoPE table laid out for pairs",
            with_tables(op)(np.repeat(cos[:, :half], 2, -1), np.repeat(sin[:, :half], 2, -1)),
        )


@hypothesis("rope", ROTATED)
def partial_rotation(op: Op) -> Iterator[Variant]:
    """Only the first channels turn: with the first angles, and with angles of the narrower width."""
    x, found = before(op), slowest(op)
    width = x.shape[-1]
    for share in (2, 4):
        part = width // share
        if part % 2 or found is None:
            continue
        for frequency in (found[0][: part // 2], frequencies(found[1], part)):
            turned_part = rotate(
                x[..., :part], *tables(op.position, frequency, pairs=paired(op)), pairs=paired(op)
            )
            yield Variant(
                f"RoPE on the first {part} of {width} channels only",
                np.concatenate((turned_part, x[..., part:]), -1),
            )


@hypothesis("rope", ROTATED)
def no_rotation(op: Op) -> Iterator[Variant]:
    yield Variant("RoPE left out", before(op))


@hypothesis("rope", ROTATED)
def rotated_twice(op: Op) -> Iterator[Variant]:
    yield Variant("RoPE applied twice", rotate(op.expected, *planes(op), pairs=paired(op)))


@hypothesis("rope", ROTATED)
def sine_term_missing(op: Op) -> Iterator[Variant]:
    x, (cos, sin) = before(op), planes(op)
    yield Variant("the sine term of RoPE left out", x * cos[:, None])
    yield Variant("the cosine term of RoPE left out", turned(x, pairs=paired(op)) * sin[:, None])


@hypothesis("rope", ROTATED)
def one_head_only(op: Op) -> Iterator[Variant]:
    """Broadcast over the wrong axis: only the first head turns."""
    x = before(op)
    if x.shape[1] > 1:
        yield Variant("RoPE on the first head only", np.concatenate((op.expected[:, :1], x[:, 1:]), 1))


@hypothesis("rope", frozenset({"projection"}))
def rotated_though_it_should_not_be(op: Op) -> Iterator[Variant]:
    """With the table that another projection of the same width reads."""
    for tap in op.around.alike():
        reads = op.around.inputs(tap)
        found = op.around.rows(reads[1]) if len(reads) > 1 else None
        if found is not None and found[0].shape[1:] == (2, op.expected.shape[-1]):
            yield Variant("RoPE on the values too", rotate(op.expected, found[0][:, 0], found[0][:, 1]))
            return


@hypothesis("rope", ROTATED)
def rotated_in_low_precision(op: Op) -> Iterator[Variant]:
    x, (cos, sin) = before(op), planes(op)
    for name in ("bfloat16", "float16"):
        low = [rounded(part, name) for part in (x, cos, sin)]
        own = rounded(low[0] * low[1][:, None], name)
        other = rounded(turned(low[0], pairs=paired(op)) * low[2][:, None], name)
        yield Variant(f"RoPE computed in {name}", rounded(own + other, name))
