"""`parity.budget`: which parts of a candidate own its error at the end, and which to keep more precise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from parity.harness.budget import Budget, Share, plan
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.evaluation import Against, Tally, kl_rows, log_softmax
from parity.harness.progress import Progress, Silent
from parity.harness.segmented import Executor
from parity.harness.trace import Run
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import batch_positions, records_of, rows_first

from . import registry
from .oracles import ModuleOracle
from .replays import Bench
from .request import Request

#: Step, sequence, position of a token, -> its logits `[V]`.
Logits = dict[tuple[int, int, int], np.ndarray]


@dataclass(frozen=True)
class Budgeted:
    """The budget of a candidate; `tables` is the plan for a compiler, `achieved` the error with it."""

    candidate: str
    budget: Budget
    tables: tuple[str, ...] = ()
    achieved: float | None = None
    target: float | None = None

    @property
    def exit_code(self) -> int:
        """0, or 1 where a target was asked for and is not reached."""
        if self.target is None or self.budget.plan is None:
            return 0
        measured = self.budget.plan.measured if self.achieved is None else self.achieved
        return int(not measured <= self.target)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidate": self.candidate,
            **self.budget.to_json(),
            "target": self.target,
            "tables": list(self.tables),
            "achieved": self.achieved,
            "exit_code": self.exit_code,
        }


def budget(
    ref: str | None = None,
    cand: str | None = None,
    *,
    target_kl: float | None = None,
    qtable: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Budgeted:
    """What each segment (or submodule) of a candidate does to the logits alone, beside what the whole does.

    With `target_kl`, the fewest segments to be kept in higher precision for that KL, in nats a token. For a
    chip's candidate they are written into the folder `qtable` as the compiler's own tables, and verified by
    compiling and running with them. Of a module of yours the squared error of its outputs is shared out.
    `options` are those of `parity.run`. Raises UserError for a candidate without parts.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"budget() has no option {sorted(unknown)[0]!r}")
    if cand is None:
        raise UserError(
            "cand: name the candidate whose error is to be shared out, for example --cand cvi:int8"
        )
    if qtable is not None and target_kl is None:
        raise UserError("qtable: a table follows from a plan; say what it should reach with --target-kl NATS")
    request, progress = Request(ref=ref, cand=(cand,), **options), progress or Silent()
    with TemporaryDirectory(prefix="parity-budget-") as folder:
        if request.own_module:
            if target_kl is not None:
                raise UserError("target_kl: belongs to a model with logits; leave it out for a module")
            return _of_module(ModuleOracle.open(request, Path(folder), progress), cand, progress)
        return _of_segments(Bench.open(request, Path(folder), progress), target_kl, qtable, progress)


def _of_segments(
    bench: Bench, target: float | None, qtable: str | Path | None, progress: Progress
) -> Budgeted:
    try:
        keep = _keeper(bench) if qtable is not None else None
        output = bench.inner.wiring.output
        expected = logits_of(bench.reference, output)

        def without(kept: tuple[str, ...]) -> float:
            progress.say(f"kept right: {', '.join(kept)}")
            rest = [part for part in (*bench.around, *bench.segments) if part not in kept]
            return held(expected, logits_of(bench.routed(rest), output)).kl_mean

        found = _shared(bench, expected, progress)
        if target is not None:
            found = replace(found, plan=plan(found, target, bench.segments, without))
        tables: tuple[str, ...] = ()
        if keep is not None and found.plan is not None and found.plan.parts:
            tables = tuple(map(str, keep(bench.inner.executor, found.plan.parts, Path(str(qtable)))))
    finally:
        bench.close()
    achieved = _achieved(bench, Path(str(qtable)), expected, progress) if tables else None
    return Budgeted(bench.spec.text, found, tables, achieved, target)


def _shared(bench: Bench, expected: Logits, progress: Progress) -> Budget:
    """Each part alone, and all of them; the reference's own segments' rounding is nobody's."""
    output, parts = bench.inner.wiring.output, (*bench.around, *bench.segments)
    alone: dict[str, Logits] = {}
    with progress.stage("sharing the error out", len(parts) + 2) as bar:
        base, together = (logits_of(run, output) for run in (bench.routed(()), bench.whole))
        bar.advance(2)
        for part in parts:
            alone[part] = logits_of(bench.routed((part,)), output)
            bar.advance()
    whole = held(expected, together)
    if whole.nonfinite:
        lost = f"{whole.nonfinite} tokens have logits that are not finite"
        raise InconclusiveError(f"{lost}, so that there is nothing to share out; see `parity run`")
    keys = [key for key in expected if key in together]
    own = {part: _kl(expected, alone[part], keys) - _kl(expected, base, keys) for part in parts}
    flips = {part: len(held(expected, alone[part]).flips) for part in parts}
    shares = tuple(Share(part, max(0.0, float(own[part].mean())), flips[part]) for part in parts)
    left = _kl(expected, together, keys) - sum(own.values())
    scatter = float(left.std(ddof=1) / len(keys) ** 0.5) if len(keys) > 1 else 0.0
    found = Budget("KL", shares, whole.kl_mean, scatter, len(whole.flips), whole.own.count)
    return replace(found, notes=_notes(found, held(expected, base).kl_mean))


