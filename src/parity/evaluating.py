"""`parity.eval`: reference and candidates over a text, in forced windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from parity.harness.case import Case, Scenario, plan
from parity.harness.errors import CandidateError, InconclusiveError, ParityError, UserError
from parity.harness.evaluation import Against, Tally, budget_exceeded
from parity.harness.progress import Bar, Progress, Silent
from parity.harness.replay import replay
from parity.harness.target import Options, Spec, parse_spec, split_specs
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from .cases import build_case, case_provenance
from .recorder import check_spec
from .replays import open_session, threads
from .request import DEFAULT_MODEL, Request

if TYPE_CHECKING:
    from parity.harness.case import Model
    from parity.harness.trace import Run

#: Tokens that are scored, and how many of them in one window.
TOKENS, LENGTH = 1000, 250
#: Context of a window where the model has no own.
CONTEXT = 64
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
    request, progress = Request(ref=ref, cand=names, **options), progress or Silent()
    if not names:
        raise UserError("cand: name at least one candidate, for example --cand onnx")
    if request.own_module:
        raise UserError(
            f"model={request.model!r}: has no tokens; eval takes a model row, see `parity models`"
        )
    specs, trusted = split_specs(names), parse_spec(request.trusted)
    for spec in (trusted, *specs):
        if spec.kind == "stored":
            raise UserError(f"spec={spec.text!r}: is a stored run; eval executes both sides over a text")
        check_spec(spec, request.options, own_module=False)
    count = _positive("tokens", _token_count(tokens, specs, progress))
    case = build_case(replace(request, scenario=request.scenario or "one", prompt=None), progress=progress)
    ids, said = _text(text, request, case.model)
    windows = list(_windows(case, ids, count, min(_positive("length", length), count)))
    tallies = {spec.label: Tally() for spec in specs}
    failures: dict[str, str] = {}
    scored = sum(window.scored for window in windows)
    with progress.stage("evaluating", scored * (len(specs) + 1)) as bar:
        for window in windows:
            _evaluate(window, trusted, specs, request.options, tallies, failures, bar)
    limits = {"kl": max_kl, "flips": max_flips}
    found = tuple(_evaluation(spec.label, tallies[spec.label], failures, limits) for spec in specs)
    return Evaluations(trusted.label, said, scored, len(windows), found)


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


def _text(text: str | Path | None, request: Request, model: Model) -> tuple[np.ndarray, str]:
    """Token ids `[N]` and what they are."""
    if text is not None:
        path = Path(text)
        try:
            return np.array(model.encode(path.read_text(encoding="utf-8")), np.int64), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text={str(path)!r}: cannot be read: {error}") from error
    if request.prompt is not None:
        return np.array(model.encode(request.prompt), np.int64), "the prompt"
    if request.scenario is not None:
        from parity.fixtures import load_scenario

        return np.array(
            load_scenario(request.scenario, model).ids[0], np.int64
        ), f"scenario {request.scenario}"
    return _held_out(request.model or DEFAULT_MODEL, model)


def _held_out(name: str, model: Model) -> tuple[np.ndarray, str]:
    """What training never saw, its rare characters replaced as they were in training."""
    from parity.reference.training.settings import SETTINGS
    from parity.reference.training.text import library_text

    if name not in SETTINGS:
        raise UserError(f"text: there is no held-out text for {name}; name a file with --text")
    clip = SETTINGS[name].clip_code
    ids = np.minimum(np.array([ord(letter) for letter in library_text().held_out], np.int64), clip)
    return ids, "held-out documentation"


@dataclass(frozen=True)
class Window:
    """A passage `[context + scored + 1]`; the i-th logits should say the token at `context + i + 1`."""

    case: Case
    ids: np.ndarray
    context: int

    @property
    def scored(self) -> int:
        """Tokens whose prediction is scored."""
        return len(self.ids) - self.context - 1

    @property
    def targets(self) -> np.ndarray:
        """Tokens that came, `[scored]`."""
        return self.ids[self.context + 1 :]

    def scenario(self, *, at_once: bool) -> Scenario:
        """One prefill of everything, or a full context and one decode step per scored token."""
        prompt = self.ids[:-1] if at_once else self.ids[: self.context]
        steps = 0 if at_once else self.scored
        return replace(
            self.case.scenario, ids=(tuple(map(int, prompt)),), steps=steps, pad_to=None, resets=(), texts=()
        )


def _windows(case: Case, ids: np.ndarray, tokens: int, length: int) -> Iterator[Window]:
    """Passages spread evenly over the text. UserError where it is too short for one."""
    context = case.scenario.policy.window or min(CONTEXT, max(1, len(ids) // 4))
    limit = getattr(case.model.config, "max_length", None)
    length = length if limit is None else min(length, limit - context - 1)
    if len(ids) < context + 2 or length < 1:
        raise UserError(
            f"text={len(ids)} tokens: too short; a window needs {context} of context and one to predict"
        )
    length = min(length, len(ids) - context - 1)
    number = min(-(-tokens // length), max(1, (len(ids) - context - 1) // length))
    starts = np.linspace(0, len(ids) - context - length - 1, number).round().astype(int)
    left = tokens
    for start in starts:
        size = min(length, left)
        left -= size
        yield Window(case, ids[start : start + context + size + 1], context)


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


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name}={value}: must be at least 1")
    return value
