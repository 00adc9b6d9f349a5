"""`dump`: what a device wrote, played as a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.case import Case, Step, plan
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options
from parity.harness.tracer import trace_tensor
from parity.harness.values import Values

from .dumps.core import Contents, Dumped
from .dumps.detect import detect, open_dump, parse, reader
from .dumps.facts import absent, computed_in, said_of_case, substitutions
from .dumps.naming import Naming
from .dumps.recording import IDS, Player, check_ids

#: Names that are listed of the dump where none is a tap.
LISTED = 6


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
        case: Case,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> DumpSession:
        """Open the dump, name its entries, refuse one of another case."""
        path, kind, said, offset = _parsed(arg)
        contents = open_dump(path, kind, said)
        _refuse_other_case(contents, case)
        naming = Naming(options.mapping, _known(case, reference), case.model.renames)
        player = Player(contents, naming, step_offset=offset, shapes=_shapes(reference), transforms=False)
        entries = _by_step(player, progress)
        _refuse_strange(player, path)
        _check_tokens(player, case, reference)
        return DumpSession(player, entries, _facts(player, case, path, options))


def _parsed(arg: str) -> tuple[Path, str | None, Any, int]:
    path, kind, said = parse(arg)
    offset = said.number("step_offset", 0)
    settings = {name: value for name, value in said.settings.items() if name != "step_offset"}
    return path, kind, type(said)(said.manifest, settings), offset


def _known(case: Case, reference: Values | None) -> list[str]:
    """The taps that the dump may hold, in execution order."""
    taps = reference.run.taps if reference is not None else [IDS, *case.model.taps]
    return list(dict.fromkeys(taps))


def _shapes(reference: Values | None) -> dict[tuple[str, int, int], tuple[int, ...]]:
    records = reference.run.records() if reference is not None else ()
    return {(record.tap, record.step, record.call): record.shape for record in records}


def _by_step(player: Player, progress: Progress) -> dict[int, list[tuple[str, Dumped]]]:
    """Every entry under its step, with the tap that it is; nothing is loaded."""
    steps: dict[int, list[tuple[str, Dumped]]] = {}
    with progress.stage(f"reading {player.contents.kind}", player.contents.count or 1) as bar:
        for entry in player.contents.entries:
            steps.setdefault(player.step(entry), []).append((player.note(entry), entry))
            bar.advance()
    return steps


def _refuse_strange(player: Player, path: Path) -> None:
    """UserError where nothing in the dump is a tap of the case."""
    matching = player.summary.matching
    if not matching.rules:
        names = ", ".join(list(matching.unmatched)[:LISTED]) or "nothing"
        taps = ", ".join(player.summary.absent[:LISTED])
        raise UserError(
            f"dump:{path}: holds {names} ..., none of which is a tap of this case ({taps} ...); it is of "
            "another model, or its names need a --map file"
        )


def _refuse_other_case(contents: Contents, case: Case) -> None:
    """UserError for a dump that says it is of another model, other weights or another scenario."""
    own = {"model": case.model.name, "weights": case.weights, "policy": str(case.scenario.policy)}
    for name, wanted in own.items():
        found = said_of_case(contents.facts, name)
        if found is not None and found != wanted:
            raise UserError(f"dump: is of {name} {found[:60]!r}, but this case has {wanted[:60]!r}")
    scenario = contents.facts.get("scenario")
    said = scenario if isinstance(scenario, Mapping) else {}
    ours = case.scenario.to_json()
    for name in ("policy", "resets", "padding"):
        if name in said and not _same(said[name], ours[name]):
            raise UserError(
                f"dump: is of a scenario with {name} {said[name]!r}, but this case has {ours[name]!r}"
            )


def _same(one: Any, other: Any) -> bool:
    return list(one) == list(other) if isinstance(one, (list, tuple)) else bool(one == other)


def _check_tokens(player: Player, case: Case, reference: Values | None) -> None:
    """UserError, before anything is played, for ids other than the case's."""
    fed = dict(player.fed)
    if not fed and player.contents.tokens is not None:
        fed = {0: player.contents.tokens}
    steps = {step.index: step for step in plan(case.scenario)}
    for index, tokens in fed.items():
        step = steps.get(index)
        if step is None:
            continue
        wanted = reference.tokens(index) if reference is not None else None
        if wanted is None and step.tokens is not None:
            wanted = np.array(step.tokens, np.int64)
        if wanted is not None:
            check_ids("the dump", index, tokens, wanted)


def _facts(player: Player, case: Case, path: Path, options: Options) -> Facts:
    contents, summary = player.contents, player.summary
    dtype, doubt = computed_in(contents, summary.dtypes, options.dtype)
    said = [*substitutions(summary), *([doubt] if doubt else []), *contents.notes]
    if not player.fed and contents.tokens is None:
        said.append("the dump holds no token ids: that it is of this prompt is unproven")
    steps = [step.index for step in plan(case.scenario)]
    others = sorted(summary.steps - set(steps))
    if others:
        said.append(f"steps {others[0]}..{others[-1]} of the dump are beyond the scenario and left out")
    known = [tap for tap in summary.matching.known or () if tap != IDS]
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
            **({"warnings": _incomplete(contents)} if contents.facts.get("complete") is False else {}),
        },
    )


def _incomplete(contents: Contents) -> list[str]:
    return [f"the dump of kind {contents.kind} is incomplete: the device was stopped while it wrote"]


@dataclass
class DumpSession:
    """Plays the records of a dump, step by step."""

    player: Player
    entries: Mapping[int, list[tuple[str, Dumped]]]
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Record everything that the dump holds of a step; its logits, where they are among it."""
        fed = self.player.fed.get(step.index)
        if fed is not None:
            check_ids("the dump", step.index, fed, tokens)
        logits = None
        for tap, entry in self.entries.get(step.index, ()):
            played = self.player.play(entry, tap)
            if tap == IDS:
                check_ids("the dump", step.index, played.array, tokens)
                continue
            trace_tensor(
                self.player.naming.recorded(entry), played.array, axes=played.axes, positions=played.positions
            )
            logits = played.array if tap == "logits" else logits
        return None if logits is None else last_rows(logits, positions)

    def close(self) -> None:
        """Nothing is held."""


def last_rows(logits: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Logits `[B, V]` of each sequence's last real token, from `[B, V]`, `[B, 1, V]` or `[B, T, V]`."""
    batch, width = positions.shape
    if (
        logits.ndim not in (2, 3)
        or logits.shape[0] != batch
        or (logits.ndim == 3 and logits.shape[1] not in (1, width))
    ):
        return None
    if logits.ndim == 3:
        logits = logits[np.arange(batch), positions.argmax(axis=1) if logits.shape[1] > 1 else 0]
    return np.asarray(logits, np.float32)
