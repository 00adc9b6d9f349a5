"""Keys and values outside the graphs, and which of them a token may attend to.

Every row is kept, newest last, so that a step can be taken back; a segment is handed the newest `rows` of
them, right-aligned, zeros at position -1 where nothing came yet.
"""

from __future__ import annotations

from array import array

from .tensors import Failure

#: What a hidden row adds to a score: exp(-1e4) is exactly 0 in every format.
HIDDEN = -1.0e4


class Cache:
    """Rows of all caches of one sequence. `window` is that of the cache policy, None for full."""

    def __init__(self, names: list[str], rows: int, window: int | None) -> None:
        self._names, self._rows, self._window = names, rows, window
        self.clear()

    def clear(self) -> None:
        """Forget every row."""
        self.positions: list[int] = []
        self._heads: dict[str, list[bytearray]] = {name: [] for name in self._names}

    def fill(self, positions: list[int], caches: list[list[bytes]]) -> None:
        """Take rows that were filled elsewhere, head by head, caches in the wiring's order."""
        self.positions = list(positions)
        self._heads = dict(zip(self._names, ([bytearray(head) for head in heads] for heads in caches)))  # noqa: B905

    def advance(self, position: int) -> None:
        """A token comes; each cache gets its row with `append`."""
        if self._window is None and len(self.positions) >= self._rows:
            raise Failure(
                f"position {position} does not fit into the {self._rows} rows of this build; compile it with "
                "a larger window, or run the scenario with the cache policy window"
            )
        self.positions.append(position)

    def append(self, name: str, row: bytes, heads: int) -> None:
        """The new row of a cache, `[h, d]` float32."""
        size = len(row) // heads
        if not self._heads[name]:
            self._heads[name] = [bytearray() for _ in range(heads)]
        for at, head in enumerate(self._heads[name]):
            head += row[at * size : (at + 1) * size]

    def view(self, name: str) -> bytes:
        """What a segment is handed, `[h, W, d]` float32."""
        heads = self._heads[name]
        size = len(heads[0]) // len(self.positions) * self._rows
        return b"".join(bytes(max(0, size - len(head))) + head[-size:] for head in heads)

    def held(self) -> list[int]:
        """Absolute position of each row of a view, -1 where nothing is."""
        newest = self.positions[-self._rows :]
        return [-1] * (self._rows - len(newest)) + newest

    def newest(self, name: str) -> bytes:
        """The last row, `[h, 1, d]`."""
        heads = self._heads[name]
        size = len(heads[0]) // len(self.positions)
        return b"".join(head[-size:] for head in heads)

    def mask(self) -> bytes:
        """What is added to the newest token's scores, `[W]` float32."""
        query = self.positions[-1]
        oldest = 0 if self._window is None else query - self._window + 1
        hidden = (0.0 if max(0, oldest) <= at <= query else HIDDEN for at in self.held())
        return array("f", hidden).tobytes()

    def rewind(self, count: int) -> None:
        """Keep the first `count` rows."""
        if count >= len(self.positions):
            return
        for heads in self._heads.values():
            for head in heads:
                del head[len(head) // len(self.positions) * count :]
        del self.positions[count:]
