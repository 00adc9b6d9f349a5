"""`parity.run`: record the reference, replay every candidate, compare, judge, report."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from parity.harness.case import Case, ModuleCase
from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison, Result, Side
from parity.harness.errors import CandidateError, InconclusiveError, UserError
from parity.harness.judge import Floor
from parity.harness.mapping import TapMap, load_map
from parity.harness.progress import Once, Progress, Silent
from parity.harness.rows import Rules
from parity.harness.target import Spec, parse_spec, split_specs
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Run, Trace
from parity.harness.values import Values
from parity.harness.zoom import window_of, zoomed

from . import registry
from .cases import build_case, build_module_case, weights_of
from .emulating import emulated_floors, emulated_of, emulated_run, keep_emulated, told_apart
from .floors import dtypes_of, noise_floor, quantization, rules_of, store_floors, stored_floors
from .gate import gated
from .provenance import environment, isolated_of, observer_findings, side_of
from .recorder import ZOOM, Job, check_spec, record, reference_values, refuse_itself, stored
from .request import Request
from .stagewise import emulation_of, planned, unstaged, with_stages

DEFAULT_CANDIDATES = ("segmented", "onnx", "prefilled")


def run(
    ref: str | None = None,
    cand: str | Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    report: bool = True,
    **options: Any,
) -> Result:
    """Hold candidates against a reference and report.

    The reference is `torch`, or `onnx` for a graph of yours. Without candidates, our models are held against
    `DEFAULT_CANDIDATES` and your own module against `onnx`.
    `options` are those of the command line, by the same names (see `Request`). Writes `trace.h5`,
    `report.html` and `report.json` into `out` (a dated folder by default; `report=False` leaves the
    reports out). Raises UserError for what cannot be run, CandidateError never: a candidate that fails is
    part of the result.
    """
    if cand is None:
        cand = ("onnx",) if Request(model=options.get("model"), inputs={}).own_module else DEFAULT_CANDIDATES
    names = (cand,) if isinstance(cand, str) else tuple(cand)
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"run() has no option {sorted(unknown)[0]!r}")
    taps = options.pop("taps", ())
    request = Request(ref=ref, cand=names, taps=(taps,) if isinstance(taps, str) else tuple(taps), **options)
    folder = new_folder(out)
    return _Driver(request, folder, Once(progress or Silent())).run(report=report)


def new_folder(out: str | Path | None) -> Path:
    """The folder that results go to; a dated one by default, never one that holds a trace already."""
    folder = Path(out) if out else _dated()
    held = next((name for name in ("trace.h5", "report.json") if (folder / name).exists()), None)
    if held is not None:
        raise UserError(f"out={str(folder)!r}: holds a {held} already, which is kept; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out={str(folder)!r}: cannot be made ({error.strerror}); name another folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"out={str(folder)!r}: cannot be written to; name another folder")
    return folder


def _dated() -> Path:
    stamp = f"parity-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = (Path(stamp if number == 1 else f"{stamp}-{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


class _Driver:
    """The stages of one run, in order."""

    def __init__(self, request: Request, folder: Path, progress: Progress) -> None:
        self.request, self.folder, self.progress = request, folder, progress
        self.trace = folder / "trace.h5"
        self.tolerance = load_tolerance(request.tol)
        self.mapping: TapMap | None = load_map(request.map) if request.map else None
        self.reference_spec = parse_spec(request.trusted)
        self._built: Case | ModuleCase | None = None
        #: What was emulated of quantized candidates, by label.
        self._emulated: dict[str, Run] = {}
        self.specs = split_specs(request.cand)
        if not self.specs:
            raise UserError("cand: name at least one candidate, for example --cand onnx")
        chain = partial(planned, own_module=request.own_module) if request.stages else unstaged
        self.chains = chain(self.specs)
        for spec in (self.reference_spec, *(stage.spec for chain in self.chains for stage in chain)):
            check_spec(spec, request.options, own_module=request.own_module)
        self.request = self._with_default_steps(request)

    def _with_default_steps(self, request: Request) -> Request:
        """Where nobody says how long to run, a slow target runs for as many steps as it says itself."""
        said = request.steps is not None or request.scenario is not None
        if said or request.own_module or self.reference_spec.kind == "stored":
            return request
        names = {spec.name for spec in self.specs if spec.kind == "target"}
        own = {name: getattr(registry.target(name), "steps", None) for name in names}
        limits = {name: steps for name, steps in own.items() if steps is not None}
        if not limits:
            return request
        name = min(limits, key=lambda name: limits[name])
        self.progress.say(f"{name}: slow, so {limits[name]} decode steps by default; --steps N runs more")
        return replace(request, steps=limits[name])

    def run(self, *, report: bool) -> Result:
        """Everything: the result holds a comparison per candidate."""
        reference, side = self._reference()
        comparisons = self._comparisons(reference, side)
        result = Result(comparisons, provenance=environment(self.request, reference))
        return self._reported(result) if report else result

    def _comparisons(self, reference: Run, side: Side) -> tuple[Comparison, ...]:
        """One per candidate. A user's mistake in one loses none of the others; alone, it is simply raised."""
        found: list[Comparison] = []
        mistakes: list[UserError] = []
        for chain in self.chains:
            before = len(mistakes)
            one = [self._attempt(stage.spec, reference, side, mistakes) for stage in chain]
            if self.request.stages and len(mistakes) - before < len(one):
                judge = partial(self._rules, reference)
                one = with_stages(chain, one, reference, _runs, judge, self.progress)
            found += one
        if len(mistakes) == len(found):
            raise mistakes[0]
        return tuple(found)

    def _attempt(self, spec: Spec, reference: Run, side: Side, mistakes: list[UserError]) -> Comparison:
        try:
            return self._candidate(spec, reference, side)
        except UserError as error:
            mistakes.append(error)
            return replace(self._empty(spec, side), refused=str(error))

    def _empty(self, spec: Spec, side: Side) -> Comparison:
        unknown = Side(spec.label, spec.label, spec.text, "")
        return Comparison(spec.label, side, unknown, replay=self.request.replay)

    def _case(self, like: Run | None) -> Case | ModuleCase:
        """The case, built once, when something has to be executed."""
        if self._built is None:
            if self.request.own_module:
                self._built = build_module_case(self.request)
            elif self.request.inputs is not None:
                raise UserError("inputs: belongs to a module of your own; name it with --model PKG:FACTORY")
            else:
                self._built = build_case(self.request, progress=self.progress, like=like)
        return self._built

    def _reference(self) -> tuple[Run, Side]:
        spec = self.reference_spec
        if spec.kind == "stored":
            trace, name = stored(spec)
            return trace[name], side_of(trace[name], spec.label, spec.name)
        label = record(self._job(spec, None), progress=self.progress)
        run = Trace(self.trace)[label]
        return run, side_of(run, label, str(self.trace))

    def _candidate(self, spec: Spec, reference: Run, side: Side) -> Comparison:
        spec = replace(spec, label=self._free_label(spec.label, reference.name))
        failed = self._empty(spec, side)
        try:
            run, isolated, path = self._candidate_run(spec, reference)
        except CandidateError as error:
            return replace(failed, failure=str(error))
        except InconclusiveError as error:
            return replace(failed, inconclusive=str(error))
        if self.request.replay == "isolated":
            if isolated is None:
                return replace(
                    failed, inconclusive=f"{spec.text}: its parts cannot be run alone; use --replay forced"
                )
            run, isolated = isolated, None
        rules = self._rules(reference, run, spec)
        comparison = self._compared(reference, run, isolated, rules, (side, side_of(run, spec.label, path)))
        emulated = self._emulation(spec)
        comparison = told_apart(comparison, (reference, run, emulated), rules, mapping=self.mapping)
        if self.request.sketching is not None:
            comparison = self._zoomed(comparison, spec, reference, rules)
        if self._built is not None and reference.target.partition(":")[0] == "torch":
            runs = (reference, run)
            comparison = gated(comparison, self._built, runs, rules, _cache(), progress=self.progress)
        return replace(comparison, findings=(*comparison.findings, *observer_findings(run, reference)))

    def _emulation(self, spec: Spec) -> Run | None:
        """What was emulated of a candidate, now or when it was stored."""
        return emulated_of(*stored(spec)) if spec.kind == "stored" else self._emulated.get(spec.label)

    def _compared(
        self, reference: Run, run: Run, isolated: Run | None, rules: Rules, sides: tuple[Side, Side]
    ) -> Comparison:
        return compare_runs(
            reference,
            run,
            rules=rules,
            sides=sides,
            isolated=isolated,
            taps=self.request.taps,
            mapping=self.mapping,
            replay=self.request.replay,
            force=self.request.force,
            progress=self.progress,
            weights=weights_of(self._built, reference),
        )

    def _zoomed(self, comparison: Comparison, spec: Spec, reference: Run, rules: Rules) -> Comparison:
        """Sketches that depart are looked at again: both sides executed, the window recorded in full."""
        window = window_of(comparison)
        live = all(one.kind != "stored" for one in (spec, self.reference_spec))
        if window is None or not live or self.request.replay == "free":
            return comparison
        names = [f"{spec.label}{ZOOM}-{side}" for side in ("reference", "candidate")]
        forced = reference_values(reference)
        for own, name, values in ((self.reference_spec, names[0], None), (spec, names[1], forced)):
            job = self._job(replace(own, label=name), values)
            record(replace(job, capture=None, window=window), progress=self.progress)
        trace = Trace(self.trace)
        one, two = (trace[name] for name in names)
        looked = self._compared(one, two, None, rules, (comparison.reference, comparison.candidate))
        return zoomed(comparison, looked, window)

    def _candidate_run(self, spec: Spec, reference: Run) -> tuple[Run, Run | None, str]:
        if spec.kind == "stored":
            trace, name = stored(spec)
            if self.reference_spec.kind == "stored":
                refuse_itself((self.reference_spec.name, reference.name), (spec.name, name))
            return trace[name], isolated_of(trace, name), spec.name
        label = record(self._job(spec, reference_values(reference)), progress=self.progress)
        trace = Trace(self.trace)
        return trace[label], isolated_of(trace, label), str(self.trace)

    def _free_label(self, label: str, taken: str) -> str:
        """A candidate that is named like the reference gets a name of its own."""
        return f"{label}-cand" if label == taken else label

    def _job(self, spec: Spec, reference: Values | None) -> Job:
        case = self._case(reference.run if reference is not None else None)
        asked, work = self.request, _cache() / "work"
        return Job(
            spec, case, asked.options, self.trace, work, asked.replay, reference, asked.limit, asked.sketching
        )

    def _rules(self, reference: Run, candidate: Run, spec: Spec | None = None) -> Rules:
        """How a run is judged: the tolerance, with the noise floor where it decides."""
        measured = self.tolerance.kind == "auto" and not self.tolerance.floors
        floors = self._floors(reference, candidate, spec) if measured else {}
        return rules_of(self.tolerance, floors, reference, candidate)

    def _floors(self, reference: Run, candidate: Run, spec: Spec | None) -> dict[str, Floor]:
        """The noise floor: as stored beside the reference, else measured on the case and stored.

        Nothing is measured for a stored candidate. A quantized one is held against its emulation.
        """
        live = spec is None or spec.kind != "stored"
        if quantization(candidate):
            emulated = self._emulate(spec, reference, candidate) if spec and live else None
            if spec and not live:
                emulated = self._emulation(spec)
            return emulated_floors(reference, candidate, emulated) if emulated else {}
        dtypes = dtypes_of(reference, candidate)
        held = self.reference_spec.name if self.reference_spec.kind == "stored" else self.trace
        floors = stored_floors(held, reference, dtypes)
        if floors or not live:
            return floors
        floors = noise_floor(self._case(reference), dtypes, _cache(), progress=self.progress)
        if floors and self.reference_spec.kind != "stored":
            store_floors(self.trace, reference, dtypes, floors)
        return floors

    def _emulate(self, spec: Spec, reference: Run, candidate: Run) -> Run | None:
        """The target's emulation of a quantized candidate, kept beside it; None where the target has none."""
        emulation = emulation_of(spec, own_module=self.request.own_module)
        if emulation is None:
            return None
        job = self._job(emulation, reference_values(reference))
        run = emulated_run(job, candidate, _cache(), progress=self.progress)
        keep_emulated(run, self.trace, spec.label, self.request.limit, self.progress)
        self._emulated[spec.label] = run
        return run

    def _reported(self, result: Result) -> Result:
        from parity.reports.html import write_html
        from parity.reports.json_report import write_json

        files = {
            "trace": str(self.trace),
            "json": str(self.folder / "report.json"),
            "html": str(self.folder / "report.html"),
        }
        result = replace(
            result,
            files={kind: path for kind, path in files.items() if kind != "trace" or self.trace.exists()},
        )
        with self.progress.stage("reporting", 2) as bar:
            write_json(result, self.folder / "report.json")
            bar.advance()
            write_html(result, self.folder / "report.html")
            bar.advance()
        return result


def _cache() -> Path:
    from parity.harness.folders import cache_folder

    return cache_folder()


def _runs(comparison: Comparison) -> tuple[Run, Run | None]:
    """A candidate's run and its isolated replay."""
    trace = Trace(comparison.candidate.path)
    return trace[comparison.candidate.run], isolated_of(trace, comparison.candidate.run)
