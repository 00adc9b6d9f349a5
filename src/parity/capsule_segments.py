"""A segment of one of our models as a capsule: its ports fed with the reference's recorded values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.harness.cache import attendable
from parity.harness.case import CachePolicy, Port, Segment, Wiring
from parity.harness.comparison import Culprit
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.segmented import HIDDEN
from parity.harness.trace import Record, Run
from parity.harness.values import Values, batch_positions, token_axis

from .capsules import Parcel, allowed, plain
from .finished import Finished
from .recorder import Job, prepared, reference_values


def segment_parcel(one: Finished, culprit: Culprit, job: Job, progress: Progress) -> Parcel:
    """Everything of the segment in which a culprit was born, at its step."""
    session: Any = prepared(job, progress)
    try:
        inner = getattr(session, "inner", session)
        wiring: Wiring = inner.wiring
        segment = next((s for s in wiring.segments if s.name == culprit.segment), None)
        if segment is None:
            raise UserError(
                f"tap={culprit.tap!r}: the fault lies {culprit.segment or 'outside of any segment'}, not in "
                "a part that can be run alone; name a part with --tap"
            )
        made = _records(one, segment, culprit)
        positions = batch_positions(next(record for record in made.values() if _tokens(record)))
        feeds = _Feeds(one, wiring, reference_values(one.reference), culprit.step, positions)
        inputs = {port.name: feeds.port(port) for port in segment.inputs}
        files, lacking = _files(inner.executor, segment.name, inputs)
        actual = {item.tap: item.array for item in inner.executor.call(segment.name, inputs)}
    finally:
        session.close()
    expected = {tap: feeds.like(tap, record.read()) for tap, record in made.items()}
    facts = {
        "inputs": {name: str(array.dtype) for name, array in inputs.items()},
        "outputs": [port.value for port in segment.outputs],
        "positions": positions.tolist(),
        "allowed": allowed(one.comparison, culprit.step),
        "not_packed": lacking,
    }
    weights = _weights(one.reference, set(made), job)
    return Parcel({n: plain(a) for n, a in inputs.items()}, expected, actual, weights, files, facts)


def _files(executor: Any, segment: str, inputs: Mapping[str, np.ndarray]) -> tuple[Mapping[str, bytes], str]:
    """The segment in executable form, or why there is none."""
    if not hasattr(executor, "parcel"):
        return {}, "this target does not hand out its segments"
    try:
        return executor.parcel(segment, inputs), ""
    except UserError as error:
        return {}, str(error)


def _records(one: Finished, segment: Segment, culprit: Culprit) -> dict[str, Record]:
    """What the candidate made at the culprit's step, on the reference's inputs where that was recorded."""
    found: dict[str, Record] = {}
    for tap in (*segment.taps, *(port.value for port in segment.outputs)):
        for run in (one.isolated, one.candidate):
            record = _last(run, tap, culprit.step)
            if record is not None:
                found[tap] = record
                break
    if not any(map(_tokens, found.values())):
        raise UserError(f"step={culprit.step}: the candidate recorded nothing of {segment.name} there")
    return found


def _last(run: Run | None, tap: str, step: int) -> Record | None:
    """The last call: where a step is fed token by token, its newest token."""
    if run is None or tap not in run.taps:
        return None
    return next((record for record in reversed(run.records(tap)) if record.step == step), None)


def _tokens(record: Record) -> bool:
    return token_axis(record.axes) is not None and record.positions is not None


class _Feeds:
    """The reference's values as a segment is handed them at one step and these positions `[B, T]`."""

    def __init__(
        self, one: Finished, wiring: Wiring, values: Values, step: int, positions: np.ndarray
    ) -> None:
        self._one, self._values, self._step, self._positions = one, values, step, positions
        self._caches = [row.cache for row in wiring.caches]

    def port(self, port: Port) -> np.ndarray:
        """What goes in at a port."""
        if port.value == "mask":
            return self._mask()
        if port.value in self._caches:
            view, held = self._view(port.value)
            return self._values.like(port.value, self._step, held, view)
        record = _last(self._one.candidate, port.value, self._step)
        if record is None:
            return self._values.at(port.value, self._step, self._positions)
        template = np.zeros(self._shape(record), record.read().dtype)
        return self._values.like(port.value, self._step, self._positions, template)

    def like(self, tap: str, template: np.ndarray) -> np.ndarray:
        """The reference's own value in float32, shaped as the candidate's."""
        wide = template if template.dtype.kind in "iub" else template.astype(np.float32)
        return self._values.like(tap, self._step, self._positions, wide)

    def _shape(self, record: Record) -> tuple[int, ...]:
        """A record's shape with as many tokens as are fed."""
        at = token_axis(record.axes)
        shape = list(record.shape)
        if at is not None:
            shape[at] = self._positions.shape[1]
        return tuple(shape)

    def _view(self, cache: str) -> tuple[np.ndarray, np.ndarray]:
        """The cache rows that the candidate was handed, and their positions."""
        record = _last(self._one.candidate, cache, self._step)
        assert record is not None
        if self._one.candidate.provenance.get("cache_records") == "rows":
            raise UserError(
                "cand: this layout records appended rows only, so what a segment was handed is not known; "
                "run the layout window"
            )
        return record.read(), batch_positions(record)

    def _mask(self) -> np.ndarray:
        _, held = self._view(self._caches[0])
        policy = self._one.reference.provenance.get("scenario", {}).get("policy", "full")
        seen = attendable(self._positions, held, CachePolicy.parse(str(policy)).window)
        return np.where(seen, 0.0, HIDDEN).astype(np.float32)[:, None]


def _weights(reference: Run, taps: set[str], job: Job) -> dict[str, np.ndarray]:
    """The checkpoint's tensors behind these taps, by the role table."""
    from parity.harness.arrays import to_array

    state = getattr(job.case, "state", {})
    keys = [
        key
        for role in reference.provenance.get("roles", ())
        if role["taps"] in taps
        for key in role["weights"]
        if key in state
    ]
    return {key: np.asarray(to_array(state[key])) for key in keys}
