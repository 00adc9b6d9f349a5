"""`parity.eval`: reference and candidates over a text, in forced windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from parity.harness.case import Scenario, plan
from parity.harness.errors import CandidateError, InconclusiveError, ParityError, UserError
from parity.harness.evaluation import Against, Tally, budget_exceeded
from parity.harness.progress import Bar, Progress, Silent
from parity.harness.replay import replay
from parity.harness.target import Options, Spec, parse_spec, split_specs
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from .cases import build_case, case_provenance
from .passages import Window, positive, text_of, windows_of
from .recorder import check_spec
from .replays import open_session, threads
from .request import GRAPH, Request

if TYPE_CHECKING:
    from parity.harness.trace import Run

#: Tokens that are scored, and how many of them in one window.
TOKENS, LENGTH = 1000, 250
#: Targets that compute a whole window at once.
AT_ONCE = ("torch", "module")


@dataclass(frozen=True)
class Evaluation:
    """A candidate's `found`, or why there is none; `exceeded` are the limits that it is beyond."""

    label: str
    found: Against | None
    failure: str = ""
    exceeded: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 within its limits, 1 beyond one or not finite, 4 it failed to run."""
        return 4 if self.found is None else int(bool(self.exceeded))


@dataclass(frozen=True)
class Evaluations:
    """All candidates over `tokens` tokens of `text`, in `windows` windows."""

    reference: str
    text: str
    tokens: int
    windows: int
    candidates: tuple[Evaluation, ...]

    @property
    def exit_code(self) -> int:
        """The worst of all candidates: 4, then 1, then 0."""
        return max((one.exit_code for one in self.candidates), default=0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "reference": self.reference,
            "text": self.text,
            "tokens": self.tokens,
            "windows": self.windows,
            "exit_code": self.exit_code,
            "candidates": {
                one.label: {
                    **(one.found.to_json() if one.found else {}),
                    "failure": one.failure,
                    "exceeded": list(one.exceeded),
                }
                for one in self.candidates
            },
        }


def evaluate(
    ref: str | None = None,
    cand: str | Sequence[str] | None = None,
    *,
    text: str | Path | None = None,
    tokens: int | None = None,
    length: int = LENGTH,
    max_kl: float | None = None,
    max_flips: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluations:
    """Next-token accuracy, perplexity, KL and flips of the reference and of candidates, side by side.

    `text` is a file; without one the scenario's prompt, if a scenario is named, else the text that training
    holds out. `tokens` of it are scored, in windows of `length`, spread evenly; before each lies a full
    context. Both sides are fed the text itself. `options` are those of `parity.run`.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"eval() has no option {sorted(unknown)[0]!r}")
    names = (cand,) if isinstance(cand, str) else tuple(cand or ())
    _check_model(options.get("model"))
    limits = {"kl": _limit("max_kl", max_kl), "flips": _limit("max_flips", max_flips)}
    request, progress = Request(ref=ref, cand=names, **options), progress or Silent()
    if not names:
        raise UserError("cand: name at least one candidate, for example --cand onnx")
    specs, trusted = split_specs(names), parse_spec(request.trusted)
    for spec in (trusted, *specs):
        if spec.kind == "stored":
            raise UserError(f"spec={spec.text!r}: is a stored run; eval executes both sides over a text")
        check_spec(spec, request.options, own_module=False)
    count = positive("tokens", _token_count(tokens, specs, progress))
    case = build_case(replace(request, scenario=request.scenario or "one", prompt=None), progress=progress)
    ids, said = text_of(text, request, case.model)
    windows = list(windows_of(case, ids, count, min(positive("length", length), count)))
    tallies = {spec.label: Tally() for spec in specs}
    failures: dict[str, str] = {}
    scored = sum(window.scored for window in windows)
    with progress.stage("evaluating", scored * (len(specs) + 1)) as bar:
        for window in windows:
            _evaluate(window, trusted, specs, request.options, tallies, failures, bar)
    found = tuple(_evaluation(spec.label, tallies[spec.label], failures, limits) for spec in specs)
    return Evaluations(trusted.label, said, scored, len(windows), found)


def _check_model(model: str | None) -> None:
    if model is not None and (":" in model or model.endswith(GRAPH)):
        raise UserError(
            f"model={model!r}: has no tokens; eval takes a language model row, see `parity models`"
        )


