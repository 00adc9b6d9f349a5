"""One candidate beside its reference, ready to be replayed with some of its parts exchanged.

What `parity bisect` and `parity budget` have in common: the reference's run, the candidate's session, the
rules by which it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from parity.harness.case import Case, ModuleCase
from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison
from parity.harness.errors import CandidateError, ParityError, UserError
from parity.harness.folders import cache_folder
from parity.harness.hybrid import Faithful, Patched, Routed, inner_of, rerouted
from parity.harness.progress import Progress, Silent
from parity.harness.replay import replay
from parity.harness.rows import Rules
from parity.harness.segmented import Executor, SegmentedSession
from parity.harness.target import Options, Spec, parse_spec
from parity.harness.tolerance import AUTO, load_tolerance
from parity.harness.trace import Run, Trace
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from . import registry
from .cases import build_case, case_provenance
from .emulating import emulated_floors, emulated_run
from .floors import dtypes_of, noise_floor, quantization, rules_of
from .provenance import side_of
from .recorder import Job, check_spec, record, reference_values, stored
from .request import Request
from .stagewise import emulation_of

if TYPE_CHECKING:
    from parity.harness.target import Session

#: What stands around the segments and can be exchanged as they can.
ROPE, CACHE = "(rope)", "(cache)"


def one_candidate(request: Request) -> Spec:
    """The only candidate of a request; torch's own whole model is taken in segments, torch's as well."""
    if len(request.cand) != 1:
        raise UserError(f"cand={list(request.cand)}: name one candidate, for example --cand onnx")
    spec = parse_spec(request.cand[0])
    if spec.kind == "stored":
        raise UserError(
            f"cand={spec.text!r}: is a stored run; its parts cannot be executed anew, name a target"
        )
    if spec.name == "torch":
        text = f"segmented:{spec.arg}" if spec.arg else "segmented"
        spec = replace(spec, name="segmented", text=text)
    return spec


def reference_run(
    request: Request, trace: Path, case: Callable[[Run | None], Any], progress: Progress
) -> Run:
    """The reference's run: a stored one, the one that `trace` holds already, or executed now."""
    spec = parse_spec(request.trusted)
    if spec.kind == "stored":
        held, name = stored(spec)
        return held[name]
    check_spec(spec, request.options, own_module=request.own_module)
    if trace.exists() and any(run.name == spec.label and run.complete for run in Trace(trace).runs):
        return Trace(trace)[spec.label]
    job = Job(spec, case(None), request.options, trace, cache_folder() / "work")
    label = record(job, progress=progress)
    return Trace(trace)[label]


def open_session(
    spec: Spec,
    case: Case,
    options: Options,
    reference: Values | None,
    progress: Progress | None = None,
) -> Session:
    """A target's session on a case; CandidateError where it breaks."""
    work = cache_folder() / "work"
    work.mkdir(parents=True, exist_ok=True)
    try:
        session: Session = registry.target(spec.name).prepare(
            case,
            arg=spec.arg,
            options=replace(options, device=spec.device) if spec.device else options,
            reference=reference,
            workdir=work,
            progress=progress or Silent(),
        )
    except (ParityError, KeyboardInterrupt):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise CandidateError(f"{spec.text}: could not be prepared: {told}") from error
    return session


