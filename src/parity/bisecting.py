"""`parity.bisect`: the smallest set of parts of a candidate that makes it depart, and the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parity.harness.case import ModuleCase
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.progress import Progress, Silent
from parity.harness.searching import BAD, Found, Trials, search, tree

from .driver import new_folder
from .oracles import ModuleOracle, SegmentOracle, ShellOracle, listed
from .replays import Bench
from .request import Request

LOG = "bisect.json"
OUTPUT = "check.log"


@dataclass(frozen=True)
class Bisection:
    """What a search found; `groups` are culprits, a group of several fails only as a whole.

    `method` says in words how the reference's parts were put in, `trials` are subsets taken from the
    candidate and their outcomes in order, `executed` how many of them ran now.
    """

    candidate: str
    method: str
    items: tuple[str, ...]
    found: Found
    trials: Mapping[tuple[str, ...], str]
    executed: int
    path: str
    inconclusive: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def culprits(self) -> tuple[str, ...]:
        """Every part at fault, in execution order within its group."""
        return self.found.parts

    @property
    def exit_code(self) -> int:
        """0 no divergence, 1 culprits, 3 nothing could be concluded."""
        return 3 if self.inconclusive else 1 if self.found.groups else 0

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.inconclusive:
            return f"inconclusive: {self.inconclusive}"
        if not self.found.groups:
            return f"no divergence: with all {len(self.items)} parts from the candidate it passes"
        names = "; ".join(" with ".join(group) for group in self.found.groups)
        if not self.found.proven:
            doubt = "do not fail alone" if not self.found.alone else "do not explain all of it"
            return f"culprits: {names}; no proof, they {doubt}"
        these, each = ("these", "each") if len(self.found.groups) > 1 else ("it", "it")
        return (
            f"culprits: {names}; proof: with {these} from the reference and all else from the candidate "
            f"the run passes, and {each} fails alone"
        )

    def lines(self) -> list[str]:
        """What was tried, as a tree."""
        return tree(self.trials, self.items)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidate": self.candidate,
            "method": self.method,
            "items": list(self.items),
            "culprits": [list(group) for group in self.found.groups],
            **{key: value for key, value in asdict(self.found).items() if key != "groups"},
            "proven": self.found.proven,
            "trials": [{"taken": list(t), "outcome": outcome} for t, outcome in self.trials.items()],
            "executed": self.executed,
            "inconclusive": self.inconclusive,
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }


def bisect(
    ref: str | None = None,
    cand: str | None = None,
    *,
    check: str | None = None,
    items: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Bisection:
    """Find which parts of a candidate make it depart from the reference.

    Parts are the segments of one of our models, the submodules of a `module:` candidate, or (`check`, a
    command) the `items` of anyone's list. `options` are those of `parity.run`, by the same names. What was
    tried lies in `out`; with `resume` a search that was stopped goes on. Raises UserError for what has no
    parts.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"bisect() has no option {sorted(unknown)[0]!r}")
    if (check is None) != (items is None):
        raise UserError(
            "check, items: belong together; name the parts with --items a,b,c and a --check COMMAND"
        )
    progress = progress or Silent()
    taps = options.pop("taps", ())
    request = Request(
        ref=ref,
        cand=() if cand is None else (cand,),
        taps=(taps,) if isinstance(taps, str) else tuple(taps),
        **options,
    )
    named = listed(items) if items is not None else ()
    if check is None and cand is None:
        raise UserError("cand: name the candidate whose parts are to be searched, for example --cand onnx")
    folder = _folder(out, resume=resume)
    if check is not None:
        identity = {"check": check}
        shell = ShellOracle(check, named, folder / OUTPUT)
        return _searched(Trials(named, shell, folder / LOG, identity, progress), "check", check, resume)
    if request.own_module:
        modules = ModuleOracle.open(request, folder, progress)
        trials = Trials(modules.items, modules, folder / LOG, _identity(request, modules.case), progress)
        how = "submodules exchanged between reference and candidate"
        return _searched(trials, str(cand), how, resume)
    return _segments(Bench.open(request, folder, progress), folder, resume)


def _segments(bench: Bench, folder: Path, resume: bool) -> Bisection:
    """With the reference's own segments; where those fail themselves, with what the reference recorded."""
    identity = {"cand": bench.spec.text, "weights": bench.case.weights, "tol": bench.request.tol}
    identity["scenario"] = str(bench.reference.provenance.get("scenario_digest"))
    try:
        oracle = SegmentOracle(bench, bench.request.taps)
        trials = Trials(oracle.items, oracle, folder / LOG, {**identity, "by": "routed"}, bench.progress)
        if resume:
            trials.resume()
        how = "the reference's own segments in the places of the candidate's"
        if trials.ask(oracle.items) == BAD and trials.ask(()) == BAD:
            oracle.patched = True
            log = folder / f"recorded-{LOG}"
            trials = Trials(oracle.items, oracle, log, {**identity, "by": "patched"}, bench.progress)
            how = (
                "recorded values of the reference in the places of outputs (its own segments depart as well)"
            )
        return _searched(trials, bench.spec.text, how, resume)
    finally:
        bench.close()


def _searched(trials: Trials, candidate: str, method: str, resume: bool) -> Bisection:
    inconclusive, found = "", Found((), repaired=False)
    if resume:
        trials.resume()
    try:
        found = search(trials)
    except InconclusiveError as error:
        inconclusive = str(error)
    notes = ("some trials could not tell anything, so the set may be larger than need be",) * found.unsure
    return Bisection(
        candidate,
        method,
        trials.items,
        found,
        trials.tried,
        trials.executed,
        str(trials.path),
        inconclusive,
        notes,
    )


def _identity(request: Request, case: ModuleCase) -> dict[str, str]:
    return {"cand": request.cand[0], "weights": case.weights, "tol": request.tol}


def _folder(out: str | Path | None, *, resume: bool) -> Path:
    """A new folder, or the one of a search that goes on."""
    if resume:
        if out is None:
            raise UserError("resume: needs the folder of the search; name it with --out")
        Path(out).mkdir(parents=True, exist_ok=True)
        return Path(out)
    if out is not None and (Path(out) / LOG).exists():
        raise UserError(
            f"out={str(out)!r}: holds a search already; go on with --resume, or name another folder"
        )
    return new_folder(out)
