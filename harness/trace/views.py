"""Natural views: `/runs/<run>/<tap>` as virtual datasets over the streams, so that any HDF5 tool reads them.

Published after a clean close and by `repair`. `/runs/<name>#<generation>` holds the views of one run,
`/runs/<name>` is a soft link to the newest. A tap whose records all have one shape is one dataset with its
records along the first axis; otherwise it is a group with one dataset per record, `step3` or `step3.1`
(step and call). Nothing is copied. A slash in a name is written %2F, a percent sign %25.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from ..dtypes import storage_dtype
from .overlay import Overlay
from .reader import Run, Trace

Rows = np.ndarray[Any, Any]
"""Rows of the index, see `format.ROW`."""

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
                    _publish_run(file, run, trace.layout.dtypes)
            overlay.commit()


def escape(name: str) -> str:
    """A name as one link of HDF5."""
    escaped = name.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if escaped in (".", "..") else escaped


def _place(run: Run) -> str:
    return f"{escape(run.name)}#{run.generation}"


def _publish_run(file: Any, run: Run, dtypes: Sequence[str]) -> None:
    group = file["runs"].create_group(_place(run), track_order=True)
    left_out, budget = [], MAX_MAPPINGS
    for tap in run.taps:
        rows = run.rows(tap)
        budget -= len(_pieces(rows)) if _uniform(rows) else len(rows)
        if budget < 0:
            left_out.append(tap)
        else:
            _publish_tap(group, escape(tap), rows, run, dtypes)
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


def _publish_tap(group: Any, name: str, rows: Rows, run: Run, dtypes: Sequence[str]) -> None:
    """One dataset for a tap of one shape and dtype, else a group with a dataset per record."""
    if _uniform(rows):
        view = _publish_rows(group, name, rows, run, dtypes, stacked=True)
        if len(rows) <= _MAX_LISTED:
            view.attrs["steps"], view.attrs["calls"] = rows["step"], rows["call"]
        return
    inside = group.create_group(name, track_order=True)
    seen: dict[str, int] = {}
    for i in range(len(rows)):
        step, call = int(rows["step"][i]), int(rows["call"][i])
        place = f"step{step}.{call}" if call else f"step{step}"
        seen[place] = seen.get(place, 0) + 1
        again = f" ({seen[place]})" if seen[place] > 1 else ""
        _publish_rows(inside, place + again, rows[i : i + 1], run, dtypes, stacked=False)


def _uniform(rows: Rows) -> bool:
    """Whether all records have one dtype, shape and axes."""
    alike = all(bool(np.all(rows[name] == rows[name][0])) for name in ("dtype", "ndim", "axes"))
    return alike and bool(np.all(rows["shape"] == rows["shape"][0]))


def _publish_rows(
    group: Any, name: str, rows: Rows, run: Run, dtypes: Sequence[str], *, stacked: bool
) -> Any:
    dtype = dtypes[rows["dtype"][0]]
    own = tuple(rows["shape"][0][: rows["ndim"][0]].tolist())
    shape = (len(rows), *own) if stacked else own
    stream = group.file[f"data/{storage_dtype(dtype).name}"]
    if math.prod(own):
        space, mapping = h5py.h5s.create_simple(shape), _mapping(stream, shape, rows, stacked=stacked)
        made = h5py.h5d.create(group.id, name.encode(), stream.id.get_type(), space, mapping)
        view = h5py.Dataset(made)
    else:
        view = group.create_dataset(name, shape=shape, dtype=stream.dtype)
    axes = run.text(int(rows["axes"][0]))
    view.attrs.update({"dtype": dtype, "axes": ("step " if stacked else "") + axes})
    return view


def _mapping(stream: Any, shape: tuple[int, ...], rows: Rows, *, stacked: bool) -> Any:
    """A property list that says where the records lie in the stream, in as few regular pieces as possible."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_layout(h5py.h5d.VIRTUAL)
    own, at = shape[1:] if stacked else shape, 0
    for start, stride, count in _pieces(rows):
        there = stream.id.get_space()
        there.select_hyperslab((start,), (count,), (max(stride, math.prod(own)),), (math.prod(own),))
        here = h5py.h5s.create_simple(shape)
        if stacked:
            here.select_hyperslab((at, *(0,) * len(own)), (count, *own))
        made.set_virtual(here, b".", stream.name.encode(), there)
        at += count
    return made


def _pieces(rows: Rows) -> list[tuple[int, int, int]]:
    """Records as (offset of the first, distance, how many), elements; steps usually lie equally far apart."""
    pieces: list[tuple[int, int, int]] = []
    for offset in rows["offset"].tolist():
        if pieces:
            start, stride, count = pieces[-1]
            if count == 1 and offset > start:
                pieces[-1] = (start, offset - start, 2)
                continue
            if offset == start + stride * count:
                pieces[-1] = (start, stride, count + 1)
                continue
        pieces.append((offset, 0, 1))
    return pieces
