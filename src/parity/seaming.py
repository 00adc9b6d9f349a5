"""`parity.seams`: the same tokens in different ways by one target, held against one plain prefill."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np

from parity.harness.case import Case, Scenario, Step, plan
from parity.harness.errors import CandidateError, InconclusiveError, UserError, did_you_mean
from parity.harness.progress import Progress, Silent
from parity.harness.rows import Rules
from parity.harness.seams.held import hold, sources_of
from parity.harness.seams.report import SeamReport, SeamsResult, WayResult
from parity.harness.seams.ways import Way, fed, ways_of
from parity.harness.segmented import SegmentedSession
from parity.harness.target import Facts, Session, Spec, parse_spec, split_specs
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Run
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from .cases import build_case
from .floors import noise_floor, rules_of
from .recorder import Job, check_spec, prepared
from .rehearsing import rehearse_session
from .request import Request

DEFAULT_CANDIDATES = ("segmented", "segmented:grow", "onnx")
#: Chunks of the case whose noise is measured, so that the order of sums in chunks is part of the floor.
NOISY_CHUNKS = (7,)
SAME = "fed token by token: it makes the same calls as in the chunks that are run"


def seams(
    ref: str = "torch",
    cand: str | Sequence[str] | None = None,
    *,
    ways: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> SeamsResult:
    """Execute one prompt in every way that each candidate can, and name the seam at which one departs.

    The yardstick is one plain prefill of `ref`. `ways` is a glob of names (`chunks*`). `options` are those of
    `parity.run` that describe the case, its execution and the tolerance. Raises UserError for what cannot be
    run; a way that a target cannot do is skipped with the reason.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"seams() has no option {sorted(unknown)[0]!r}")
    names = DEFAULT_CANDIDATES if cand is None else (cand,) if isinstance(cand, str) else tuple(cand)
    request = Request(ref=ref, cand=names, **options)
    if request.own_module:
        raise UserError(
            f"model={request.model!r}: seams are those of a cache; a module of yours has none here"
        )
    specs = split_specs(names)
    for spec in (parse_spec(ref), *specs):
        if spec.kind == "stored":
            raise UserError(f"{spec.text}: is a stored run; seams execute, so name a target")
        check_spec(spec, request.options, own_module=False)
    with tempfile.TemporaryDirectory(prefix="parity-seams-") as folder:
        return _Seams(request, Path(folder), ways, progress or Silent()).run(parse_spec(ref), specs)


class _Seams:
    """One case, one plain prefill, all ways of all candidates."""

    def __init__(self, request: Request, folder: Path, chosen: str | None, progress: Progress) -> None:
        self.request, self.folder, self.progress = request, folder, progress
        case = build_case(request, progress=progress)
        self.ways = _chosen(ways_of(case.scenario), chosen)
        self.case = replace(case, scenario=ways_of(case.scenario)[0].scenario)
        self.tolerance = load_tolerance(request.tol)
        self.sources = sources_of(self.case.model.wiring.to_json())

    def run(self, ref: Spec, specs: Sequence[Spec]) -> SeamsResult:
        """A report per candidate."""
        plain, _ = self._recorded(ref, Way("one prefill", "whole", self.case.scenario), None)
        reports = tuple(self._report(spec, plain) for spec in specs)
        said = {key: value for key, value in plain.provenance.items() if key not in ("wiring", "roles")}
        return SeamsResult(reports, {**said, "reference": ref.text})

    def _report(self, spec: Spec, plain: Run) -> SeamReport:
        results: list[WayResult] = []
        with self.progress.stage(f"seams of {spec.label}", len(self.ways)) as bar:
            for way in self.ways:
                try:
                    results.append(self._way(spec, way, plain))
                except UserError as error:
                    if way.kind == "whole":
                        return SeamReport(spec.label, (), refused=str(error))
                    results.append(WayResult(way.name, way.kind, "skipped", str(error)))
                except CandidateError as error:
                    results.append(WayResult(way.name, way.kind, "failed", str(error)))
                bar.advance()
        return SeamReport(spec.label, tuple(results))

    def _way(self, spec: Spec, way: Way, plain: Run) -> WayResult:
        try:
            run, facts = self._recorded(spec, way, plain)
        except InconclusiveError as error:
            return WayResult(way.name, way.kind, "skipped", str(error))
        unseen = _unseen(way, facts)
        rules = self._rules(plain, run)
        lengths = [len(row) + way.scenario.steps for row in way.scenario.ids]
        held = hold(run, plain, rules, lengths=lengths, unseen=unseen, sources=self.sources)
        if not held.compared:
            return WayResult(way.name, way.kind, "skipped", "nothing that it recorded can be held")
        at, window = held.first, self.case.scenario.policy.window
        result = WayResult(
            way.name, way.kind, "pass", ratio=held.worst, compared=held.compared, seams=way.seams
        )
        if at is None:
            return result
        return replace(
            result,
            status="fail",
            reason=at.reason,
            seam=way.seam(at.position, window),
            tap=at.tap,
            where=at.where,
            position=at.position,
        )

    def _rules(self, plain: Run, run: Run) -> Rules:
        floors = {}
        if self.tolerance.kind == "auto":
            from parity.harness.folders import cache_folder

            scenario = replace(self.case.scenario, chunks=NOISY_CHUNKS)
            dtypes = tuple(str(side.provenance["dtype"]) for side in (plain, run))
            floors = noise_floor(
                replace(self.case, scenario=scenario), dtypes, cache_folder(), progress=self.progress
            )
        return rules_of(self.tolerance, floors, plain, run)

    def _recorded(self, spec: Spec, way: Way, plain: Run | None) -> tuple[Run, Facts]:
        """The run of one way, in memory."""
        case = replace(self.case, scenario=way.scenario)
        ids = _tokens(way, self.case.scenario)
        reference = Values(plain, derived=self.sources) if plain is not None else None
        job = self._job(spec, case, reference if way.kind == "prefilled" else None)
        with closing(self._session(job, way, reference)) as session:
            if session.facts.single and way.same_calls:
                raise InconclusiveError(SAME)
            return rehearse_session(session, job, forced=Values(ids)), session.facts

    def _job(self, spec: Spec, case: Case, reference: Values | None) -> Job:
        from parity.harness.folders import cache_folder

        work = cache_folder() / "work"
        return Job(spec, case, self.request.options, self.folder / "none.h5", work, reference=reference)

    def _session(self, job: Job, way: Way, reference: Values | None) -> Session:
        session = prepared(job, self.progress)
        if way.kind not in ("restored", "prefilled"):
            return session
        if not isinstance(session, SegmentedSession) or session.repeat:
            session.close()
            raise InconclusiveError(
                f"{job.spec.text} keeps no cache outside its graphs that could be handed over"
            )
        if way.kind == "restored":
            first = cast("SegmentedSession", prepared(job, self.progress))
            return _Restored(first, session, self.sources, session.facts)
        assert reference is not None
        return _Prefilled(session, reference, self.sources, session.facts)


