"""What a run was asked for: the options of `parity run` and of `parity.run`, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError, did_you_mean
from parity.harness.mapping import TapMap, load_map
from parity.harness.size import parse_size
from parity.harness.sketch import Sketching, parse_capture
from parity.harness.target import Options

REPLAYS = ("forced", "free", "isolated")
EXPORTERS = ("dynamo", "script")
#: What a graph of the user's ends in.
GRAPH = ".onnx"
DEFAULT_MODEL = "klm-tiny"
DEFAULT_SCENARIO = "default"


@dataclass(frozen=True)
class Request:
    """One field per option; the command line and the Python call use the same words."""

    ref: str | None = None
    cand: tuple[str, ...] = ()
    model: str | None = None
    scenario: str | None = None
    prompt: str | None = None
    steps: int | None = None
    batch: int | None = None
    cache: str | None = None
    chunks: str | None = None
    replay: str = "forced"
    weights: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    seed: int | None = None
    segments: str | None = None
    taps: tuple[str, ...] = ()
    tol: str = "auto"
    map: str | None = None
    exporter: str = "dynamo"
    opset: int | None = None
    inputs: str | Mapping[str, Any] | None = None
    stages: bool = False
    capture: str = "full"
    share_weights: bool = False
    force: bool = False
    max_bytes: str | int | None = None
    out: Path | None = field(default=None)

    def __post_init__(self) -> None:
        _one_of("replay", self.replay, REPLAYS)
        _one_of("exporter", self.exporter, EXPORTERS)
        parse_capture(self.capture)
        if self.own_module and self.inputs is None:
            raise UserError(
                f"model={self.model!r}: your own module needs --inputs FILE.npz, one array per argument"
            )
        for name in ("threads", "batch", "opset"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")

    @property
    def options(self) -> Options:
        """What every target is told."""
        return Options(
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            seed=self.seed or 0,
            exporter=self.exporter,
            opset=self.opset,
            segments=self.segments,
            share_weights=self.share_weights,
            mapping=load_map(self.map) if self.map else TapMap(),
        )

    @property
    def trusted(self) -> str:
        """The reference: `ref`, or what executes a model of this kind best. UserError for one that cannot."""
        graph = self.model is not None and self.model.endswith(GRAPH)
        if graph and self.ref is not None and self.ref.partition(":")[0] in ("torch", "module"):
            raise UserError(f"ref={self.ref!r}: {self.model} is no torch module; use onnx, or a stored run")
        return self.ref or ("onnx" if graph else "torch")

    @property
    def sketching(self) -> Sketching | None:
        """How tensors are sketched; None: they are recorded in full."""
        return parse_capture(self.capture)

    @property
    def limit(self) -> int | None:
        """Bytes that a trace file may take."""
        return None if self.max_bytes is None else parse_size("max_bytes", self.max_bytes)

    @property
    def own_module(self) -> bool:
        """Whether `model` is the user's: a factory (PKG:FACTORY) or a graph (FILE.onnx)."""
        return self.model is not None and (":" in self.model or self.model.endswith(GRAPH))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name}={value!r}: unknown. {did_you_mean(value, known)}")
