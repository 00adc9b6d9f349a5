"""Linear layers, rotated afterwards or not: weights, biases and their number formats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .maths import cut, linear, rotate, rounded, whole
from .op import LINEAR, Op, Values, Variant, hypothesis

#: Groups of input channels that share a scale of 4-bit weights.
GROUPS = (32, 64, 128)


def finished(op: Op, values: Values) -> Values:
    """`[N, channels]` as the op hands it out: split into heads, and rotated where it rotates."""
    shaped = op.shaped(values)
    if op.role != "rotated_projection":
        return shaped
    table = op.inputs[1]
    return rotate(shaped, table[:, 0], table[:, 1], pairs=bool(op.number("pairs", 0.0)))


def made(op: Op, weight: Values, bias: Values | float | None = None) -> Values:
    """The op with another weight."""
    return finished(op, linear(op.x, weight, op.bias if bias is None else bias))


@hypothesis("linear", LINEAR, weights=True)
def weight_transposed(op: Op) -> Iterator[Variant]:
    rows, columns = op.weight.shape
    if rows == columns:
        yield Variant("its weight transposed", made(op, op.weight.T))
    else:
        yield Variant("its weight read in the transposed order", made(op, op.weight.T.reshape(rows, columns)))


@hypothesis("linear", LINEAR, weights=True)
def linear_bias_dropped(op: Op) -> Iterator[Variant]:
    if len(op.weights) > 1:
        yield Variant("its bias left out", made(op, op.weight, 0.0))


@hypothesis("linear", LINEAR, weights=True)
def linear_bias_twice(op: Op) -> Iterator[Variant]:
    """Added by every rank, or divided by their number; or taken off."""
    ways = {"twice": 2.0, "four times": 4.0, "half": 0.5, "with the other sign": -1.0}
    for words, times in ways.items() if len(op.weights) > 1 else ():
        yield Variant(f"its bias added {words}", made(op, op.weight, times * np.asarray(op.bias)))


@hypothesis("linear", LINEAR, weights=True)
def bias_after_rotation(op: Op) -> Iterator[Variant]:
    if op.role == "rotated_projection" and len(op.weights) > 1:
        bias = np.broadcast_to(op.bias, (len(op.x), len(op.weight)))
        yield Variant("its bias added after the rotation", made(op, op.weight, 0.0) + op.shaped(bias))


@hypothesis("linear", LINEAR, weights=True)
def weights_of_another_op(op: Op) -> Iterator[Variant]:
    """Another layer's, or another of the same shape."""
    for tap, weights in op.around.others():
        yield Variant(f"the weights of {tap}", made(op, weights[0], weights[1] if len(weights) > 1 else 0.0))
        if len(weights) > 1:
            yield Variant(f"the weight of {tap}, its own bias", made(op, weights[0]))
            yield Variant(f"the bias of {tap}, its own weight", made(op, op.weight, weights[1]))


@hypothesis("linear", LINEAR, weights=True)
def weight_negated(op: Op) -> Iterator[Variant]:
    """Of all, while the bias keeps its sign."""
    if len(op.weights) > 1:
        yield Variant("its weight negated", made(op, -op.weight))


@hypothesis("linear", LINEAR, weights=True)
def weight_axes_reversed(op: Op) -> Iterator[Variant]:
    yield Variant("its weight's rows in reverse order", made(op, op.weight[::-1]))
    yield Variant("its weight's columns in reverse order", made(op, op.weight[:, ::-1]))


@hypothesis("linear", LINEAR, weights=True)
def weight_rows_moved(op: Op) -> Iterator[Variant]:
    for axis, word in ((0, "rows"), (1, "columns")):
        for by in (1, -1):
            yield Variant(f"its weight's {word} moved on by {by:+d}", made(op, np.roll(op.weight, by, axis)))


