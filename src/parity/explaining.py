"""`parity.explain`: why the culprits of finished runs are wrong, from what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.comparison import Comparison
from parity.harness.errors import ParityError, UserError, did_you_mean
from parity.harness.explaining import Explanation, explanations
from parity.harness.facing import faced
from parity.harness.progress import Progress, Silent
from parity.harness.target import Spec
from parity.harness.trace import Run, Trace

from .cases import build_case, build_module_case, weights_of
from .finished import candidates, open_result
from .provenance import isolated_of
from .recorder import FLOOR, ISOLATED, stored
from .request import Request
from .stored import compare_traces

if TYPE_CHECKING:
    from parity.harness.module_roles import ModuleOps

#: Hypotheses that are told where none explains.
SHOWN = 8


@dataclass(frozen=True)
class Explained:
    """One candidate: an explanation for each of its culprits, and what stood in the way of better ones."""

    label: str
    verdict: str
    explanations: tuple[Explanation, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; of what was tried, the best."""
        made = [asdict(replace(item, tried=item.tried[:SHOWN])) for item in self.explanations]
        return {"label": self.label, "verdict": self.verdict, "notes": list(self.notes), "explanations": made}


def explain(
    *sources: str | Path,
    cand: str | None = None,
    tap: str = "*",
    progress: Progress | None = None,
) -> tuple[Explained, ...]:
    """The known mistakes that reproduce what candidates did, culprit by culprit.

    `sources` is the folder or report.json of a run, one trace with a reference and candidates, or two traces
    (`FILE.h5[:RUN]`), the reference first. Nothing is executed, but the case is built again for its weights.
    `tap` is a glob of culprits. UserError when there are culprits and it matches none.
    """
    shown = progress or Silent()
    held = list(_held(sources, cand, shown))
    there = [culprit.tap for one in held for culprit in one.comparison.culprits]
    if there and not any(fnmatchcase(name, tap) for name in there):
        raise UserError(f"tap={tap!r}: matches no culprit. {did_you_mean(tap, there)}")
    return tuple(_explained(one, tap, shown) for one in held)


@dataclass(frozen=True)
class _Held:
    """A comparison with its stored runs."""

    comparison: Comparison
    reference: Run
    candidate: Run
    isolated: Run | None
    asked: Mapping[str, str] = field(default_factory=dict)


def _held(sources: Sequence[str | Path], cand: str | None, progress: Progress) -> Iterator[_Held]:
    if not 1 <= len(sources) <= 2:
        raise UserError("give the folder of a run, a trace, or two traces: the reference and the candidate")
    named = [_trace(str(source)) for source in sources]
    if len(named) == 1 and named[0] is None:
        asked = open_result(sources[0])[0].provenance.get("request", {})
        for one in candidates(sources[0], cand=cand):
            yield _Held(one.comparison, one.reference, one.candidate, one.isolated, asked)
        return
    missing = next((str(source) for source, spec in zip(sources, named, strict=True) if spec is None), None)
    if missing is not None:
        raise UserError(f"{missing}: is no trace; two sources must both be traces (.h5)")
    specs = [spec for spec in named if spec is not None]
    trace, name = stored(specs[0])
    for other, label in _others(trace, name, specs, cand):
        path = specs[-1].name
        comparison = compare_traces(specs[0].name, path, ref_run=name, cand_run=label, progress=progress)
        yield _Held(comparison, trace[name], other[label], isolated_of(other, label))


def _trace(text: str) -> Spec | None:
    """`FILE.h5[:RUN]` as a stored side; None for a folder or a report."""
    path, _, run = text.rpartition(":") if not Path(text).exists() and ":" in text else (text, "", "")
    return Spec(run, path, "stored", path, run) if path.endswith((".h5", ".hdf5")) else None


def _others(trace: Trace, name: str, specs: Sequence[Spec], cand: str | None) -> Iterator[tuple[Trace, str]]:
    """Runs that are held against the reference: the one of a second trace, or all others of the first."""
    if len(specs) == 2:
        yield stored(specs[1])
        return
    names = dict.fromkeys(run.name for run in trace.runs if not run.name.endswith((ISOLATED, FLOOR)))
    labels = [other for other in names if other != name]
    if not labels or (cand is not None and cand not in labels):
        raise UserError(
            f"cand={cand!r}: {specs[0].name} holds no such run. {did_you_mean(cand or '', labels)}"
        )
    yield from ((trace, label) for label in labels if cand in (None, label))


def _explained(one: _Held, tap: str, progress: Progress) -> Explained:
    chosen = tuple(culprit for culprit in one.comparison.culprits if fnmatchcase(culprit.tap, tap))
    comparison = replace(one.comparison, culprits=chosen)
    verdict, label = comparison.verdict, comparison.label
    if not chosen:
        there = [culprit.tap for culprit in one.comparison.culprits]
        told = f"no culprit matches {tap!r}: there are {', '.join(there)}" if there else "there is no culprit"
        return Explained(label, verdict, (), (told,))
    weights, note = _weights(one.reference, one.asked, progress)
    sides = faced(one.reference, one.candidate, one.isolated)
    made: list[Explanation] = []
    with progress.stage(f"explaining {label}", len(chosen)) as bar:
        for found in explanations(comparison, *sides, weights):
            made.append(found)
            bar.advance()
    return Explained(label, verdict, tuple(made), (note,) if note else ())


def _weights(
    reference: Run, asked: Mapping[str, str], progress: Progress
) -> tuple[Mapping[str, Any] | ModuleOps | None, str]:
    """The weights that the reference was recorded with, built again; why not, where they are not at hand.

    A user's module is built by its factory again, with the inputs' file that the run was given.
    """
    provenance = reference.provenance
    own = str(provenance.get("model")) == asked.get("model") and Path(asked.get("inputs", "")).is_file()
    if not own and ("roles" not in provenance or "model" not in provenance):
        return None, "the reference does not say what its ops are: only outputs are looked at"
    if not own and provenance.get("weights_spec") is None and not _trained(str(provenance["model"])):
        return None, "the trained weights are not at hand: hypotheses about weights are left out"
    try:
        request = Request(model=asked["model"], inputs=asked["inputs"]) if own else Request()
        case = build_module_case(request) if own else build_case(request, progress=progress, like=reference)
        weights = weights_of(case, reference)
    except ParityError as error:
        return None, f"the weights are not at hand ({error}): hypotheses about weights are left out"
    if weights is None:
        told = "the weights at hand are not those of the reference: hypotheses about weights are left out"
        return None, told
    return weights, ""


def _trained(model: str) -> bool:
    """Whether a trained checkpoint lies in the cache: none is trained for an explanation."""
    from parity.reference.checkpoints import training_folder

    return (training_folder(model) / "model.pt").is_file()
