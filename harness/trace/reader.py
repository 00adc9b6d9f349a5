"""Reading a trace: killed, being written, or clean; names first, values when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import storage_dtype
from ..errors import UserError, did_you_mean
from . import format as f
from . import index
from .blocks import Blocks
from .overlay import Overlay
from .record import Record
from .records import Column, Records
from .schema import Layout, Stream, read_layout

_TRIES = 5


class Trace:
    """A snapshot of what was flushed when it was opened; open again to see more of a run in progress.

    Read-only and lazy. UserError for a file that is missing, no trace, damaged or of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        overlay, self.layout = _open(self.path)
        with overlay:
            stream = self.layout.streams["index"]
            rows: np.ndarray[Any, Any] = stream.read(overlay.fd, 0, stream.extent)
            text = self.layout.streams["text"]
            self._lines = list(f.lines(text.read(overlay.fd, 0, text.extent).tobytes(), self.path))
            self._rows = index.trusted(rows, self.layout.streams, self.layout.dtypes, self.path)
            self._blocks = Blocks(os.dup(overlay.fd), self.layout.streams)
        self.text_size = text.extent
        self._texts = {int(x["text"]): str(x["is"]) for x in self._lines if "text" in x}
        self._by_dtype = {n: self.layout.streams[f"data/{storage_dtype(n).name}"] for n in self.layout.dtypes}
        self._offsets: Column = self._rows["offset"]
        self._crcs: np.ndarray[Any, np.dtype[np.uint32]] = self._rows["data_crc"]
        self._verified: set[int] = set()
        self._runs = _runs(self)

    @property
    def runs(self) -> list[Run]:
        """All runs of all generations, in the order in which they began."""
        return list(self._runs)

    def __getitem__(self, name: str) -> Run:
        """The newest run of a name, or the one that "name#1", "name#2" names; UserError if there is none."""
        for run in reversed(self._runs):
            if name in (run.name, f"{run.name}#{run.generation}"):
                return run
        names = dict.fromkeys(run.name for run in self._runs)
        raise UserError(f"run={name!r}: not in {self.path}. {did_you_mean(name, names)}")

    def __contains__(self, name: object) -> bool:
        return any(name in (run.name, f"{run.name}#{run.generation}") for run in self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go now; it also goes when the last reference does."""
        self._blocks.close()

    @property
    def num_records(self) -> int:
        """Records of all runs."""
        return len(self._rows)

    @property
    def num_runs(self) -> int:
        """Runs of all generations."""
        return len(self._runs)

    @property
    def num_bytes(self) -> int:
        """Bytes of records, index and text, before compression."""
        data = sum(end * storage_dtype(name).itemsize for name, end in self.stream_ends().items())
        return data + self._rows.nbytes + self.text_size

    @property
    def texts(self) -> list[tuple[int, str]]:
        """Every text that rows refer to, with its number."""
        return list(self._texts.items())

    def generations(self) -> dict[str, int]:
        """How often each run name was used."""
        found: dict[str, int] = {}
        for run in self._runs:
            found[run.name] = max(found.get(run.name, 0), run.generation)
        return found

    def stream_ends(self) -> dict[str, int]:
        """Elements used of each storage type's stream."""
        sizes = index.sizes(self._rows)
        ends: dict[str, int] = {}
        for code in np.unique(self._rows["dtype"]):
            mine = self._rows["dtype"] == code
            name = f.storage_of(code, self.layout.dtypes).name
            ends[name] = max(ends.get(name, 0), int((self._rows["offset"][mine] + sizes[mine]).max()))
        return ends

    def _text(self, number: int) -> str:
        if number and number not in self._texts:
            raise UserError(f"path={self.path}: text {number} is missing; the file is damaged")
        return self._texts.get(number, "")

    def _stream(self, dtype: str) -> Stream:
        return self._by_dtype[dtype]


class Run:
    """One execution: who made it, whether it came to its end, and its records."""

    def __init__(self, trace: Trace, number: int, content: dict[str, Any]) -> None:
        self._trace = trace
        self.number = number
        self.name = str(content["name"])
        self.generation = int(content["generation"])
        self.target = str(content.get("target", ""))
        self.created = str(content.get("created", ""))
        self.provenance: dict[str, Any] = dict(content.get("provenance", {}))
        self.complete = False
        self._mine: Column | None = None
        self._taps: dict[str, Column] | None = None
        self._listed: Records | None = None

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        return f"<Run {self.label} of {self._trace.path}: {len(self)} records, {state}>"

    def __len__(self) -> int:
        return self._orders().size

    @property
    def label(self) -> str:
        """The name that means this run and no other: with its generation once the name was used again."""
        return self.name if self._trace.generations()[self.name] == 1 else f"{self.name}#{self.generation}"

    @property
    def taps(self) -> list[str]:
        """Names in execution order: the order of their first records."""
        return list(self._by_tap())

    def records(self, tap: str | None = None) -> Sequence[Record]:
        """Records in append order, of one tap or of all; UserError for a tap that the run does not have."""
        if tap is None:
            if self._listed is None:
                self._listed = Records(self, self._orders())
            return self._listed
        mine = self._by_tap().get(tap)
        if mine is None:
            raise UserError(
                f"tap={tap!r}: run {self.label!r} has no such tap. {did_you_mean(tap, self.taps)}"
            )
        return Records(self, mine)

    def __getitem__(self, key: str | tuple[str, int] | tuple[str, int, int]) -> np.ndarray[Any, Any]:
        """Values of `run[tap]` (if it has one record), `run[tap, step]` or `run[tap, step, call]`."""
        tap, *where = key if isinstance(key, tuple) else (key,)
        records = self.records(tap)
        found = [r for r in records if [r.step, r.call][: len(where)] == where]
        if len(found) == 1:
            return found[0].read()
        if found:
            raise UserError(f"tap={tap!r}: has {len(found)} records at {where or 'no step'}; {_which(found)}")
        raise UserError(f"tap={tap!r}: has no record at {where}; {_which(records)}")

    def rows(self, tap: str) -> np.ndarray[Any, Any]:
        """Index rows of a tap's records (see `format.ROW`), for who needs columns rather than records."""
        rows: np.ndarray[Any, Any] = self._trace._rows[self._by_tap()[tap]]
        return rows

    def text(self, number: int) -> str:
        """The text that a row refers to by number."""
        return self._trace._text(number)

    def verify(self) -> list[str]:
        """Every record's checksum; what fails, in words."""
        failures = []
        for record in self.records():
            try:
                record.read()
            except UserError as error:
                failures.append(str(error))
        return failures

    def _orders(self) -> Column:
        if self._mine is None:
            self._mine = np.flatnonzero(self._trace._rows["run"] == self.number)
        return self._mine

    def _by_tap(self) -> dict[str, Column]:
        """Places of every tap's records in the index, taps in execution order."""
        if self._taps is None:
            orders = self._orders()
            taps = self._trace._rows["tap"][orders]
            sort = np.argsort(taps, kind="stable")
            parts = np.split(sort, np.flatnonzero(np.diff(taps[sort])) + 1) if sort.size else []
            parts.sort(key=lambda part: int(part[0]))
            self._taps = {self._trace._text(int(taps[part[0]])): orders[part] for part in parts}
        return self._taps


def _which(records: Sequence[Record]) -> str:
    steps = list(dict.fromkeys(r.step for r in records))
    shown = ", ".join(map(str, steps[:12])) + (" ..." if len(steps) > 12 else "")
    calls = max(r.call for r in records) + 1
    return f"it has steps {shown}" + (
        f" and up to {calls} calls a step; give tap, step, call" if calls > 1 else ""
    )


def _open(path: str) -> tuple[Overlay, Layout]:
    """The layout; a file that is being written may be caught in mid-change, so failures are tried again."""
    for _ in range(_TRIES):
        try:
            return read_layout(path)
        except UserError as error:
            failure = error
    raise failure


def _runs(trace: Trace) -> list[Run]:
    runs: dict[int, Run] = {}
    try:
        for content in trace._lines:
            if "run" in content:
                runs[content["run"]] = Run(trace, content["run"], content)
            elif "provenance_of" in content:
                runs[content["provenance_of"]].provenance.update(content["fields"])
            elif "end_of" in content:
                runs[content["end_of"]].complete = bool(content["complete"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"path={trace.path}: what its text says of runs makes no sense; it is damaged"
        ) from error
    return list(runs.values())