def _chosen(ways: list[Way], glob: str | None) -> list[Way]:
    """The ways of a glob; one prefill is always run, so that what is no seam is told from one."""
    if glob is None:
        return ways
    found = [way for way in ways if fnmatchcase(way.name, glob)]
    if not found:
        raise UserError(f"ways={glob!r}: matched none. {did_you_mean(glob, [way.name for way in ways])}")
    return [*(way for way in ways[:1] if way not in found), *found]


def _tokens(way: Way, plain: Scenario) -> Run:
    """The ids that every step of a way is fed, as a run that they can be forced from."""
    rows, run = fed(way, plain.ids[0]), MemoryRun("tokens", complete=True)
    for step in plan(way.scenario):
        positions = np.array(step.positions, np.int64)
        given = np.array(step.tokens, np.int64) if step.tokens is not None else None
        ids = [
            [row[at] if at >= 0 else -1 for at in own] for row, own in zip(rows, step.positions, strict=True)
        ]
        tokens = given if given is not None else np.array(ids, np.int64)
        run.record("ids", tokens, step=step.index, axes="b t", positions=positions)
    return cast("Run", run)


def _unseen(way: Way, facts: Facts) -> int:
    """Positions before this one were not computed by the candidate, or not shown."""
    hosted = any(item.taps == "*" for item in facts.unobserved)
    return way.seams[0] if way.seams and (way.kind == "prefilled" or hosted) else 0


@dataclass
class _Restored:
    """A session whose prompt another one ran: its cache is handed over, and the rest is decoded from it."""

    first: SegmentedSession
    second: SegmentedSession
    caches: dict[str, str]
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """The prompt in the first session, all others in the second."""
        if step.kind == "decode":
            return self.second.step(step, tokens, positions, isolate)
        logits = self.first.step(step, tokens, positions, isolate)
        for cache in self.caches:
            self.second.cache.append(cache, self.first.cache.view(cache), self.first.cache.positions(cache))
        return logits

    def close(self) -> None:
        """Free both."""
        self.first.close()
        self.second.close()


@dataclass
class _Prefilled:
    """A session whose prompt's keys and values are the reference's."""

    session: SegmentedSession
    reference: Values
    caches: dict[str, str]
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """No logits for the prompt: it was filled elsewhere."""
        if step.kind == "decode":
            return self.session.step(step, tokens, positions, isolate)
        from parity.harness.dtypes import logical_dtype

        dtype = logical_dtype(self.facts.dtype)
        for cache in self.caches:
            rows = self.reference.at(cache, 0, positions).astype(dtype)
            self.session.cache.append(cache, rows, positions)
        return None

    def close(self) -> None:
        """Free the session."""
        self.session.close()
