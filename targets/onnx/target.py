"""`onnx`: segments exported and run by ONNX Runtime, the cache outside; also whole, or files of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from parity.harness.case import Case, Wiring
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress
from parity.harness.segmented import FAR, Recorded, Right
from parity.harness.target import Facts, Options, Session
from parity.harness.values import Values

from ..torch_segments import TorchExecutor
from .build import Recipe, build, choose_segments
from .executor import OnnxExecutor
from .export import check_opset
from .runtime import Runtime
from .session import assemble, plan_cache

WORDS = ("masked", "whole", "opt=LEVEL", "PATH")


@dataclass(frozen=True)
class Asked:
    """What the target's argument says: how the model is cut, and how far ONNX Runtime may rewrite."""

    masked: bool = False
    whole: bool = False
    level: str = "all"
    path: Path | None = None


def parse_arg(arg: str) -> Asked:
    """`masked`, `whole` or a path, and `opt=LEVEL`, joined by +; UserError for anything else."""
    body, _, level = arg.partition("opt=")
    body = body.removesuffix("+")
    asked = Asked(level=level or "all")
    if body in ("", "masked", "whole"):
        return replace(asked, masked=body == "masked", whole=body == "whole")
    if Path(body).exists() or "/" in body or body.endswith(".onnx"):
        return replace(asked, path=Path(body))
    raise UserError(
        f"onnx:{arg}: {body!r} is neither a word nor a path that exists. {did_you_mean(body, WORDS)}"
    )


class OnnxTarget:
    """`onnx[:masked|whole|PATH][+opt=LEVEL][@DEVICE]`."""

    name = "onnx"
    summary = "segments exported and run by ONNX Runtime; onnx:whole, onnx:masked, onnx:FILE_OR_FOLDER"

    def missing(self) -> str | None:
        """Always there: ONNX Runtime is part of the base install."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Unknown words, other number formats than fp32, devices, rewriting levels and opsets."""
        asked = parse_arg(arg)
        check_opset(options.exporter, options.opset)
        if options.dtype not in (None, "fp32", "float32"):
            raise UserError(f"dtype={options.dtype!r}: the onnx target computes in fp32 only; leave it out")
        Runtime(options.threads, asked.level, options.device or "cpu")

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
        runtime = Runtime(options.threads, asked.level, options.device or "cpu")
        if asked.path is not None:
            from .files import file_session

            return file_session(case, asked.path, runtime, reference, options)
        cache = workdir / "cache" / "onnx"
        if asked.whole:
            from .whole import whole_session

            return whole_session(case, runtime, options, cache, progress)
        return _segments(case, asked, runtime, options, reference, cache, progress)


def _segments(
    case: Case,
    asked: Asked,
    runtime: Runtime,
    options: Options,
    reference: Values | None,
    cache: Path,
    progress: Progress,
) -> Session:
    rows = plan_cache(case, masked=asked.masked, reference=reference is not None)
    wiring = case.model.masked_wiring if rows.masked else case.model.wiring
    modules = case.model.split(case.state, masked=rows.masked)
    chosen = choose_segments(options.segments, wiring)
    recipe = Recipe(
        {"B": case.scenario.batch, "T": 1, "W": rows.rows},
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
            "opset": next(made.opset for made in builds.values()),
            "masked": rows.masked,
            "rows": rows.rows,
            "exporter_notes": sorted({note for made in builds.values() for note in made.notes}),
            "observer_effect": own.observer.effect,
        },
    )
    return assemble(case, wiring, executor, rows, facts, reference, hidden=FAR)


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

    def parcel(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """From whom it belongs to."""
        return (self.onnx if segment in self.chosen else self.torch).parcel(segment, inputs)

    @property
    def unpinned(self) -> Mapping[str, str]:
        """Of both."""
        return {**self.torch.unpinned, **self.onnx.unpinned}

    def pinned(self, segment: str, inputs: Mapping[str, np.ndarray], right: Right) -> Sequence[Recorded]:
        """The same on the reference's values."""
        return (self.onnx if segment in self.chosen else self.torch).pinned(segment, inputs, right)

    def close(self) -> None:
        """Free both."""
        self.onnx.close()
        self.torch.close()
