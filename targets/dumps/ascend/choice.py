"""What a person may say about an Ascend dump, the same words for every kind of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from parity.harness.errors import UserError, did_you_mean

from ...ascend.profile import profile_of
from ..core import Dumped, ReadOptions, bad, read_object

T = TypeVar("T")
#: Settings of every kind that has steps and names; readers add their own.
SETTINGS: Mapping[str, str] = {
    "steps": "which of the dump's own step numbers are read: 3 or 1-8 (default all)",
    "ids": "the entry that holds each step's token ids, which are then held against the scenario",
    "leave_out": "entries that are not read, globs parted by commas",
}
UNCHECKED = "which entry holds each step's token ids was not said (ids=NAME), so that they are not checked"
UNSAID = (
    "nothing says chip, precision mode and switches of the run (no dump does): give --manifest ascend.json"
)


@dataclass
class Choice:
    """The settings of one reading. `used` counts what each glob left out."""

    steps: tuple[int, int] = (0, 1 << 62)
    ids: str = ""
    leave_out: tuple[str, ...] = ()
    used: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, options: ReadOptions) -> Choice:
        """The common settings as they were given."""
        globs = [glob.strip() for glob in options.text("leave_out", "").split(",")]
        return cls(_range(options), options.text("ids", ""), tuple(glob for glob in globs if glob))

    def wants(self, name: str) -> bool:
        """Whether an entry is read; what a glob leaves out is counted."""
        for glob in self.leave_out:
            if fnmatchcase(name, glob):
                self.used[glob] += 1
                return False
        return True

    def chosen(self, items: Iterable[T], number: Callable[[T], int], path: Path) -> list[T]:
        """The items whose step is wanted; UserError if none of them is."""
        listed = list(items)
        first, last = self.steps
        kept = [item for item in listed if first <= number(item) <= last]
        if listed and not kept:
            known = sorted({number(item) for item in listed})
            raise bad(path, f"steps={first}-{last}: none of them is in it; it has {_few(known)}")
        return kept

    def finish(self, path: Path) -> None:
        """UserError for a glob that left nothing out: it is misspelt, or meant for another dump."""
        for glob in self.leave_out:
            if not self.used[glob]:
                raise bad(path, f"leave_out={glob!r} matches none of its entries")


def _range(options: ReadOptions) -> tuple[int, int]:
    """`3` or `1-8` -> first and last; UserError for anything else."""
    text = options.text("steps", f"0-{1 << 62}")
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or len(text) > 40:
        raise UserError(f"steps={text[:40]!r}: should be a number or two, as 3 or 1-8")
    return int(first), int(last) if dash else int(first)


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")


def counted(entries: Iterable[Dumped]) -> Iterator[Dumped]:
    """Entries with their call: a name that comes again within a step is the next call of it."""
    seen: Counter[tuple[int, str]] = Counter()
    for entry in entries:
        call = seen[entry.step, entry.name]
        seen[entry.step, entry.name] += 1
        yield replace(entry, call=call) if call else entry


def fed_by(entries: Iterable[Dumped], ids: str, path: Path) -> dict[int, np.ndarray]:
    """Token ids `[B, T]` of each step, from the entries that are named `ids`; UserError if there are none."""
    fed: dict[int, np.ndarray] = {}
    names: set[str] = set()
    for entry in entries:
        names.add(entry.name)
        if entry.name == ids and entry.step not in fed:
            fed[entry.step] = token_ids(entry.load(), path, ids)
    if not fed:
        raise bad(path, f"ids={ids!r}: no such entry. {did_you_mean(ids, sorted(names))}")
    return fed


def token_ids(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Ids as int64 `[B, T]`; UserError for numbers that are no ids."""
    if array.dtype.kind not in "iu" or array.ndim > 2 or not array.size:
        raise bad(path, f"{what} holds {array.dtype} of shape {list(array.shape)}, which are no token ids")
    return array.astype(np.int64).reshape(1, -1) if array.ndim < 2 else array.astype(np.int64)


def arithmetic(options: ReadOptions) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Facts and notes from the manifest that was written on the board, where one is given."""
    if options.manifest is None:
        return {}, (UNSAID,)
    try:
        profile = profile_of(read_object(options.manifest))
    except UserError as error:
        raise bad(options.manifest, str(error).removeprefix("dump=")) from error
    facts = {"chip": profile.chip, "precision": profile.precision_mode, "arithmetic": profile.facts()}
    unknown = ", ".join(profile.unknown)
    return facts, ((f"the manifest does not say: {unknown}",) if unknown else ())
