"""The only replay loop: drives a session over a scenario, freely or on the reference's tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .case import Scenario, plan
from .errors import InconclusiveError
from .ties import Ties
from .tracer import recording, trace_tensor
from .tracer import step as mark_step

if TYPE_CHECKING:
    from .case import Step
    from .progress import Progress
    from .target import Session
    from .tracer import Sink
    from .values import Values


@dataclass(frozen=True)
class Replayed:
    """What a replay leaves besides its trace: seconds per step, the tokens each step predicted `[B]`.

    `ties` are the (step, sequence) at which a free replay went on with the reference's token.
    """

    seconds: tuple[float, ...]
    predicted: tuple[tuple[int, ...] | None, ...]
    ties: tuple[tuple[int, int], ...] = ()


def replay(
    session: Session,
    scenario: Scenario,
    *,
    sink: Sink,
    progress: Progress,
    title: str,
    reference: Values | None = None,
    free: bool = False,
    isolate: bool = False,
) -> Replayed:
    """Execute every step on the reference's tokens, or (`free`, or without a reference) on the session's own.

    With `isolate`, each segment is also run on the reference's values. Raises InconclusiveError if a token
    that is needed is not there. A free replay takes the reference's token where its session had nothing to
    predict from, after a prefill that was done elsewhere, and where its own choice was a tie.
    """
    ties = Ties(reference, session.facts.dtype) if free and reference is not None else None
    steps = plan(scenario)
    seconds: list[float] = []
    predicted: list[tuple[int, ...] | None] = []
    with progress.stage(title, len(steps)) as bar, recording(sink):
        for step in steps:
            tokens = _tokens(step, reference, predicted, free=free)
            tokens = tokens if ties is None else ties.settle(step, tokens)
            positions = np.array(step.positions, np.int64)
            begin = time.perf_counter()
            with mark_step(step.index, positions=positions):
                trace_tensor("ids", tokens, axes="b t", positions=positions)
                logits = session.step(step, tokens, positions, reference if isolate else None)
            seconds.append(time.perf_counter() - begin)
            predicted.append(None if logits is None else _kept(greedy(logits), positions, predicted))
            bar.advance()
    return Replayed(tuple(seconds), tuple(predicted), tuple(ties.settled) if ties is not None else ())


def greedy(logits: np.ndarray) -> tuple[int, ...]:
    """The most likely token of each sequence, from logits `[B, V]`; the first of equals."""
    return tuple(int(token) for token in logits.astype(np.float64).argmax(axis=-1))


def _kept(
    chosen: tuple[int, ...], positions: np.ndarray, predicted: Sequence[tuple[int, ...] | None]
) -> tuple[int, ...]:
    """A sequence of which a chunk holds padding alone goes on with what its last real token predicted."""
    before = predicted[-1] if predicted else None
    if before is None:
        return chosen
    real = [bool((row >= 0).any()) for row in positions]
    return tuple(new if fed else old for new, old, fed in zip(chosen, before, real, strict=True))


def _tokens(
    step: Step, reference: Values | None, predicted: Sequence[tuple[int, ...] | None], *, free: bool
) -> np.ndarray:
    last = predicted[-1] if predicted else None
    own = last is not None or step.tokens is not None
    if reference is not None and not (free and own):
        return _forced(step, reference)
    if step.tokens is not None:
        return np.array(step.tokens, np.int64)
    if last is None:
        raise InconclusiveError(f"step={step.index}: the step before predicted no token to go on with")
    return np.array(last, np.int64)[:, None]


def _forced(step: Step, reference: Values) -> np.ndarray:
    tokens = reference.tokens(step.index)
    if tokens is None:
        raise InconclusiveError(f"step={step.index}: the reference recorded no token ids to be forced")
    if tokens.shape != (len(step.positions), step.width):
        raise InconclusiveError(
            f"step={step.index}: the reference was fed ids of shape {tokens.shape}, this scenario needs "
            f"{(len(step.positions), step.width)}; compare runs of one scenario"
        )
    return tokens.astype(np.int64)
