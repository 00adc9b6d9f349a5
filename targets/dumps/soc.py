"""The .npz files of the BM checker and of the tools that run a command list on the SoC.

`bmodel_inference.npz` and `soc_infer_<model>.npz` hold real numbers (float32) under MLIR names.
`failed_bmodel_outputs.npz` holds what the checker saw at a line of the final MLIR: keys
`<name>_asm_<line>_<index>_<command>_actual`, and `..._desired` where that failed. What stands under `actual`
is read; a tensor that several commands write (slices, later overwrites) has one call for each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from .core import Contents, Dumped, ReadOptions, bad, checked_settings
from .zips import Npz, looks_like_npz, write_npz

FAILED = "failed_bmodel_outputs.npz"
_NAMES = re.compile(r"bmodel_inference.*\.npz|soc_infer_.*\.npz|failed_bmodel_outputs.*\.npz")
_KEY = re.compile(
    r"(?P<name>.+)_asm_(?P<line>\d{1,9})_(?P<index>\d{1,9})_(?P<command>\d{1,9})_(?P<side>actual|desired)",
    re.S,
)


class SocReader:
    """`soc-npz`: one of those files."""

    kind = "soc-npz"
    summary = "bmodel_inference.npz, soc_infer_*.npz, failed_bmodel_outputs.npz of the BM debugging tools"
    settings: Mapping[str, str] = {"side": "of a checker's file: actual (default) or desired"}

    def detects(self, path: Path) -> bool:
        """By name."""
        return looks_like_npz(path) and _NAMES.fullmatch(path.name) is not None

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every array, or those of one side; in the order of the file, which is that of execution."""
        checked_settings(self, options)
        side = options.text("side", "actual")
        if side not in ("actual", "desired"):
            raise bad(path, f"side={side!r}: should be actual or desired")
        npz = Npz(path)
        keyed = [(key, _KEY.fullmatch(key)) for key in npz.names]
        checked = [match is not None for _, match in keyed]
        if any(checked) and not all(checked):
            raise bad(path, "holds names with and without _asm_: two tools wrote into one file")
        entries = _entries(npz, keyed, side)
        notes = (_LATE,) if any(checked) else ()
        count = sum(match is None or match["side"] == side for _, match in keyed)
        if not count and keyed:
            raise bad(
                path, f"holds nothing under {side!r}; try side={'desired' if side == 'actual' else 'actual'}"
            )
        return Contents(self.kind, {"chip": "bm1684x"}, entries, notes=notes, count=count)


_LATE = (
    "the checker reads memory after each command: slices of a tensor stand apart, and what was overwritten "
    "since is late; its numbers are a hint, not a measurement"
)


def _entries(npz: Npz, keyed: list[tuple[str, re.Match[str] | None]], side: str) -> Iterator[Dumped]:
    calls: Counter[str] = Counter()
    for key, match in keyed:
        header = npz.header(key)
        if match is None:
            yield Dumped(key, header.shape, header.logical, partial(npz.array, key))
        elif match["side"] == side:
            name = match["name"]
            meta = {word: int(match[word]) for word in ("line", "index", "command")}
            load = partial(npz.array, key)
            yield Dumped(name, header.shape, header.logical, load, call=calls[name], meta=meta)
            calls[name] += 1


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file as those tools do: deflated, members without `.npy` behind their names."""
    write_npz(path, dict(arrays), deflate=True, suffix="")
