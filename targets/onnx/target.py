"""`onnx`: each segment exported and run by ONNX Runtime, the cache outside; also whole, or files of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import nn

from parity.harness.case import Case, Wiring, plan
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress
from parity.harness.segmented import Executor, Recorded, SegmentedSession
from parity.harness.target import Facts, Options, Session, Unobserved
from parity.harness.values import Values

from ..caches import WindowCache
from ..torch_segments import RopeTable, TorchExecutor
from .build import Recipe, build
from .hosted import HostedSession
from .runtime import OnnxExecutor, Runtime

WORDS = ("masked", "whole", "opt=LEVEL", "PATH")


@dataclass(frozen=True)
class Asked:
    """What the target's argument says: how the model is cut, and how far ONNX Runtime may rewrite."""

    masked: bool = False
    whole: bool = False
    level: str = "all"
    path: Path | None = None


def parse_arg(arg: str) -> Asked:
    """`masked`, `whole` or a path, then `opt=LEVEL`, joined by +. UserError for a word that is none of these."""
    body, _, level = arg.partition("opt=")
    body = body.removesuffix("+")
    asked = Asked(level=level or "all")
    if body in ("", "masked", "whole"):
        return replace(asked, **({body: True} if body else {}))
    if Path(body).exists() or "/" in body or body.endswith(".onnx"):
        return replace(asked, path=Path(body))
    raise UserError(f"onnx:{arg}: {body!r} is neither a word nor a path that exists. {did_you_mean(body, WORDS)}")


class OnnxTarget:
    """`onnx[:masked|whole|PATH][+opt=LEVEL][@DEVICE]`."""

    name = "onnx"
    summary = "segments exported and run by ONNX Runtime; onnx:whole, onnx:masked, onnx:FILE_OR_FOLDER"

    def missing(self) -> str | None:
        """Always there: ONNX Runtime is part of the base install."""
        return None

    def prepare(
        self,
        case: Case,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> Session:
        """Export what is not in the cache yet, load it, and say how it is going to be run."""
        asked = parse_arg(arg)
        if options.dtype not in (None, "fp32", "float32"):
            raise UserError(f"dtype={options.dtype!r}: the onnx target computes in fp32 only; leave it out")
        runtime = Runtime(options.threads, asked.level, options.device or "cpu")
        if asked.path is not None:
            from .files import file_session

            return file_session(case, asked.path, runtime, reference, options)
        cache = workdir / "cache" / "onnx"
        if asked.whole:
            from .whole import whole_session

            return whole_session(case, runtime, options, cache, progress)
        return _segments(case, asked, runtime, options, reference, cache, progress)


@dataclass(frozen=True)
class Layout:
    """Rows W that a segment is handed, whether a mask hides some, whether the host prefills them."""

    rows: int
    masked: bool
    hosted: bool


def choose_layout(case: Case, *, masked: bool, reference: bool) -> Layout:
    """Without a mask every one of the W rows must be real: then a prompt that fills them comes from the host."""
    scenario = case.scenario
    rows = scenario.policy.window or scenario.prompt_length + scenario.steps
    padded = any(len(row) != scenario.prompt_length for row in scenario.ids)
    decodes = any(step.kind == "decode" for step in plan(scenario))
    hosted = reference and decodes and not (masked or padded) and scenario.prompt_length >= rows
    return Layout(rows, masked=not hosted, hosted=hosted)


def _segments(
    case: Case,
    asked: Asked,
    runtime: Runtime,
    options: Options,
    reference: Values | None,
    cache: Path,
    progress: Progress,
) -> Session:
    layout = choose_layout(case, masked=asked.masked, reference=reference is not None)
    wiring = case.model.masked_wiring if layout.masked else case.model.wiring
    modules = case.model.split(case.state, masked=layout.masked)
    chosen = choose_segments(options.segments, wiring)
    recipe = Recipe(
        {"B": case.scenario.batch, "T": 1, "W": layout.rows},
        case.model.vocab_size,
        options.exporter,
        options.opset,
    )
    builds = {}
    with progress.stage("exporting", len(chosen)) as bar:
        for segment in (s for s in wiring.segments if s.name in chosen):
            builds[segment.name] = build(modules[segment.name], segment, recipe, cache)
            bar.advance()
    own = OnnxExecutor(wiring.segments, builds, runtime, case.model.taps)
    executor = own if len(builds) == len(modules) else Mixed(own, chosen, _eager(modules, chosen, wiring))
    facts = Facts(
        dtype="float32",
        layout="window" if case.scenario.policy.window else "static",
        substitutions=_left_out(modules, chosen),
        details={
            **runtime.facts(),
            "exporter": options.exporter,
            "opset": options.opset or "exporter's default",
            "masked": layout.masked,
            "rows": layout.rows,
            "exporter_notes": sorted({note for made in builds.values() for note in made.notes}),
            "observer_effect": own.observer.effect,
        },
    )
    return assemble(case, wiring, executor, layout, facts, reference)


def assemble(
    case: Case,
    wiring: Wiring,
    executor: Executor,
    layout: Layout,
    facts: Facts,
    reference: Values | None,
    *,
    static: bool = True,
) -> Session:
    """The session over segments, its prompt prefilled on the host where the layout says so."""
    cache = WindowCache(case.scenario.batch, layout.rows, static=static)
    inner = SegmentedSession(
        wiring=wiring,
        executor=executor,
        cache=cache,
        rope=RopeTable(case, torch.float32),
        facts=facts,
        window=case.scenario.policy.window,
    )
    if not layout.hosted:
        return inner
    assert reference is not None
    told = f"prompt prefilled on the host: the first {layout.rows} cache rows are the reference's"
    source = reference.run.records(wiring.caches[0].source)
    if source and source[0].dtype != "float32":
        told += f", cast from {source[0].dtype} to float32"
    prefills = tuple(step.index for step in plan(case.scenario) if step.kind == "prefill")
    facts = replace(
        facts,
        substitutions=(*facts.substitutions, told),
        unobserved=(*facts.unobserved, Unobserved("*", "prefilled on the host", prefills)),
    )
    return HostedSession(inner, cache, reference, layout.rows, facts)


def choose_segments(glob: str | None, wiring: Wiring) -> set[str]:
    """Names that a glob matches, all without one; UserError if it matches none."""
    names = [segment.name for segment in wiring.segments]
    chosen = {name for name in names if glob is None or fnmatchcase(name, glob)}
    if not chosen:
        raise UserError(f"segments={glob!r}: matches no segment. {did_you_mean(str(glob), names)}")
    return chosen


def _left_out(modules: Mapping[str, nn.Module], chosen: set[str]) -> tuple[str, ...]:
    rest = [name for name in modules if name not in chosen]
    return (f"run by torch instead of ONNX Runtime: {', '.join(rest)}",) if rest else ()


def _eager(modules: Mapping[str, nn.Module], chosen: set[str], wiring: Wiring) -> TorchExecutor:
    return TorchExecutor({n: m for n, m in modules.items() if n not in chosen}, wiring, torch.float32)


@dataclass
class Mixed:
    """Some segments by ONNX Runtime, the others by torch."""

    onnx: OnnxExecutor
    chosen: set[str]
    torch: TorchExecutor

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Hand the segment to whom it belongs."""
        return (self.onnx if segment in self.chosen else self.torch).call(segment, inputs)

    def close(self) -> None:
        """Free both."""
        self.onnx.close()
        self.torch.close()