def _kl(expected: Logits, actual: Logits, keys: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Nats at each token, `[N]`."""
    return kl_rows(log_softmax(_stacked(actual, keys)), log_softmax(_stacked(expected, keys)))


def _notes(found: Budget, floor: float) -> tuple[str, ...]:
    if floor > 0.5 * found.whole:
        return (f"the KL is {floor:.2g} without the candidate already: its error is too small to share out",)
    if not found.sound:
        return (
            f"the parts own {found.explained:.0%} of the whole: the rest is interaction, or a bug "
            "between them; `parity bisect` looks for it",
        )
    return ()


def logits_of(run: Run | MemoryRun, output: str) -> Logits:
    """Every token's logits that a run recorded, in float64; padding left out."""
    found: Logits = {}
    for record in records_of(run, output):  # type: ignore[arg-type]
        if record.positions is None:
            continue
        rows, positions = rows_first(record.read(), record.axes), batch_positions(record)
        for sequence, column in zip(*np.nonzero(positions >= 0), strict=True):
            key = record.step, int(sequence), int(positions[sequence, column])
            found[key] = np.asarray(rows[sequence, column], np.float64)
    return found


def held(expected: Logits, actual: Logits) -> Against:
    """Both sides at the tokens that both show; InconclusiveError where there are none."""
    common = [key for key in expected if key in actual]
    if not common:
        raise InconclusiveError("the candidate shows no logits at any step, so that nothing can be measured")
    tally = Tally()
    theirs, own = (_stacked(side, common) for side in (expected, actual))
    tally.add(own, theirs, theirs.argmax(axis=1))
    return tally.result()


def _stacked(side: Logits, keys: Sequence[tuple[int, int, int]]) -> np.ndarray:
    return np.stack([side[key] for key in keys])


def _keeper(bench: Bench) -> Callable[[Executor, tuple[str, ...], Path], list[Path]]:
    """What writes a plan as the target's own tables; UserError where it has none."""
    keep = getattr(registry.target(bench.spec.name), "keep", None)
    if keep is None:
        raise UserError(f"qtable: {bench.spec.name} has no such tables; chips have, for example cvi:int8")
    found: Callable[[Executor, tuple[str, ...], Path], list[Path]] = keep
    return found


def _achieved(bench: Bench, folder: Path, expected: Logits, progress: Progress) -> float:
    """The KL of the candidate compiled with the tables and run."""
    arg = "+".join([*filter(None, [bench.spec.arg]), f"qtable={folder}"])
    spec = f"{bench.spec.name}:{arg}"
    request = replace(bench.request, cand=(spec,))
    progress.say(f"verifying the plan with {spec}")
    with TemporaryDirectory(prefix="parity-budget-") as place:
        again = Bench.open(request, Path(place), progress)
        try:
            return held(expected, logits_of(again.whole, again.inner.wiring.output)).kl_mean
        finally:
            again.close()


def _of_module(oracle: ModuleOracle, candidate: str, progress: Progress) -> Budgeted:
    """Squared error of what a module returns, over the squared outputs."""
    taps = [tap for tap in oracle.reference.taps if tap.startswith("output")]
    expected = _outputs(oracle.reference, taps)
    scale = float(np.sum(expected**2)) ** 0.5 or 1.0

    def error(taken: Sequence[str]) -> float:
        return float(np.sum(((_outputs(oracle.run(taken), taps) - expected) / scale) ** 2))

    shares = []
    with progress.stage("sharing the error out", len(oracle.items) + 1) as bar:
        whole = error(oracle.items)
        bar.advance()
        for part in oracle.items:
            shares.append(Share(part, error((part,))))
            bar.advance()
    found = Budget("squared error", tuple(shares), whole, count=len(expected))
    return Budgeted(candidate, replace(found, notes=_notes(found, 0.0)))


def _outputs(run: Any, taps: Sequence[str]) -> np.ndarray:
    """Every value that was returned, `[N]`."""
    return np.concatenate(
        [np.asarray(records_of(run, tap)[0].read(), np.float64).reshape(-1) for tap in taps]
    )
