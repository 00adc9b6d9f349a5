"""What a person may say about an Ascend dump, the same words for every kind of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.errors import UserError, did_you_mean

from ...ascend.profile import profile_of
from ..core import Dumped, ReadOptions, bad, read_object

#: Settings of every kind that has steps and names; readers add their own.
SETTINGS: Mapping[str, str] = {
    "shift": "added to the dump's step number: 1 if its folder 0 is step 1 of the scenario (default 0)",
    "ids": "the entry that holds each step's token ids, which are then held against the scenario",
    "leave_out": "entries that are not read, globs parted by commas",
}
UNCHECKED = "no entry of token ids was named (ids=NAME): that steps and tokens match is not checked"
UNSAID = (
    "nothing says chip, precision mode and switches of the run (no dump does): give --manifest ascend.json"
)


@dataclass
class Choice:
    """The settings of one reading. `used` counts what each glob left out."""

    shift: int = 0
    ids: str = ""
    leave_out: tuple[str, ...] = ()
    used: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, options: ReadOptions) -> Choice:
        """The common settings as they were given."""
        globs = [glob.strip() for glob in options.text("leave_out", "").split(",")]
        return cls(options.number("shift", 0), options.text("ids", ""), tuple(glob for glob in globs if glob))

    def wants(self, name: str) -> bool:
        """Whether an entry is read; what a glob leaves out is counted."""
        for glob in self.leave_out:
            if fnmatchcase(name, glob):
                self.used[glob] += 1
                return False
        return True

    def step(self, number: int, path: Path) -> int:
        """The scenario's step of a dump's own number; UserError where it would lie before the first."""
        if number + self.shift < 0:
            raise bad(path, f"is step {number}, and shift={self.shift} puts it before the first step")
        return number + self.shift

    def finish(self, path: Path) -> None:
        """UserError for a glob that left nothing out: it is misspelt, or meant for another dump."""
        for glob in self.leave_out:
            if not self.used[glob]:
                raise bad(path, f"leave_out={glob!r} matches none of its entries")


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