def _limit(name: str, value: float | None) -> float | None:
    if value is not None and not value >= 0.0:
        raise UserError(f"{name}={value:g}: a limit is 0 or more")
    return value


def _evaluation(
    label: str, tally: Tally, failures: Mapping[str, str], limits: Mapping[str, float | None]
) -> Evaluation:
    if label in failures:
        return Evaluation(label, None, failures[label])
    found = tally.result()
    return Evaluation(label, found, exceeded=tuple(budget_exceeded(found, limits)))


def _token_count(tokens: int | None, specs: Sequence[Spec], progress: Progress) -> int:
    """What was asked for; a slow target says itself how little is reasonable."""
    from . import registry

    if tokens is not None:
        return tokens
    own: list[int | None] = [getattr(registry.target(spec.name), "steps", None) for spec in specs]
    few = min((steps for steps in own if steps is not None), default=None)
    if few is None:
        return TOKENS
    progress.say(f"a candidate is slow, so {few} tokens by default; --tokens N scores more")
    return few


@dataclass
class Scored(MemoryRun):
    """Keeps what is needed of a run: its tokens, logits, and what a host fills a cache with."""

    wanted: frozenset[str] = field(default_factory=frozenset)

    def record(self, tap: str, array: Any, **about: Any) -> None:
        """Keep it, if it is wanted."""
        if tap in self.wanted:
            super().record(tap, array, **about)

    def logits(self, output: str, positions: np.ndarray) -> np.ndarray:
        """Logits `[N, V]` at absolute positions `[N]`; InconclusiveError for one that is lacking."""
        held: dict[int, np.ndarray] = {}
        for record in self.records(output):
            where = np.zeros(0, np.int64) if record.positions is None else record.positions.reshape(-1)
            rows = np.asarray(record.array, np.float64).reshape(len(where), -1)
            held.update((int(at), row) for at, row in zip(where, rows, strict=True) if at >= 0)
        lost = [int(at) for at in positions if int(at) not in held]
        if lost:
            raise InconclusiveError(f"{self.name}: shows no logits at position {lost[0]}")
        return np.stack([held[int(at)] for at in positions])


class _Forced(Values):
    """The reference's values by position, and the text in the place of its tokens."""

    def __init__(
        self, run: MemoryRun, ids: np.ndarray, scenario: Scenario, derived: Mapping[str, str]
    ) -> None:
        super().__init__(cast("Run", run), derived=derived)
        self._ids = ids
        self._places = {step.index: np.array(step.positions, np.int64) for step in plan(scenario)}

    def tokens(self, step: int) -> np.ndarray:
        """What the text has at the positions of a step."""
        return np.asarray(self._ids[self._places[step]])


def _evaluate(
    window: Window,
    trusted: Spec,
    specs: Sequence[Spec],
    options: Options,
    tallies: Mapping[str, Tally],
    failures: dict[str, str],
    bar: Bar,
) -> None:
    expected = _run(trusted, window, options, None)
    where = np.arange(window.context, window.context + window.scored)
    output = window.case.model.wiring.output
    rows = expected.logits(output, where)
    bar.advance(window.scored)
    for spec in specs:
        if spec.label in failures:
            continue
        try:
            actual = _run(spec, window, options, expected).logits(output, where)
        except (CandidateError, InconclusiveError) as error:
            failures[spec.label] = str(error)
            continue
        tally = tallies[spec.label]
        tally.add(actual, rows, window.targets, sum(map(len, tally.kl)) + tally.nonfinite)
        bar.advance(window.scored)


def _run(spec: Spec, window: Window, options: Options, reference: Scored | None) -> Scored:
    """One side over one window, fed the text."""
    scenario = window.scenario(at_once=spec.name in AT_ONCE)
    case = replace(window.case, scenario=scenario)
    wiring = case.model.wiring
    derived = {row.cache: row.source for row in wiring.caches}
    run = Scored(spec.label, target=spec.text, provenance=case_provenance(case))
    run.wanted = frozenset({wiring.output, "ids", *derived.values()})
    forced = _Forced(reference or run, window.ids, scenario, derived)
    session = open_session(spec, case, options, None if reference is None else forced)
    try:
        with threads(options):
            replay(session, scenario, sink=run, progress=Silent(), title="", reference=forced)
    except (ParityError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CandidateError(f"{spec.text}: failed while running: {type(error).__name__}: {error}") from error
    finally:
        session.close()
    return run
