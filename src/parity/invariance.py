"""`parity.invariants`: what must hold of a target whatever a reference computes; none is run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.case import Case, ModuleCase, Scenario
from parity.harness.errors import CandidateError, InconclusiveError, UserError
from parity.harness.invariants import between, inside
from parity.harness.invariants.kinds import ROUNDING, Invariant, InvariantReport, InvariantsResult
from parity.harness.progress import Progress, Silent
from parity.harness.target import Spec, split_specs
from parity.harness.trace import Run

from .cases import build_case, build_module_case
from .recorder import Job, check_spec
from .rehearsing import rehearse
from .request import Request

DEFAULT_CANDIDATES = ("segmented", "onnx")
#: Relative error of rows that were made by the same calls of the same shapes.
EXACT = 1e-6
#: Tokens of the prompts that are run in pairs: enough for a window, few enough for a slow target.
LONGEST = 96

Check = Callable[[], Invariant]


def invariants(
    cand: str | Sequence[str] | None = None,
    *,
    causal: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> InvariantsResult:
    """Hold targets against what is true of every model of their kind; no reference is executed.

    Of our models: rotations, attention, caches, causality, and batches that do not mix. Of a module of yours:
    that batch rows do not mix, and with `causal` that outputs ignore what comes later along axis 1.
    `options` are those of `parity.run` that describe the case and its execution. Raises UserError for what
    cannot be run.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"invariants() has no option {sorted(unknown)[0]!r}")
    own = Request(model=options.get("model"), inputs={}).own_module
    names = cand if cand is not None else ("torch",) if own else DEFAULT_CANDIDATES
    request = Request(cand=(names,) if isinstance(names, str) else tuple(names), **options)
    specs = split_specs(request.cand)
    for spec in specs:
        if spec.kind == "stored":
            raise UserError(f"{spec.text}: is a stored run; invariants execute, so name a target")
        check_spec(spec, request.options, own_module=own)
    progress = progress or Silent()
    case = build_module_case(request) if own else build_case(request, progress=progress)
    with tempfile.TemporaryDirectory(prefix="parity-invariants-") as folder:
        suites = [_Suite(spec, case, request, causal, Path(folder), progress) for spec in specs]
        reports = tuple(suite.report() for suite in suites)
    return InvariantsResult(reports, {"model": request.model, "candidates": [spec.text for spec in specs]})