@dataclass
class Bench:
    """A segmented candidate: `session` as its target prepared it, `reference` on the same case."""

    request: Request
    spec: Spec
    case: Case
    reference: Run
    session: Session
    progress: Progress

    @classmethod
    def open(cls, request: Request, folder: Path, progress: Progress) -> Bench:
        """Record the reference into `folder`, prepare the candidate. UserError for one without segments."""
        spec = one_candidate(request)
        check_spec(spec, request.options, own_module=request.own_module)
        built: list[Case] = []

        def case(like: Run | None) -> Case:
            built[:] = built or [build_case(request, progress=progress, like=like)]
            return built[0]

        reference = reference_run(request, folder / "trace.h5", case, progress)
        values = reference_values(reference)
        session = open_session(spec, case(reference), request.options, values, progress)
        if inner_of(session) is None:
            session.close()
            raise UserError(
                f"cand={spec.text!r}: runs as one piece, so none of its parts can be exchanged; "
                "name one of segments, for example onnx, segmented or cvi"
            )
        return cls(request, spec, case(reference), reference, session, progress)

    @property
    def inner(self) -> SegmentedSession:
        """What drives the segments."""
        found = inner_of(self.session)
        assert found is not None
        return found

    @property
    def segments(self) -> tuple[str, ...]:
        """Names in execution order."""
        return tuple(segment.name for segment in self.inner.wiring.segments)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Taps that segments hand on, the logits last."""
        return tuple(port.value for segment in self.inner.wiring.segments for port in segment.outputs)

    @property
    def around(self) -> tuple[str, ...]:
        """What stands around the segments and belongs to the candidate too."""
        fed = {port.value for segment in self.inner.wiring.segments for port in segment.inputs}
        return (ROPE,) * ("rope" in fed) + (CACHE,) * bool(self.inner.wiring.caches)

    @cached_property
    def values(self) -> Values:
        """What the reference recorded."""
        return reference_values(self.reference)

    @cached_property
    def trusted(self) -> Executor:
        """The reference's own segments, in float32."""
        import torch

        from parity.targets.torch_segments import TorchExecutor

        wiring = self.inner.wiring
        masked = any(port.value == "mask" for part in wiring.segments for port in part.inputs)
        return TorchExecutor(self.case.model.split(self.case.state, masked=masked), wiring, torch.float32)

    def routed(self, taken: Collection[str]) -> MemoryRun:
        """A run with these parts from the candidate, the others computed by the reference's own segments."""
        return self._replay(Routed(self.inner.executor, self.trusted, taken), taken)

    def patched(self, taken: Collection[str]) -> tuple[MemoryRun, list[str]]:
        """A run with the others' outputs out of the reference's trace, and the taps where a fault shows."""
        executor = Patched(self.inner.executor, self.values, self.inner.wiring, taken)
        watched = executor.watched() + ["rope"] * (ROPE in taken)
        watched += [row.cache for row in self.inner.wiring.caches] * (CACHE in taken)
        return self._replay(executor, taken), watched

    def _replay(self, executor: Executor, taken: Collection[str]) -> MemoryRun:
        import torch

        from parity.targets.torch_segments import RopeTable

        rope = None if ROPE in taken or ROPE not in self.around else RopeTable(self.case, torch.float32)
        cache = None if CACHE in taken else Faithful(self.inner.cache)
        run = MemoryRun("candidate", target=self.spec.text, provenance=self._provenance())
        with threads(self.request.options):
            replay(
                rerouted(self.session, executor, rope=rope, cache=cache),
                self.case.scenario,
                sink=run,
                progress=Silent(),
                title="",
                reference=self.values,
            )
        run.complete = True
        return run

    def _provenance(self) -> dict[str, Any]:
        facts = self.session.facts
        return {
            **case_provenance(self.case),
            "dtype": facts.dtype,
            "layout": facts.layout,
            "cache_records": facts.cache_records,
            "unobserved": [asdict(item) for item in facts.unobserved],
            "details": dict(facts.details),
        }

    @cached_property
    def whole(self) -> MemoryRun:
        """The candidate as it is."""
        return self.routed((*self.around, *self.segments))

    @cached_property
    def rules(self) -> Rules:
        """As `parity run` judges this candidate."""
        return rules_for(self.request, self.spec, self.case, self.reference, self.whole, self.progress)

    def judged(self, run: MemoryRun, taps: Sequence[str]) -> Comparison:
        """The comparison of a run with the reference at these taps."""
        return held_against(self.reference, run, self.rules, taps)

    def close(self) -> None:
        """Free what the candidate holds."""
        self.session.close()


def rules_for(
    request: Request,
    spec: Spec,
    case: Case | ModuleCase,
    reference: Run,
    run: MemoryRun,
    progress: Progress,
) -> Rules:
    """How runs of a candidate are judged; `run` is one of the whole of it."""
    tolerance, candidate, cache = load_tolerance(request.tol), cast(Run, run), cache_folder()
    if tolerance.kind != AUTO or tolerance.floors:
        return rules_of(tolerance, {}, reference, candidate)
    if not quantization(candidate):
        floors = noise_floor(case, dtypes_of(reference, candidate), cache, progress=progress)
        return rules_of(tolerance, floors, reference, candidate)
    emulation = emulation_of(spec, own_module=isinstance(case, ModuleCase))
    if emulation is None:
        return rules_of(tolerance, {}, reference, candidate)
    work = cache / "work"
    job = Job(emulation, case, request.options, work, work, reference=reference_values(reference))
    emulated = emulated_run(job, candidate, cache, progress=progress)
    return rules_of(tolerance, emulated_floors(reference, candidate, emulated), reference, candidate)


def held_against(reference: Run, run: MemoryRun, rules: Rules, taps: Sequence[str]) -> Comparison:
    """The comparison of a run in memory with the reference at these taps."""
    candidate = cast(Run, run)
    sides = (side_of(reference, reference.name, ""), side_of(candidate, run.name, ""))
    return compare_runs(reference, candidate, rules=rules, sides=sides, taps=tuple(taps))


def threads(options: Options) -> AbstractContextManager[Any]:
    """The threads that were asked for."""
    if options.threads is None:
        return nullcontext()
    from parity.reference.torch_run import threads as torch_threads

    return torch_threads(options.threads)