@hypothesis("linear", LINEAR, weights=True)
def rows_permuted_as_rotary_pairs(op: Op) -> Iterator[Variant]:
    """A checkpoint's rows reordered between the two conventions of rotary partners, once too often."""
    width = op.expected.shape[-1]
    if op.expected.ndim < 3 or width % 2 or len(op.weight) % width:
        return
    heads = np.arange(len(op.weight)).reshape(-1, width)
    to_pairs = heads.reshape(-1, 2, width // 2).transpose(0, 2, 1).reshape(-1)
    to_halves = heads.reshape(-1, width // 2, 2).transpose(0, 2, 1).reshape(-1)
    for words, order in (("pairs", to_pairs), ("halves", to_halves)):
        bias = np.asarray(op.bias)[order] if len(op.weights) > 1 else 0.0
        told = f"its rows reordered for {words} of rotary channels"
        yield Variant(told, made(op, op.weight[order], bias))
        yield Variant(f"{told}, its bias left as it was", made(op, op.weight[order]))


@hypothesis("linear", frozenset({"projection", "rotated_projection"}), weights=True)
def packed_heads_split_otherwise(op: Op) -> Iterator[Variant]:
    """Rows packed as [3, head, d] read as [head, 3, d], or the reverse."""
    siblings = [(op.tap, op.weights), *_siblings(op)]
    if len(siblings) < 3 or any(len(weights[0]) != len(op.weight) for _, weights in siblings):
        return
    width = op.expected.shape[-1]
    siblings.sort(key=lambda item: item[0])
    mine = [tap for tap, _ in siblings].index(op.tap)
    rows = np.concatenate([weights[0] for _, weights in siblings])
    biases = np.concatenate([np.broadcast_to(w[1] if len(w) > 1 else 0.0, len(w[0])) for _, w in siblings])
    number = len(siblings)
    by_head = np.arange(len(rows)).reshape(-1, number, width)[:, mine].reshape(-1)
    yield Variant("packed rows split as [head, 3, d]", made(op, rows[by_head], biases[by_head]))
    packed = np.arange(len(rows)).reshape(number, -1, width).transpose(1, 0, 2).reshape(number, -1)[mine]
    yield Variant("packed rows split as [3, head, d]", made(op, rows[packed], biases[packed]))


def _siblings(op: Op) -> list[tuple[str, tuple[Values, ...]]]:
    """Projections of the same input."""
    found = (
        (tap, op.around.weights(tap))
        for tap in op.around.alike()
        if op.around.inputs(tap)[:1] == op.reads[:1]
    )
    return [(tap, weights) for tap, weights in found if weights]


@hypothesis("linear", LINEAR, weights=True)
def input_channel_lost(op: Op) -> Iterator[Variant]:
    """One input channel, whichever explains most, or a half of them."""
    columns = op.weight.shape[1]
    if op.role != "rotated_projection":
        gap = op.seen.reshape(len(op.x), -1) - op.expected.reshape(len(op.x), -1)
        gain = -2.0 * ((op.x.T @ gap) * op.weight.T).sum(1) - (op.x**2).sum(0) * (op.weight**2).sum(0)
        at = int(np.argmax(gain))
        lost = op.expected.reshape(gap.shape) - op.x[:, at : at + 1] * op.weight[:, at]
        yield Variant(f"input channel {at} lost", op.shaped(lost))
    for words, kept in (("first", slice(columns // 2, columns)), ("last", slice(0, columns // 2))):
        half = linear(op.x[:, kept], op.weight[:, kept], op.bias)
        yield Variant(f"the {words} half of the input channels lost", finished(op, half))


@hypothesis("linear", LINEAR, weights=True)
def input_channels_swapped(op: Op) -> Iterator[Variant]:
    """Neighbours change places, as when the nibbles of a byte are read in the other order."""
    if op.weight.shape[1] % 2 == 0:
        order = np.arange(op.weight.shape[1]).reshape(-1, 2)[:, ::-1].reshape(-1)
        yield Variant("neighbouring input channels swapped (order of nibbles)", made(op, op.weight[:, order]))


@hypothesis("linear", LINEAR, weights=True)
def weight_in_low_precision(op: Op) -> Iterator[Variant]:
    for name in ("bfloat16", "float16"):
        weight, bias = rounded(op.weight, name), rounded(np.asarray(op.bias), name)
        yield Variant(f"its weight rounded to {name}", made(op, weight))
        yield Variant(f"its weight and bias rounded to {name}", made(op, weight, bias))
    yield Variant("its weight cut off to bfloat16", made(op, cut(op.weight)))


@hypothesis("linear", LINEAR, weights=True)
def linear_in_low_precision(op: Op) -> Iterator[Variant]:
    """Input, weight and output rounded, sums in float32."""
    for name in ("bfloat16", "float16"):
        x, weight, bias = (rounded(np.asarray(part), name) for part in (op.x, op.weight, op.bias))
        yield Variant(f"its input rounded to {name}", finished(op, linear(x, op.weight, op.bias)))
        yield Variant(f"its input and weight rounded to {name}", finished(op, linear(x, weight, bias)))
        yield Variant(
            f"input, weight and output in {name}", finished(op, rounded(linear(x, weight, bias), name))
        )


@hypothesis("linear", LINEAR, weights=True)
def weight_in_int8(op: Op) -> Iterator[Variant]:
    """Symmetric 8-bit weights with one scale, or one for each row."""
    for words, most in (
        ("one scale", np.abs(op.weight).max()),
        ("a scale for each output channel", np.abs(op.weight).max(1, keepdims=True)),
        ("a scale for each input channel", np.abs(op.weight).max(0, keepdims=True)),
    ):
        yield Variant(f"its weight in int8, {words}", made(op, whole(op.weight, most)))
    clipped = whole(op.weight, np.abs(op.weight).max(1, keepdims=True), by=np.trunc)
    yield Variant("its weight in int8 by truncation, a scale for each output channel", made(op, clipped))


@hypothesis("linear", LINEAR, weights=True)
def weight_in_int4(op: Op) -> Iterator[Variant]:
    rows, columns = op.weight.shape
    for size in (*(size for size in GROUPS if columns % size == 0 and size < columns), columns):
        groups = op.weight.reshape(rows, -1, size)
        low = whole(groups, np.abs(groups).max(-1, keepdims=True), -8, 7)
        yield Variant(
            f"its weight in int4, a scale for {size} channels", made(op, low.reshape(rows, columns))
        )


@hypothesis("linear", LINEAR, weights=True)
def zero_point_sign(op: Op) -> Iterator[Variant]:
    """Asymmetric 8-bit weights whose zero point is left out, or added instead of taken off."""
    least, most = (
        np.minimum(op.weight.min(1, keepdims=True), 0.0),
        np.maximum(op.weight.max(1, keepdims=True), 0.0),
    )
    scale = (most - least) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.nan_to_num(np.rint(-least / scale))
        codes = np.nan_to_num(np.clip(np.rint(op.weight / scale) + zero, 0, 255))
    yield Variant("its weight in uint8, the zero point added", made(op, (codes + zero) * scale))
    yield Variant("its weight in uint8, the zero point left out", made(op, codes * scale))


@hypothesis("linear", LINEAR, weights=True)
def input_in_int8(op: Op) -> Iterator[Variant]:
    """8-bit inputs, rounded or cut off, with a scale for each token or for all."""
    for words, most in (
        ("each token", np.abs(op.x).max(1, keepdims=True)),
        ("all tokens", np.abs(op.x).max()),
    ):
        yield Variant(
            f"its input in int8, a scale for {words}",
            finished(op, linear(whole(op.x, most), op.weight, op.bias)),
        )
        yield Variant(
            f"its input in int8 by truncation, a scale for {words}",
            finished(op, linear(whole(op.x, most, by=np.trunc), op.weight, op.bias)),
        )


@hypothesis("linear", LINEAR)
def linear_missing(op: Op) -> Iterator[Variant]:
    """The input goes through."""
    if op.x.size == op.expected.size:
        yield Variant("the linear layer left out", op.shaped(op.x))


@hypothesis("linear", LINEAR, weights=True)
def input_heads_merged_otherwise(op: Op) -> Iterator[Variant]:
    """Heads flattened in another order before the layer."""
    heads = op.inputs[0]
    if heads.ndim == 3:
        merged = heads.transpose(0, 2, 1).reshape(op.x.shape)
        yield Variant(
            "its input's heads merged channel first", finished(op, linear(merged, op.weight, op.bias))
        )


@hypothesis("linear", LINEAR, weights=True)
def input_of_another_op(op: Op) -> Iterator[Variant]:
    """Another tap of the same shape is read in place of the right one: what the input was made from."""
    for tap in op.around.inputs(op.reads[0]):
        found = op.around.rows(tap)
        if found is not None and found[1].all() and found[0].size == op.x.size:
            yield Variant(
                f"{tap} read in place of {op.reads[0]}",
                finished(op, linear(found[0].reshape(op.x.shape), op.weight, op.bias)),
            )


@hypothesis("linear", LINEAR, weights=True)
def input_of_another_token(op: Op) -> Iterator[Variant]:
    """Row n - 1 is read where row n is meant, or n + 1; a rotation still has the right angle."""
    for shift, words in ((-1, "before"), (1, "after")):
        found = op.around.rows(op.reads[0], shift)
        if found is not None and found[1].any():
            x = found[0].reshape(op.x.shape)
            yield Variant(
                f"the input of the token {words}", finished(op, linear(x, op.weight, op.bias)), found[1]
            )
