"""Any module that maps token ids to logits, driven over a scenario: the whole history at every step.

It keeps no cache between steps (layout `recompute`), so a Hugging Face model or a rewrite can be held against
a model that does. Padding is left out: each sequence starts at position 0, shorter ones are filled behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.arrays import to_array
from parity.harness.case import Case, Step
from parity.harness.dtypes import from_any
from parity.harness.errors import CandidateError, UserError
from parity.harness.imports import describe
from parity.harness.inputs import Signature
from parity.harness.mapping import TapMap
from parity.harness.module_session import fresh
from parity.harness.target import Facts
from parity.harness.tracer import recording, tap_modules, trace_tensor
from parity.harness.tracer import step as mark_step
from parity.harness.values import token_axis

if TYPE_CHECKING:
    from parity.harness.values import Values

LOGITS = "logits"
#: Batch and length of the calls that tell which axis of a tap runs over sequences, and which over tokens.
PROBES = ((2, 3), (2, 5), (3, 3))


@dataclass(frozen=True, slots=True)
class Held:
    """One record of a call, its positions where the module gave them."""

    tap: str
    array: np.ndarray
    axes: str
    positions: np.ndarray | None

    def located(self, positions: np.ndarray) -> np.ndarray | None:
        """Positions `[B, n]` of its n rows, the last of `positions` `[B, S]`; None without a token axis."""
        at = token_axis(self.axes)
        if self.positions is not None or at is None or self.array.shape[at] > positions.shape[1]:
            return self.positions
        return positions[:, positions.shape[1] - self.array.shape[at] :]


@dataclass
class Kept:
    """A sink that keeps the newest `rows` along the axis "t" of what it is given, in memory."""

    axes: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    records: list[Held] = field(default_factory=list)

    def record(
        self, tap: str, array: Any, *, axes: str = "", positions: np.ndarray | None = None, **about: Any
    ) -> None:
        """Copy the rows that are wanted."""
        values, letters = from_any(array)[0], axes or self.axes.get(tap, "")
        if "t" in letters.split() and self.rows is not None:
            at = letters.split().index("t")
            first = max(0, values.shape[at] - self.rows)
            values = values[(slice(None),) * at + (slice(first, None),)]
            positions = None if positions is None else positions[..., first:]
        self.records.append(Held(tap, np.array(values), letters, positions))


@dataclass
class ModuleLMSession:
    """A `Session` that feeds ids `[B, S]` and reads logits `[B, S, V]`."""

    module: nn.Module
    facts: Facts
    device: str
    vocab_size: int
    axes: Mapping[str, str]
    own_logits: bool
    history: list[list[int]] = field(default_factory=list)

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Logits `[B, V]` of each sequence's newest token; records the rows of the new tokens."""
        if step.reset or not self.history:
            self.history = [[] for _ in tokens]
        for row, new, at in zip(self.history, tokens, positions, strict=True):
            row += [int(token) for token, place in zip(new, at, strict=True) if place >= 0]
        lengths = np.array([len(row) for row in self.history])
        news = (positions >= 0).sum(axis=1)
        aligned = len(set(lengths)) == 1 and len(set(news)) == 1
        rows = int(news[0]) if aligned else int(lengths.max())
        kept = Kept(self.axes, rows)
        with recording(kept), mark_step(step.index):
            logits = self._call(lengths)
            if not self.own_logits:
                kept.record(LOGITS, logits, axes="b t v")
        where = _positions(lengths)
        with mark_step(step.index):
            for held in kept.records:
                trace_tensor(held.tap, held.array, axes=held.axes, positions=held.located(where))
        newest: np.ndarray = logits[np.arange(len(lengths)), lengths - 1]
        return newest

    def _call(self, lengths: np.ndarray) -> np.ndarray:
        ids = np.zeros((len(lengths), int(lengths.max())), np.int64)
        for row, held in zip(ids, self.history, strict=True):
            row[: len(held)] = held
        logits = to_array(call(self.module, torch.from_numpy(ids).to(self.device)))
        if logits.shape != (*ids.shape, self.vocab_size):
            raise CandidateError(
                f"module={type(self.module).__name__}: logits={list(logits.shape)}, "
                f"but should be {[*ids.shape, self.vocab_size]} for ids of {list(ids.shape)}"
            )
        return logits

    def close(self) -> None:
        """Let go of the history."""
        self.history = []


