"""`--stages`: a candidate executed at every stage that leads to it, neighbours held against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parity.harness.comparison import Comparison, Finding, Stage
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.rows import Rules
from parity.harness.stages import INSTRUMENTATION, Played, guilty, hold_stages
from parity.harness.target import Spec

from . import registry
from .recorder import EMULATED

if TYPE_CHECKING:
    from parity.harness.trace import Run

    #: Gives the run of a comparison's candidate and its isolated run.
    Runs = Callable[[Comparison], tuple[Run, Run | None]]

#: What a device's own dump is held against the simulator for.
HARDWARE = "hardware"
#: Stages whose own rules say what they may change; a later one may change as much as the one before it did.
RULED = ("export", "conversion", "quantization")


@dataclass(frozen=True)
class Planned:
    """One candidate of a staged run, and what makes it from the one before; `own` is what was asked for."""

    spec: Spec
    makes: str
    own: bool
    #: What a failure's own words say it failed in; None where they do not say.
    failed_in: Callable[[str], str | None] = lambda failure: None


def planned(specs: Sequence[Spec], *, own_module: bool) -> list[list[Planned]]:
    """Each candidate with stages as a chain of them; a dump that follows it is the chain's last stage.

    The candidate itself keeps its label. UserError for one that has no stages.
    """
    chains: list[list[Planned]] = []
    for spec in specs:
        if chains and spec.name == "dump":
            chains[-1].append(Planned(spec, HARDWARE, own=False))
            continue
        stages, target = None, None
        if spec.kind == "target":
            target = registry.target(spec.name, own_module=own_module)
            stages = getattr(target, "stages", None)
        if stages is None:
            raise UserError(f"stages: {spec.text} has none; they belong to chips, for example --cand cvi")
        made = [_stage(spec, arg, makes) for arg, makes in stages(spec.arg)]
        failed_in = getattr(target, "failed_in", None)
        chains.append([replace(one, failed_in=failed_in) if failed_in else one for one in made])
    return chains


def emulation_of(spec: Spec, *, own_module: bool) -> Spec | None:
    """The target's emulation of a quantized candidate; None where it has none."""
    find = getattr(registry.target(spec.name, own_module=own_module), "emulation", None)
    arg = find(spec.arg) if find else None
    return (
        None
        if arg is None
        else replace(spec, label=f"{spec.label}{EMULATED}", text=f"{spec.name}:{arg}", arg=arg)
    )


def unstaged(specs: Sequence[Spec]) -> list[list[Planned]]:
    """Each candidate alone."""
    return [[Planned(spec, "", own=True)] for spec in specs]


def _stage(spec: Spec, arg: str, makes: str) -> Planned:
    level = arg.rpartition("+")[2]
    own = level == "sim"
    label = spec.label if own else f"{spec.label}/{level}"
    return Planned(replace(spec, label=label, text=f"{spec.name}:{arg}", arg=arg), makes, own)


def with_stages(
    chain: Sequence[Planned],
    found: Sequence[Comparison],
    reference: Run,
    runs: Runs,
    rules: Callable[[Run], Rules],
    progress: Progress,
) -> list[Comparison]:
    """The comparisons of a chain; that of the candidate itself says which stage is guilty.

    That of a dump says so where it is of other artefacts than the candidate's.
    """
    played = [Played(found[0].reference.label, "", reference)]
    own, findings = played[0], {}
    for stage, comparison in zip(chain, found, strict=True):
        now = _played(stage, comparison, runs, rules)
        own = now if stage.own else own
        if stage.makes == HARDWARE:
            findings[id(comparison)] = _made_otherwise(now, own)
        if stage.makes == INSTRUMENTATION:
            played[-1] = replace(played[-1], closer=now)
        else:
            played.append(now)
    stages = hold_stages(played, progress=progress)
    cause = guilty(stages)
    out = []
    for stage, comparison in zip(chain, found, strict=True):
        judged = comparison.verdict not in ("parity", "refused")
        said = stage.failed_in(comparison.failure) if comparison.failure else None
        named = replace(cause, name=said) if cause is not None and said else cause
        guilt = (named,) if named is not None and judged else ()
        causes = (*guilt, *comparison.causes)
        told = (*comparison.findings, *findings.get(id(comparison), ()))
        if stage.own:
            replaced = (text for one in played for text in _stand_ins(one.run))
            told = (*told, *(Finding("warning", text) for text in replaced), *_disturbed(stages))
            comparison = replace(comparison, stages=stages, causes=causes)
        out.append(replace(comparison, findings=told))
    return out


def _disturbed(stages: Sequence[Stage]) -> tuple[Finding, ...]:
    """A warning where the build whose taps are outputs computes something else than the clean one."""
    found = [stage for stage in stages if stage.name == INSTRUMENTATION and stage.verdict == "divergence"]
    return tuple(
        Finding(
            "warning",
            f"{stage.later} departs from {stage.earlier} first at {stage.tap}, step {stage.step}: with taps "
            "as outputs the compiler builds something else, whose inner values may not be the clean build's",
        )
        for stage in found
    )


def _made_otherwise(dump: Played, own: Played) -> tuple[Finding, ...]:
    """A warning where a dump's compiled models are not those that the candidate ran."""
    held, ours = _artefacts(dump.run), _artefacts(own.run)
    others = [
        f"{segment} is {held[segment][:12]}, not {ours.get(segment, 'there')[:12]}"
        for segment in held
        if held[segment] != ours.get(segment)
    ]
    if not ours or not others:
        return ()
    text = f"{dump.label} was made from other artefacts than {own.label}: {'; '.join(others)}"
    return (Finding("warning", f"{text}; what differs may be the models and not the hardware"),)


def _artefacts(run: Run | None) -> Mapping[str, str]:
    """Digests of the compiled models by segment, as far as a run says them."""
    said = {} if run is None else run.provenance.get("details", {}).get("artefacts", {})
    return {str(name): digest for name, digest in said.items() if isinstance(digest, str)}


def _played(stage: Planned, comparison: Comparison, runs: Runs, rules: Callable[[Run], Rules]) -> Played:
    failure = comparison.failure or comparison.refused
    if failure:
        return Played(comparison.label, stage.makes, None, failure=failure)
    run, isolated = runs(comparison)
    moved = stage.makes not in RULED
    return Played(
        comparison.label,
        stage.makes,
        run,
        isolated,
        rules(run),
        as_moved=moved,
        stand_in=bool(_stand_ins(run)),
    )


def _stand_ins(run: Run | None) -> tuple[str, ...]:
    """What a stage executed in the place of what it should have, in sentences."""
    return () if run is None else tuple(run.provenance.get("details", {}).get("stand_ins", ()))
