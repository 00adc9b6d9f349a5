"""What `parity trace ls|show|diff|rename|export` answers: data for a printer, nothing is printed here."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import as_storage
from ..errors import UserError, did_you_mean
from .reader import Run, Trace
from .record import Record
from .run_writer import RunWriter
from .writer import TraceWriter

_PIECE = 1 << 18
_SHOWN = 1000
StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class RunLine:
    """One run in a listing; `bytes` as recorded, before compression."""

    name: str
    target: str
    created: str
    complete: bool
    taps: int
    records: int
    steps: int
    bytes: int
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class TapLine:
    """One tap in a listing; `shapes` and `dtypes` in the order of their first use."""

    tap: str
    records: int
    steps: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """One record: what it is, and statistics over its finite elements (None where there is none)."""

    tap: str
    step: int
    call: int
    shape: tuple[int, ...]
    dtype: str
    axes: str
    positions: np.ndarray[Any, np.dtype[np.int64]] | None
    meta: Mapping[str, Any]
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nonfinite: int


@dataclass(frozen=True)
class Difference:
    """What two runs do not have alike at a tap and step (None: every step), in words for each side."""

    tap: str
    step: int | None
    call: int
    what: str
    first: str
    second: str


def list_runs(path: StrPath) -> list[RunLine]:
    """All runs of a trace, oldest first."""
    with Trace(os.fspath(path)) as trace:
        return [_run_line(run) for run in trace.runs]


def _run_line(run: Run) -> RunLine:
    records = run.records()
    return RunLine(
        name=run.label,
        target=run.target,
        created=run.created,
        complete=run.complete,
        taps=len(run.taps),
        records=len(records),
        steps=len({record.step for record in records}),
        bytes=sum(record.nbytes for record in records),
        provenance=run.provenance,
    )


def list_taps(path: StrPath, run: str) -> list[TapLine]:
    """The taps of a run in execution order."""
    with Trace(os.fspath(path)) as trace:
        found: dict[str, list[Record]] = {}
        for record in trace[run].records():
            found.setdefault(record.tap, []).append(record)
        return [_tap_line(tap, records) for tap, records in found.items()]


def _tap_line(tap: str, records: Sequence[Record]) -> TapLine:
    return TapLine(
        tap=tap,
        records=len(records),
        steps=tuple(dict.fromkeys(r.step for r in records)),
        shapes=tuple(dict.fromkeys(r.shape for r in records)),
        dtypes=tuple(dict.fromkeys(r.dtype for r in records)),
        axes=tuple(dict.fromkeys(r.axes for r in records)),
    )


def describe_tap(path: StrPath, run: str, tap: str, step: int | None = None) -> list[Description]:
    """Every record of a tap, or those of one step; UserError if there is none."""
    with Trace(os.fspath(path)) as trace:
        return [_describe(record) for record in _at(trace[run].records(tap), tap, step)]


def _at(records: Sequence[Record], tap: str, step: int | None) -> list[Record]:
    found = [r for r in records if step is None or r.step == step]
    if not found:
        steps = ", ".join(str(s) for s in dict.fromkeys(r.step for r in records))
        raise UserError(f"step={step}: {tap!r} has no record there; it has steps {steps}")
    return found


def _describe(record: Record) -> Description:
    low, high, mean, std, nonfinite = _statistics(record)
    return Description(
        tap=record.tap, step=record.step, call=record.call, shape=record.shape, dtype=record.dtype,
        axes=record.axes, positions=record.positions, meta=record.meta,
        min=low, max=high, mean=mean, std=std, nonfinite=nonfinite,
    )  # fmt: skip


def _statistics(record: Record) -> tuple[float | None, float | None, float | None, float | None, int]:
    """Minimum, maximum, mean, deviation in float64, count of NaN and Inf; of complex numbers the modulus."""
    count, mean, squares, low, high, nonfinite = 0, 0.0, 0.0, np.inf, -np.inf, 0
    for start in range(0, record.size, _PIECE):
        piece = record.read_flat(start, min(start + _PIECE, record.size))
        wide = np.abs(piece.astype(np.complex128)) if piece.dtype.kind == "c" else piece.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        nonfinite += wide.size - finite.size
        if finite.size:
            count, mean, squares = _merge(count, mean, squares, finite)
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not count:
        return None, None, None, None, nonfinite
    return low, high, mean, float(np.sqrt(squares / count)), nonfinite


def _merge(count: int, mean: float, squares: float, piece: np.ndarray[Any, Any]) -> tuple[int, float, float]:
    """Mean and sum of squared deviations of all that came before and a piece (Chan, Golub, LeVeque)."""
    total = count + piece.size
    with np.errstate(over="ignore", invalid="ignore"):
        own = float(piece.mean())
        shift = own - mean
        squares += float(np.square(piece - own).sum()) + shift * shift * count * piece.size / total
        return total, mean + shift * piece.size / total, squares


def slice_values(
    path: StrPath, run: str, tap: str, where: str = "", step: int | None = None
) -> np.ndarray[Any, Any]:
    """Values of one record at a place such as "0,:,3:5" (empty: all of it)."""
    with Trace(os.fspath(path)) as trace:
        found = _at(trace[run].records(tap), tap, step)
        if len(found) > 1:
            raise UserError(f"step={step}: {tap!r} has {len(found)} records there; name one step")
        return np.asarray(found[0].read()[parse_slice(where, found[0].shape)])


def parse_slice(text: str, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """Read "0,:,3:5" as an index into an array of a shape; UserError for anything else."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > len(shape):
        raise UserError(f"slice={text!r}: has {len(parts)} places, the tensor {list(shape)} has {len(shape)}")
    return tuple(_place(part, size, text) for part, size in zip(parts, shape, strict=False))


