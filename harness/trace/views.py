"""Natural views: `/runs/<run>/<tap>` as virtual datasets over the streams, so that any HDF5 tool reads them.

Published after a clean close and by `repair`. `/runs/<name>#<generation>` holds the views of one run,
`/runs/<name>` is a soft link to the newest. A tap whose records all have one shape is one dataset with its
records along the first axis; otherwise it is a group with one dataset per record, `step3` or `step3.1`
(step and call). Nothing is copied. A slash in a name is written %2F, a percent sign %25.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ..dtypes import storage_dtype
from .overlay import Overlay
from .reader import Run, Trace

if TYPE_CHECKING:
    from .record import Record

MAX_MAPPINGS = 20_000
"""Pieces of the streams that the views of one run may be made of; taps beyond it are left out, and named."""

_MAX_LISTED = 4096
"""Records whose steps and calls are listed in the attributes of a view (an attribute holds 64 KiB)."""


def publish(path: str) -> None:
    """Make the views of every run that has none; the caller holds the lock.

    Written through an overlay: a kill leaves either the old file or the new one with all records intact.
    Where there is no room for views the records stay as they are and the views are left out.
    """
    with Trace(path) as trace:
        fresh = [run for run in trace.runs if _place(run) not in trace.layout.published]
        if not fresh:
            return
        with Overlay(path) as overlay:
            with h5py.File(overlay, "r+", libver="latest") as file:
                for run in fresh:
                    _publish_run(file, run)
            overlay.commit()


def escape(name: str) -> str:
    """A name as one link of HDF5."""
    escaped = name.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if escaped in (".", "..") else escaped


def _place(run: Run) -> str:
    return f"{escape(run.name)}#{run.generation}"


def _publish_run(file: Any, run: Run) -> None:
    group = file["runs"].create_group(_place(run), track_order=True)
    left_out, budget = [], MAX_MAPPINGS
    for tap in run.taps:
        records = run.records(tap)
        budget -= sum(len(_pieces(part)) for part in _parts(records))
        if budget < 0:
            left_out.append(tap)
        else:
            _publish_tap(group, tap, records)
    _describe_run(group, run, left_out)
    newest = file["runs"]
    if escape(run.name) in newest:
        del newest[escape(run.name)]
    newest[escape(run.name)] = h5py.SoftLink(f"/runs/{_place(run)}")


def _describe_run(group: Any, run: Run, left_out: list[str]) -> None:
    group.attrs.update(
        {
            "run": run.name,
            "generation": run.generation,
            "target": run.target,
            "created": run.created,
            "complete": run.complete,
            "provenance": json.dumps(run.provenance),
            "left_out": f"{len(left_out)} taps, first {left_out[0]!r}" if left_out else "",
        }
    )


def _publish_tap(group: Any, tap: str, records: Sequence[Record]) -> None:
    parts = _parts(records)
    if len(parts) == 1:
        _publish_part(group, escape(tap), records, stacked=True)
        return
    inside = group.create_group(escape(tap), track_order=True)
    names: dict[str, int] = {}
    for record in records:
        name = f"step{record.step}.{record.call}" if record.call else f"step{record.step}"
        names[name] = names.get(name, 0) + 1
        again = f" ({names[name]})" if names[name] > 1 else ""
        _publish_part(inside, name + again, [record], stacked=False)


def _parts(records: Sequence[Record]) -> list[list[Record]]:
    """One part when all records have one dtype and shape, else each record for itself."""
    if len({(r.dtype, r.shape) for r in records}) == 1:
        return [list(records)]
    return [[record] for record in records]


def _publish_part(group: Any, name: str, records: Sequence[Record], *, stacked: bool) -> None:
    record = records[0]
    storage = storage_dtype(record.dtype)
    shape = (len(records), *record.shape) if stacked else record.shape
    if record.size:
        stream = group.file[f"data/{storage.name}"]
        space = h5py.h5s.create_simple(shape)
        view = h5py.Dataset(
            h5py.h5d.create(
                group.id, name.encode(), stream.id.get_type(), space, _mapping(stream, shape, records)
            )
        )
    else:
        view = group.create_dataset(name, shape=shape, dtype=storage)
    view.attrs.update({"dtype": record.dtype, "axes": ("step " if stacked else "") + record.axes})
    if stacked and len(records) <= _MAX_LISTED:
        view.attrs["steps"] = np.array([r.step for r in records], np.int64)
        view.attrs["calls"] = np.array([r.call for r in records], np.int64)


def _mapping(stream: Any, shape: tuple[int, ...], records: Sequence[Record]) -> Any:
    """A property list that says where the records lie in the stream, in as few regular pieces as possible."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_layout(h5py.h5d.VIRTUAL)
    size, at = records[0].size, 0
    for start, stride, count in _pieces(records):
        there = stream.id.get_space()
        there.select_hyperslab((start,), (count,), (stride,), (size,))
        here = h5py.h5s.create_simple(shape)
        if len(shape) > len(records[0].shape):
            here.select_hyperslab((at, *(0,) * (len(shape) - 1)), (count, *shape[1:]))
        made.set_virtual(here, b".", stream.name.encode(), there)
        at += count
    return made


def _pieces(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """Records as (offset of the first, distance, how many), elements; steps usually lie equally far apart."""
    pieces: list[tuple[int, int, int]] = []
    for offset in (record.offset for record in records):
        if pieces:
            start, stride, count = pieces[-1]
            if count == 1 and offset > start:
                pieces[-1] = (start, offset - start, 2)
                continue
            if offset == start + stride * count:
                pieces[-1] = (start, stride, count + 1)
                continue
        pieces.append((offset, max(1, records[0].size), 1))
    return pieces
