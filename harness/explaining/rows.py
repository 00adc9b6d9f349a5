"""Right values in the wrong place: of another token, step, sequence or tap, whatever the op."""

from __future__ import annotations

from collections.abc import Iterator

from .op import Op, Variant, hypothesis


@hypothesis("rows", rank=1)
def of_another_token(op: Op) -> Iterator[Variant]:
    """Row n - 1 in place of row n; while decoding, what belongs to the step before."""
    for shift in (-1, 1, -2, 2):
        found = op.around.rows(op.tap, shift)
        if found is not None and found[1].any() and op.role != "cache":
            word = f"{abs(shift)} {'before' if shift < 0 else 'after'}"
            yield Variant(f"the row of the token {word}", found[0], found[1])


@hypothesis("rows", rank=1)
def of_an_earlier_step(op: Op) -> Iterator[Variant]:
    """Stale: not replaced since."""
    for steps in (1, 2):
        found = op.around.before(steps)
        if found is not None:
            yield Variant(f"what belongs to {'a step' if steps == 1 else 'two steps'} before", found)


@hypothesis("rows", rank=1)
def of_another_sequence(op: Op) -> Iterator[Variant]:
    mixed = op.around.mixed(op.tap)
    if mixed is not None and op.role != "cache":
        yield Variant("rows of another sequence of the batch", mixed)


@hypothesis("rows", rank=1)
def of_another_tap(op: Op) -> Iterator[Variant]:
    for tap in op.around.alike() if op.role != "cache" else ():
        found = op.around.rows(tap)
        if found is not None and found[1].all() and found[0].shape == op.expected.shape:
            yield Variant(f"what belongs to {tap}", found[0])


@hypothesis("rows", rank=1)
def input_goes_through(op: Op) -> Iterator[Variant]:
    """The op is left out."""
    for tap, given in zip(op.reads, op.inputs, strict=False):
        if given.size == op.expected.size and given.dtype.kind == "f" and op.role not in ("cache", "copy"):
            yield Variant(f"{tap} unchanged", op.shaped(given))
