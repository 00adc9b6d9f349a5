"""`dump`: what a device wrote, played as a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parity.harness.case import Case, ModuleCase, Step
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options
from parity.harness.tracer import trace_tensor
from parity.harness.values import Values, token_axis

from .dumps.against import (
    check_tokens,
    originals_of,
    refuse_other_case,
    refuse_strange,
    shapes_of,
    steps_of,
    taps_of,
)
from .dumps.core import Contents, Dumped, ReadOptions
from .dumps.detect import detect, open_dump, parse, reader
from .dumps.facts import absent, artefacts_of, computed_in, substitutions
from .dumps.naming import Naming
from .dumps.recording import IDS, Played, Player, check_ids, fed_by

#: What a dump's session plays at a step: the tap that an entry is, and the entry.
Entries = Mapping[int, list[tuple[str, Dumped]]]


class DumpTarget:
    """`dump:PATH[+kind=KIND][+manifest=FILE][+step_offset=N][+NAME=VALUE]`."""

    name = "dump"
    summary = "what a device wrote: dump:PATH of any kind that `parity import --kinds` lists"

    def missing(self) -> str | None:
        """Always there."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """A path that is there, a kind that is known or recognised."""
        path, kind, _, _ = _parsed(arg)
        if kind is None or not path.exists():
            detect(path)
        else:
            reader(kind)

    def prepare(
        self,
        case: Case | ModuleCase,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> DumpSession:
        """Open the dump, name its entries, refuse one of another case; nothing is loaded."""
        path, kind, said, offset = _parsed(arg)
        contents = open_dump(path, kind, said)
        refuse_other_case(contents, case)
        naming = Naming(options.mapping, taps_of(case, reference), originals_of(case))
        player = Player(contents, naming, step_offset=offset, shapes=shapes_of(reference), transforms=False)
        entries = _by_step(player, progress)
        refuse_strange(player, path)
        check_tokens(player, case, reference)
        return DumpSession(player, entries, _facts(player, case, path, options), forced=reference is not None)


def _parsed(arg: str) -> tuple[Path, str | None, ReadOptions, int]:
    path, kind, said = parse(arg)
    offset = said.number("step_offset", 0)
    settings = {name: value for name, value in said.settings.items() if name != "step_offset"}
    return path, kind, replace(said, settings=settings), offset


def _by_step(player: Player, progress: Progress) -> Entries:
    """Every entry under its step, with the tap that it is. UserError for calls that leave some out."""
    steps: dict[int, list[tuple[str, Dumped]]] = {}
    calls: dict[tuple[str, int], int] = {}
    with progress.stage(f"reading {player.contents.kind}", player.contents.count or 1) as bar:
        for entry in player.contents.entries:
            tap, step = player.note(entry), player.step(entry)
            expected = calls.get((tap, step), 0)
            if entry.call != expected:
                raise UserError(
                    f"tap={tap!r}: the dump has call {entry.call} of step {step} where call {expected} "
                    "should be; import it with `parity import` and name the run"
                )
            calls[tap, step] = expected + 1
            steps.setdefault(step, []).append((tap, entry))
            bar.advance()
    return steps


def _facts(player: Player, case: Case | ModuleCase, path: Path, options: Options) -> Facts:
    contents, summary = player.contents, player.summary
    dtype, doubt = computed_in(contents, summary, options.dtype)
    steps = steps_of(case)
    said = [*substitutions(summary), *([doubt] if doubt else []), *contents.notes]
    if others := sorted(summary.steps - set(steps)):
        said.append(f"the dump has steps {others[0]}..{others[-1]} beyond the scenario, which are left out")
    known = [tap for tap in summary.matching.known or () if tap != IDS]
    warnings = [] if contents.facts.get("complete", True) else [_incomplete(contents)]
    held = {*fed_by(player), *summary.places.get(IDS, ())}
    if not isinstance(case, ModuleCase) and held.isdisjoint(steps):
        why = "nothing to hold them against" if held else "it has none"
        warnings.append(f"the dump may be of another prompt: its token ids were not checked: {why}")
    return Facts(
        dtype=dtype,
        layout="dump",
        substitutions=tuple(said),
        unobserved=tuple(absent(summary.places, known, steps)),
        cache_records="rows",
        details={
            **contents.facts,
            "dump": {"kind": contents.kind, "path": str(path)},
            "rules": summary.matching.rules,
            "unmatched": list(summary.matching.unmatched),
            **({"artefacts": made} if (made := artefacts_of(contents.facts)) else {}),
            **({"warnings": warnings} if warnings else {}),
        },
    )


def _incomplete(contents: Contents) -> str:
    return f"the dump of kind {contents.kind} is incomplete: the device was stopped while it wrote"


@dataclass
class DumpSession:
    """Plays the records of a dump, step by step; `forced` where the tokens are a reference's."""

    player: Player
    entries: Entries
    facts: Facts
    forced: bool

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Record everything that the dump holds of a step; its logits, where they are among it."""
        fed = fed_by(self.player).get(step.index)
        if fed is not None:
            self._check(step, tokens, fed)
        logits = None
        for tap, entry in self.entries.get(step.index, ()):
            played = self.player.play(entry, tap)
            if tap == IDS:
                self._check(step, tokens, played.array)
                continue
            name = self.player.naming.recorded(entry)
            trace_tensor(name, played.array, axes=_axes(played, positions), positions=played.positions)
            logits = played.array if tap == "logits" else logits
        return None if logits is None else last_rows(logits, positions)

    def _check(self, step: Step, tokens: np.ndarray, fed: np.ndarray) -> None:
        if not self.forced and step.tokens is None and not np.array_equal(np.atleast_2d(fed), tokens):
            raise UserError(
                f"dump: step {step.index} was fed ids that its own logits do not predict; it was forced. As "
                "a reference import it with `parity import` and name the run, which keeps its ids"
            )
        check_ids("the dump", step.index, fed, tokens)

    def close(self) -> None:
        """Nothing is held."""


def _axes(played: Played, positions: np.ndarray) -> str:
    """The axes of a record; none for rows whose positions nobody states, so that they align by call."""
    at = token_axis(played.axes)
    told = at is None or played.positions is not None or played.array.shape[at] <= positions.shape[-1]
    return played.axes if told else ""


def last_rows(logits: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Logits `[B, V]` of each sequence's last real token, from `[B, V]`, `[B, 1, V]` or `[B, T, V]`."""
    batch, width = positions.shape
    if logits.ndim not in (2, 3) or logits.shape[0] != batch:
        return None
    if logits.ndim == 3 and logits.shape[1] not in (1, width):
        return None
    if logits.ndim == 3:
        last = positions.argmax(axis=1) if logits.shape[1] > 1 else np.zeros(batch, np.int64)
        logits = logits[np.arange(batch), last]
    return np.asarray(logits, np.float32)
