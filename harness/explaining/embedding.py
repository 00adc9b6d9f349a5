"""Embeddings: which row is looked up, and what is done to it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .maths import rounded, whole
from .op import Op, Values, Variant, hypothesis

EMBEDDING = frozenset({"embedding"})


def looked_up(op: Op, ids: Values) -> Values:
    """Rows of the table; ids beyond it read its last row."""
    return op.shaped(op.weight[np.clip(ids, 0, len(op.weight) - 1)])


@hypothesis("embedding", EMBEDDING, weights=True)
def row_off_by_one(op: Op) -> Iterator[Variant]:
    for by in (1, -1, 2, -2):
        yield Variant(f"embedding row id {by:+d}", op.shaped(op.weight[(op.inputs[0] + by) % len(op.weight)]))


@hypothesis("embedding", EMBEDDING, weights=True)
def ids_clipped(op: Op) -> Iterator[Variant]:
    for most in (127, 128, 255, 256, 32767):
        if (op.inputs[0] > most).any():
            yield Variant(f"ids clipped at {most}", looked_up(op, np.minimum(op.inputs[0], most)))


@hypothesis("embedding", EMBEDDING, weights=True)
def ids_wrapped(op: Op) -> Iterator[Variant]:
    """Kept in too few bits."""
    for size in (128, 256, 32768, 65536):
        if (op.inputs[0] >= size).any():
            yield Variant(f"ids modulo {size}", looked_up(op, op.inputs[0] % size))


@hypothesis("embedding", EMBEDDING, weights=True)
def unknown_ids(op: Op) -> Iterator[Variant]:
    """Some ids read one and the same row: above a limit, those of the first row."""
    for limit in (128, 256, 512, 32768):
        if (op.inputs[0] >= limit).any():
            yield Variant(
                f"ids from {limit} on taken for 0",
                looked_up(op, np.where(op.inputs[0] >= limit, 0, op.inputs[0])),
            )
    yield Variant("row 0 for every id", looked_up(op, np.zeros_like(op.inputs[0])))


@hypothesis("embedding", EMBEDDING, weights=True)
def ids_read_in_halves(op: Op) -> Iterator[Variant]:
    """64-bit ids read as 32-bit ones: every other id is 0."""
    out = np.empty_like(op.inputs[0])
    for sequence in np.unique(op.sequence):
        mine = np.flatnonzero(op.sequence == sequence)
        ids = op.inputs[0][mine]
        out[mine] = np.stack((ids, np.zeros_like(ids)), 1).reshape(-1)[: len(ids)]
    if len(out) > 1:
        yield Variant("64-bit ids read as 32-bit ones", looked_up(op, out))


@hypothesis("embedding", EMBEDDING, weights=True)
def embedding_scaled(op: Op) -> Iterator[Variant]:
    root = np.sqrt(op.weight.shape[1])
    yield Variant("the embedding times sqrt(d)", op.expected * root)
    yield Variant("the embedding divided by sqrt(d)", op.expected / root)


@hypothesis("embedding", EMBEDDING, weights=True)
def embedding_of_another_token(op: Op) -> Iterator[Variant]:
    for shift, words in ((-1, "before"), (1, "after")):
        found = op.around.rows(op.tap, shift)
        if found is not None and found[1].any():
            yield Variant(f"the id of the token {words}", found[0], found[1])


@hypothesis("embedding", EMBEDDING, weights=True)
def other_table(op: Op) -> Iterator[Variant]:
    for tap, weights in op.around.others():
        yield Variant(f"the weights of {tap}", op.shaped(weights[0][op.inputs[0]]))


@hypothesis("embedding", EMBEDDING, weights=True)
def table_in_low_precision(op: Op) -> Iterator[Variant]:
    yield Variant("a table in int8, one scale", whole(op.expected, np.abs(op.weight).max()))
    most = np.abs(op.expected).max(-1, keepdims=True)
    yield Variant("a table in int8, a scale for each row", whole(op.expected, most))
    for name in ("bfloat16", "float16"):
        yield Variant(f"a table rounded to {name}", rounded(op.expected, name))


@hypothesis("embedding", EMBEDDING, weights=True)
def table_read_transposed(op: Op) -> Iterator[Variant]:
    rows, width = op.weight.shape
    yield Variant(
        "a table read in the transposed order", op.shaped(op.weight.T.reshape(rows, width)[op.inputs[0]])
    )
