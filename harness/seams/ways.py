"""Ways of executing the same tokens: at once, in chunks, one by one, from a restored cache, padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..case import Scenario, chunk_bounds

#: By how much the shorter sequence of a padded batch is shorter.
SHORTER = 5
#: What begins at a seam of a kind of way.
SEAMS = {"chunks": "chunk boundary"} | dict.fromkeys(("decoded", "restored", "prefilled"), "decode boundary")


@dataclass(frozen=True)
class Way:
    """One way: the scenario that lays it out, and what happens to the cache between two of its steps.

    `kind` is whole, chunks, decoded, restored, prefilled or padded. `seams` are positions at which a new
    piece begins. `same_calls`: a target that is fed token by token makes the calls of another way.
    """

    name: str
    kind: str
    scenario: Scenario
    seams: tuple[int, ...] = ()
    same_calls: bool = False

    def seam(self, position: int, window: int | None) -> str:
        """The seam that a first wrong row at a position lies behind, in words."""
        start = max((seam for seam in self.seams if seam <= position), default=None)
        if window is not None and position >= window and (start is None or start < window):
            return f"window wrap {window - 1}|{window}"
        if start is None:
            return self.name if self.kind == "padded" else "before any seam"
        handed_over = self.kind in ("restored", "prefilled") and start == self.seams[0]
        word = self.name if handed_over else SEAMS.get(self.kind, self.name)
        return f"{word} {start - 1}|{start}"


def ways_of(scenario: Scenario) -> list[Way]:
    """Every way for the first prompt of a scenario; decode steps are left out."""
    ids, window = scenario.ids[0], scenario.policy.window
    whole = replace(
        scenario, ids=(ids,), texts=(), steps=0, resets=(), chunks=(), pad_to=None, padding="right"
    )
    return [
        Way("one prefill", "whole", whole),
        *_chunked(whole, window),
        *_cut(whole, window),
        *_padded(whole),
    ]


def _chunked(whole: Scenario, window: int | None) -> Iterator[Way]:
    """Chunks of 2^k and of the window, each also one shorter and one longer; one by one; the last alone."""
    count = whole.prompt_length
    middle = _middle(count)
    for length in _lengths(count, window):
        near = abs(length - middle) <= 1 or (window is not None and abs(length - window) <= 1)
        yield _in_chunks(whole, f"chunks of {length}", (length,), same_calls=not near and length > 1)


def _middle(count: int) -> int:
    """The largest power of two that leaves a second chunk."""
    return 1 << max(0, (count - 1).bit_length() - 1)


def _lengths(count: int, window: int | None) -> list[int]:
    bases = [1 << k for k in range(count.bit_length())] + ([window] if window is not None else [])
    near = {base + off for base in bases for off in (-1, 0, 1)} | {count - 1}
    return sorted(length for length in near if 1 <= length < count)


def _in_chunks(whole: Scenario, name: str, chunks: tuple[int, ...], *, same_calls: bool) -> Way:
    starts = tuple(start for start, _ in chunk_bounds(chunks, whole.prompt_length))[1:]
    name = "token by token" if chunks == (1,) else name
    return Way(name, "chunks", replace(whole, chunks=chunks), starts, same_calls)


def _cut(whole: Scenario, window: int | None) -> Iterator[Way]:
    """A first part at once, and the rest decoded: in one go, from a restored cache, from the reference's."""
    ids = whole.ids[0]
    cuts = {len(ids) // 2} | ({window} if window is not None and window < len(ids) else set())
    for cut in sorted(cut for cut in cuts if 0 < cut < len(ids)):
        first = replace(whole, ids=(ids[:cut],), steps=len(ids) - cut)
        starts = tuple(range(cut, len(ids)))
        yield Way(f"{cut} tokens, then decoded", "decoded", first, starts)
        yield Way(f"cache restored after {cut} tokens", "restored", first, starts)
        yield Way(f"cache prefilled with {cut} tokens", "prefilled", first, starts)


def _padded(whole: Scenario) -> Iterator[Way]:
    """A batch with a shorter sequence, filled on either side; and the same in chunks."""
    ids = whole.ids[0]
    short = max(1, len(ids) - SHORTER)
    if short == len(ids):
        return
    for side in ("right", "left"):
        batch = replace(whole, ids=(ids, ids[:short]), padding=side)
        yield Way(f"padded on the {side}", "padded", batch)
        if len(ids) > 7:
            starts = tuple(start for start, _ in chunk_bounds((7,), len(ids)))[1:]
            chunked = replace(batch, chunks=(7,))
            yield Way(f"padded on the {side}, chunks of 7", "padded", chunked, starts, same_calls=True)


def fed(way: Way, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All tokens of each sequence of a way, given those of the longest."""
    return tuple(tuple(ids[: len(row) + way.scenario.steps]) for row in way.scenario.ids)