class _Suite:
    """All invariants of one target."""

    def __init__(
        self,
        spec: Spec,
        case: Case | ModuleCase,
        request: Request,
        causal: bool,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.spec, self.case, self.request, self.causal = spec, case, request, causal
        self.folder, self.progress = folder, progress

    def report(self) -> InvariantReport:
        """Each invariant by itself: one that cannot be checked costs no other."""
        found: list[Invariant] = []
        try:
            case = self.case
            checks = dict(self._of_module(case) if isinstance(case, ModuleCase) else self._of_model(case))
            with self.progress.stage(f"invariants of {self.spec.label}", len(checks)) as bar:
                for name, check in checks.items():
                    found.append(self._checked(name, check))
                    bar.advance()
        except CandidateError as error:
            return InvariantReport(self.spec.label, tuple(found), failure=str(error))
        except UserError as error:
            return InvariantReport(self.spec.label, tuple(found), refused=str(error))
        return InvariantReport(self.spec.label, tuple(found))

    def _checked(self, name: str, check: Check) -> Invariant:
        try:
            return check()
        except (UserError, InconclusiveError) as error:
            return Invariant(name, "skipped", reason=str(error))

    def _run(self, case: Case | ModuleCase) -> Run:
        from parity.harness.folders import cache_folder

        work = cache_folder() / "work"
        job = Job(self.spec, case, self.request.options, self.folder / "none.h5", work)
        return rehearse(job, self.progress)

    def _of_model(self, case: Case) -> Iterator[tuple[str, Check]]:
        run = self._run(case)
        weights = {key: value.numpy() for key, value in case.state.items()}
        yield inside.ROTATION, lambda: inside.rotations(run, weights)
        yield inside.SOFTMAX, lambda: inside.softmaxes(run)
        yield inside.AVERAGE, lambda: inside.averages(run)
        yield inside.KEPT, lambda: inside.kept(run)
        yield inside.UNTOUCHED, lambda: inside.untouched(run)
        yield from self._between(case)

    def _between(self, case: Case) -> Iterator[tuple[str, Check]]:
        """Runs of one prompt that differ where it must not matter."""
        ids = case.scenario.ids[0][:LONGEST]
        size = case.model.vocab_size
        alone = _prompts(case, ids)
        yield (
            between.CAUSAL,
            lambda: between.same_rows(
                between.CAUSAL,
                self._run(alone),
                self._run(_prompts(case, (*ids[:-1], (ids[-1] + 1) % size))),
                upto=len(ids) - 1,
                noise=EXACT,
                reason="it changes with the last token",
            ),
        )
        others = tuple(reversed(ids)), tuple((token + 1) % size for token in ids)
        beside: dict[int, Run] = {}

        def apart() -> Invariant:
            for at, other in enumerate(others):
                beside[at] = self._run(_prompts(case, ids, other))
            told = "it changes with the other sequence"
            return between.same_rows(between.APART, beside[0], beside[1], upto=None, noise=EXACT, reason=told)

        def single() -> Invariant:
            noise = ROUNDING.get(str(beside[0].provenance["dtype"])) if beside else None
            if noise is None:
                return Invariant(
                    between.ALONE, "skipped", reason="no batch was run, or its format is quantized"
                )
            told = "it is something else in a batch"
            one = self._run(alone)
            return between.same_rows(between.ALONE, one, beside[0], upto=None, noise=noise, reason=told)

        yield between.APART, apart
        yield between.ALONE, single

    def _of_module(self, case: ModuleCase) -> Iterator[tuple[str, Check]]:
        yield between.APART, lambda: self._module_batch(case)
        if self.causal:
            yield between.CAUSAL, lambda: self._module_causal(case)

    def _module_batch(self, case: ModuleCase) -> Invariant:
        arrays = _arrays(case, axis=0)
        size = _common(arrays, 0)
        if size is None:
            return Invariant(between.APART, "skipped", reason="its inputs share no first axis of two or more")
        changed = {name: np.concatenate([array[:1]] * size) for name, array in arrays.items()}
        told = "it changes with the other rows of the batch"
        one, other = self._run(case), self._run(_with(case, changed))
        return between.same_items(between.APART, one, other, axis=0, keep=1, size=size, reason=told)

    def _module_causal(self, case: ModuleCase) -> Invariant:
        arrays = _arrays(case, axis=1)
        size = _common(arrays, 1)
        if size is None:
            return Invariant(
                between.CAUSAL, "skipped", reason="its inputs share no second axis of two or more"
            )
        changed = {name: _other_end(array) for name, array in arrays.items()}
        told = "it changes with what comes last"
        one, other = self._run(case), self._run(_with(case, changed))
        return between.same_items(between.CAUSAL, one, other, axis=1, keep=size - 1, size=size, reason=told)


def _prompts(case: Case, *ids: tuple[int, ...]) -> Case:
    """The case with these prompts of equal length and nothing decoded."""
    scenario: Scenario = replace(
        case.scenario, ids=ids, texts=(), steps=0, resets=(), pad_to=None, padding="right"
    )
    return replace(case, scenario=scenario)


def _arrays(case: ModuleCase, *, axis: int) -> dict[str, np.ndarray]:
    found = {name: value for name, value in case.inputs.items() if isinstance(value, np.ndarray)}
    return {name: array for name, array in found.items() if array.ndim > axis}


def _common(arrays: Mapping[str, np.ndarray], axis: int) -> int | None:
    """The size that all arrays have along an axis, if it is at least 2."""
    sizes = {array.shape[axis] for array in arrays.values()}
    return sizes.pop() if len(sizes) == 1 and min(sizes) > 1 else None


def _other_end(array: np.ndarray) -> np.ndarray:
    """With the first item along axis 1 in the place of the last: values that occur, but not there."""
    changed = array.copy()
    changed[:, -1] = array[:, 0]
    return changed


def _with(case: ModuleCase, arrays: Mapping[str, np.ndarray]) -> ModuleCase:
    return replace(case, inputs={**case.inputs, **arrays})