def _place(part: str, size: int, text: str) -> int | slice:
    try:
        numbers = [int(word) if word.strip() else None for word in part.split(":")]
        if ":" in part and len(numbers) <= 3 and (len(numbers) < 3 or numbers[2] != 0):
            return slice(*numbers)
        index = int(part)
    except ValueError as error:
        raise UserError(f"slice={text!r}: {part!r} is no index; write for example 0,:,3:5") from error
    if not -size <= index < size:
        raise UserError(f"slice={text!r}: {index} is outside a dimension of {size}")
    return index


def diff_runs(path_a: StrPath, run_a: str, path_b: StrPath, run_b: str) -> list[Difference]:
    """Where two runs differ in taps, steps, shapes or dtypes, in execution order; values are not judged."""
    with Trace(os.fspath(path_a)) as a, Trace(os.fspath(path_b)) as b:
        first, second = a[run_a], b[run_b]
        lone = list(_one_sided_taps(first, second))
        both = set(first.taps) & set(second.taps)
        return lone + list(_differing_records(_by_place(first, both), _by_place(second, both)))


def _one_sided_taps(first: Run, second: Run) -> Iterator[Difference]:
    theirs, ours = set(second.taps), set(first.taps)
    yield from (
        Difference(tap, None, 0, "tap", "present", "absent") for tap in first.taps if tap not in theirs
    )
    yield from (
        Difference(tap, None, 0, "tap", "absent", "present") for tap in second.taps if tap not in ours
    )


def _by_place(run: Run, taps: set[str]) -> dict[tuple[str, int, int], Record]:
    return {(r.tap, r.step, r.call): r for r in run.records() if r.tap in taps}


def _differing_records(
    first: Mapping[tuple[str, int, int], Record], second: Mapping[tuple[str, int, int], Record]
) -> Iterator[Difference]:
    for place, record in first.items():
        tap, step, call = place
        other = second.get(place)
        if other is None:
            yield Difference(tap, step, call, "record", "present", "absent")
            continue
        if record.shape != other.shape:
            yield Difference(tap, step, call, "shape", str(list(record.shape)), str(list(other.shape)))
        if record.dtype != other.dtype:
            yield Difference(tap, step, call, "dtype", record.dtype, other.dtype)
    for place in second.keys() - first.keys():
        yield Difference(*place[:2], place[2], "record", "absent", "present")