def call(module: nn.Module, ids: Tensor) -> Tensor:
    """Logits `[B, S, V]` of ids `[B, S]`, without gradients, hooks on. CandidateError where it fails."""
    by_name = "input_ids" in Signature.of(module).parameters
    many = len(list(module.modules())) > 1
    with torch.no_grad(), tap_modules(module, exclude="") if many else nullcontext():
        try:
            value = module(input_ids=ids) if by_name else module(ids)
        except Exception as error:
            raise CandidateError(
                f"module={type(module).__name__}: failed on ids of {list(ids.shape)}: {describe(error)}"
            ) from error
    return _logits(module, value)


def _logits(module: nn.Module, value: Any) -> Tensor:
    found = value
    if isinstance(value, Mapping):
        found = value.get(LOGITS)
    elif isinstance(value, (tuple, list)) and value:
        found = value[0]
    elif hasattr(value, LOGITS):
        found = value.logits
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise CandidateError(
            f"module={type(module).__name__}: returned {type(value).__name__}, but should return "
            "logits [B, S, V], alone, first in a tuple, or as .logits"
        )
    return found


def lm_session(
    case: Case, module: nn.Module, facts: Facts, device: str, mapping: TapMap
) -> tuple[ModuleLMSession, list[str]]:
    """The session and the taps that it shows; axes are learnt from three short calls."""
    if not Signature.of(module).parameters and not Signature.of(module).star:
        raise UserError(f"module={type(module).__name__}: forward takes no token ids")
    probe = _probe(module, device, min(2, case.model.vocab_size - 1))
    axes = probe.axes
    axes |= {tap: declared for tap in axes if (declared := mapping.axes(tap)) is not None}
    said = list(facts.substitutions)
    scenario = case.scenario
    if scenario.policy.kind != "full":
        said.append(f"cache policy {scenario.policy} is left to the module: it is handed the whole history")
    if any(len(row) != scenario.prompt_length for row in scenario.ids):
        said.append("padding is left out: every sequence is handed over from position 0, filled behind")
    details = {**facts.details, "axes": {tap: letters for tap, letters in axes.items() if letters}}
    if probe.trouble:
        details["warnings"] = (*details.get("warnings", ()), probe.trouble)
    facts = replace(facts, layout="recompute", substitutions=tuple(said), details=details)
    session = ModuleLMSession(module, facts, device, case.model.vocab_size, axes, LOGITS in probe.taps)
    return session, list(probe.taps)


@dataclass
class Probe:
    """What short calls told: the taps, the axes of those that give none, and what went wrong."""

    taps: dict[str, None] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


def _probe(module: nn.Module, device: str, token: int) -> Probe:
    seen: list[dict[str, tuple[int, ...]]] = []
    probe = Probe()
    for batch, length in PROBES:
        kept = Kept()
        try:
            with recording(kept):
                call(fresh(module), torch.full((batch, length), token, dtype=torch.int64, device=device))
        except CandidateError as error:
            probe.trouble = f"axes of its taps are not known, so only logits are aligned by position: {error}"
            return probe
        probe.taps.update(dict.fromkeys(held.tap for held in kept.records))
        seen.append({held.tap: held.array.shape for held in kept.records if not held.axes})
    probe.axes = {tap: _letters([shapes.get(tap, ()) for shapes in seen]) for tap in seen[0]}
    return probe


def _letters(shapes: Sequence[tuple[int, ...]]) -> str:
    """Letters of one tap from its shapes under `PROBES`; empty where they do not follow batch and length."""
    if len({len(shape) for shape in shapes}) > 1 or not shapes[0]:
        return ""
    free = iter("xyzuvw")
    letters: list[str] = []
    for at, sizes in enumerate(zip(*shapes, strict=True)):
        if sizes == tuple(batch for batch, _ in PROBES):
            letters.append("b")
        elif sizes == tuple(length for _, length in PROBES):
            letters.append("p" if "t" in letters else "t")
        elif len(set(sizes)) > 1:
            return ""
        else:
            letters.append("d" if at == len(shapes[0]) - 1 else next(free))
    plain = letters.count("b") == 1 and letters.count("t") == 1 and letters.count("p") <= 1
    return " ".join(letters) if plain else ""


def _positions(lengths: np.ndarray) -> np.ndarray:
    """Positions `[B, S]` of histories that start at 0; -1 behind the shorter ones."""
    columns = np.arange(int(lengths.max()))
    return np.where(columns < lengths[:, None], columns, -1).astype(np.int64)
