"""What tells whether a run with some parts from the candidate fails: segments, modules, a command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from parity.harness.case import ModuleCase, Step
from parity.harness.comparison import Comparison
from parity.harness.errors import CandidateError, InconclusiveError, UserError
from parity.harness.folders import cache_folder
from parity.harness.progress import Progress
from parity.harness.rows import Rules
from parity.harness.searching import BAD, GOOD, UNKNOWN
from parity.harness.trace import Run
from parity.harness.tracer.memory import MemoryRun

from .cases import build_module_case, case_provenance
from .recorder import check_spec
from .replays import Bench, held_against, one_candidate, reference_run, rules_for, threads
from .request import Request

if TYPE_CHECKING:
    from torch import nn

    from parity.harness.module_session import ModuleSession
    from parity.harness.target import Spec

#: Exit status of a check that cannot tell, as of `git bisect run`.
CANNOT_TELL = 125
OUTCOMES = {"parity": GOOD, "divergence": BAD}


@dataclass
class SegmentOracle:
    """Segments, rotary rows and cache; `patched` where the reference's own segments are no help."""

    bench: Bench
    taps: tuple[str, ...] = ()
    patched: bool = False

    @property
    def items(self) -> tuple[str, ...]:
        """What can be exchanged, in execution order."""
        return (*self.bench.around, *self.bench.segments)

    def __call__(self, taken: tuple[str, ...]) -> str:
        """Run with these from the candidate and judge what segments hand on."""
        if self.patched and not taken:
            return GOOD
        if len(taken) == len(self.items):
            return outcome(self.bench.judged(self.bench.whole, self.taps or self.bench.outputs))
        try:
            if self.patched:
                run, watched = self.bench.patched(taken)
                return outcome(self.bench.judged(run, watched))
            return outcome(self.bench.judged(self.bench.routed(taken), self.taps or self.bench.outputs))
        except (CandidateError, InconclusiveError):
            return UNKNOWN


def outcome(comparison: Comparison) -> str:
    """A verdict as the outcome of a trial."""
    return OUTCOMES.get(comparison.verdict, UNKNOWN)


@dataclass
class ModuleOracle:
    """Submodules of a module candidate, each exchanged for its counterpart; the outputs are judged."""

    request: Request
    spec: Spec
    case: ModuleCase
    reference: Run
    session: ModuleSession
    original: nn.Module
    progress: Progress

    @classmethod
    def open(cls, request: Request, folder: Path, progress: Progress) -> ModuleOracle:
        """Record the reference into `folder` and build the candidate."""
        from parity.harness.module_session import Original
        from parity.targets.module import ModuleTarget

        spec = one_candidate(request)
        if spec.name != "module":
            raise UserError(
                f"cand={spec.text!r}: its parts cannot be exchanged; those of module:PKG:FACTORY can"
            )
        check_spec(spec, request.options, own_module=True)
        case = build_module_case(request)
        reference = reference_run(request, folder / "trace.h5", lambda like: case, progress)
        session = ModuleTarget().prepare(
            case,
            arg=spec.arg,
            options=request.options,
            reference=None,
            workdir=cache_folder() / "work",
            progress=progress,
        )
        original = Original.of(case).module
        return cls(request, spec, case, reference, cast("ModuleSession", session), original, progress)

    @cached_property
    def items(self) -> tuple[str, ...]:
        """Paths of parts whose own code can be exchanged, outer ones first."""
        from parity.harness.module_hybrid import parts

        return tuple(parts(self.original, self.session.module))

    @cached_property
    def rules(self) -> Rules:
        """As `parity run` judges this candidate."""
        whole = self.run(self.items)
        return rules_for(self.request, self.spec, self.case, self.reference, whole, self.progress)

    def __call__(self, taken: tuple[str, ...]) -> str:
        """Call the module put together; one that cannot be called tells nothing."""
        try:
            run = self.run(taken)
        except CandidateError:
            if len(taken) == len(self.items):
                raise
            return UNKNOWN
        return outcome(held_against(self.reference, run, self.rules, ("output*",)))

    def run(self, taken: Sequence[str]) -> MemoryRun:
        """Call the module put together of these parts from the candidate."""
        import numpy as np

        from parity.harness.module_hybrid import hybrid
        from parity.harness.module_session import ModuleSession
        from parity.harness.tracer import recording
        from parity.harness.tracer import step as mark_step

        whole, facts = self.session, self.session.facts
        module = hybrid(self.original, whole.module, set(taken))
        session = ModuleSession(module, whole.inputs, facts, CandidateError, whole.seed)
        known = {**case_provenance(self.case), "dtype": facts.dtype, "layout": facts.layout}
        run = MemoryRun("candidate", target=self.spec.text, provenance=known)
        nothing = np.zeros((0, 0), np.int64)
        with threads(self.request.options), recording(run), mark_step(0):
            session.step(Step(0, "call", ((),), None), nothing, nothing, None)
        run.complete = True
        return run


@dataclass
class ShellOracle:
    """A command of the user's: 0 is good, 1 to 127 is bad, 125 cannot tell, as with `git bisect run`.

    `{items}` in the command and PARITY_ITEMS in its environment hold the parts that are to be taken from the
    candidate, separated by spaces. Output goes to `log`.
    """

    command: str
    items: tuple[str, ...]
    log: Path

    def __call__(self, taken: tuple[str, ...]) -> str:
        """Run the command. UserError where it is killed or cannot be started at all."""
        words = " ".join(taken)
        command = self.command.replace("{items}", " ".join(map(shlex.quote, taken)))
        with self.log.open("ab") as log:
            log.write(f"$ PARITY_ITEMS={words!r} {command}\n".encode())
            log.flush()
            code = _ended(command, words, log.fileno())
        if code > 127 or code < 0:
            raise UserError(
                f"check={self.command!r}: ended with status {code}, which is neither good nor bad; "
                f"{self.log} has its output"
            )
        return GOOD if code == 0 else UNKNOWN if code == CANNOT_TELL else BAD


def _ended(command: str, items: str, log: int) -> int:
    """The exit status of the user's own command line; it and its children end with us."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env={**os.environ, "PARITY_ITEMS": items},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        return child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise


def listed(items: str) -> tuple[str, ...]:
    """`a,b,c`, or a file with one per line; UserError for names that a command line cannot take apart."""
    path = Path(items)
    if path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name and not name.startswith("#")]
    else:
        names = [name.strip() for name in items.split(",") if name.strip()]
    if not names:
        raise UserError(f"items={items!r}: names nothing; write a,b,c or a file with one per line")
    odd = [name for name in names if len(name.split()) != 1]
    twice = [name for name in names if names.count(name) > 1]
    if odd or twice:
        problem = f"{odd[0]!r} has spaces in it" if odd else f"{twice[0]!r} is named twice"
        raise UserError(f"items={items!r}: {problem}; every item is one word of its own")
    return tuple(names)