def rename(path_in: StrPath, path_out: StrPath, names: Mapping[str, str]) -> int:
    """Copy a trace to a new file with taps renamed; how many records got another name.

    The source stays as it is. UserError when a name matches no tap, two taps would become one, or
    `path_out` exists.
    """
    if os.path.exists(path_out):
        raise UserError(f"out={os.fspath(path_out)}: exists already; give a new file")
    with Trace(os.fspath(path_in)) as trace:
        taps = dict.fromkeys(tap for run in trace.runs for tap in run.taps)
        _check_names(names, list(taps))
        with TraceWriter(os.fspath(path_out)) as writer:
            return sum(_copy_run(run, writer, names) for run in trace.runs)


def _check_names(names: Mapping[str, str], taps: Sequence[str]) -> None:
    for old in names:
        if old not in taps:
            raise UserError(f"rename={old!r}: no run has such a tap. {did_you_mean(old, taps)}")
    after = [names.get(tap, tap) for tap in taps]
    twice = [tap for tap in after if after.count(tap) > 1] if len(set(after)) < len(after) else []
    if twice:
        raise UserError(f"rename={twice[0]!r}: two different taps would get this name; choose another")


def copy_run(run: Run, path: StrPath, name: str) -> None:
    """Add a copy of a run to another trace, under a name of its own there."""
    with TraceWriter(os.fspath(path)) as writer:
        _copy_run(run, writer, {}, name)


def _copy_run(run: Run, writer: TraceWriter, names: Mapping[str, str], name: str | None = None) -> int:
    copy = writer.run(
        name or run.name, target=run.target, provenance={**run.provenance, "copied": {"created": run.created}}
    )
    changed = 0
    for record in run.records():
        tap = names.get(record.tap, record.tap)
        changed += tap != record.tap
        _copy_record(record, tap, copy)
    copy.finish(complete=run.complete)
    return changed


def _copy_record(record: Record, name: str, copy: RunWriter) -> None:
    copy.record(
        name, record.read(), step=record.step, call=record.call, axes=record.axes,
        positions=record.positions, meta=record.meta or None,
    )  # fmt: skip


def export_npz(path: StrPath, run: str, out: StrPath, taps: str = "*") -> list[str]:
    """Write the records of the taps that match a glob into an uncompressed .npz; the names inside it.

    A name is `<tap>/step<step>`, with `.<call>` behind it for later calls of a step. Types that numpy does
    not have keep their bits as unsigned or signed integers and end in `:<logical dtype>`, so
    `layer0.q/step3:bfloat16` holds uint16.
    """
    import zipfile

    with Trace(os.fspath(path)) as trace:
        chosen = trace[run]
        records = [r for r in chosen.records() if fnmatch.fnmatchcase(r.tap, taps)]
        if not records:
            raise UserError(f"taps={taps!r}: matches no tap. {did_you_mean(taps, chosen.taps)}")
        target = _npz_path(out)
        try:
            with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
                return [_export(record, archive) for record in records]
        except OSError as error:
            raise UserError(f"out={target}: cannot be written ({error.strerror})") from error


def _npz_path(out: StrPath) -> Path:
    target = Path(out)
    return target if target.suffix == ".npz" else target.with_name(target.name + ".npz")


def _export(record: Record, archive: Any) -> str:
    array = record.read()
    bits, dtype = as_storage(array)
    name = f"{record.tap}/step{record.step}" + (f".{record.call}" if record.call else "")
    if bits.dtype != array.dtype and dtype != "bool":
        name += f":{dtype}"
    else:
        bits = array
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, bits, allow_pickle=False)
    return name
