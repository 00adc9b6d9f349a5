"""ONNX Runtime under our names: graphs called by name, never by position, and segments as an executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from parity.harness.errors import CandidateError, UserError, did_you_mean

from .pins import Pin

LEVELS = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FORMATS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
ERRORS_ONLY = 3


@dataclass(frozen=True)
class Runtime:
    """How sessions are made. `level`: how far ONNX Runtime may rewrite a graph; `all` is its default."""

    threads: int | None = None
    level: str = "all"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(f"opt={self.level!r}: unknown. {did_you_mean(self.level, LEVELS)}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads={self.threads}: must be at least 1")
        provider = PROVIDERS.get(self.device)
        if provider is None:
            raise UserError(f"device={self.device!r}: unknown here. {did_you_mean(self.device, PROVIDERS)}")
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"device={self.device!r}: this ONNX Runtime has no {provider}; use cpu")

    def session(self, graph: Path | bytes, where: str) -> onnxruntime.InferenceSession:
        """Load a graph; CandidateError in ONNX Runtime's words where it refuses."""
        name, source = (graph.name, str(graph)) if isinstance(graph, Path) else ("a graph", graph)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[self.level]
        options.log_severity_level = ERRORS_ONLY
        # Idle threads of one segment's session would otherwise spin on the cores that the next one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        providers = list(dict.fromkeys((PROVIDERS[self.device], PROVIDERS["cpu"])))
        try:
            return onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            raise CandidateError(f"{where}: ONNX Runtime cannot load {name}: {_line(error)}") from error

    def facts(self) -> dict[str, Any]:
        """What a report says of the sessions."""
        return {
            "onnxruntime": onnxruntime.__version__,
            "providers": [PROVIDERS[self.device]],
            "optimization": self.level,
            "threads": self.threads or "default",
        }


class Graph:
    """One loaded graph."""

    def __init__(self, runtime: Runtime, path: Path | bytes, where: str) -> None:
        self._where = where
        self._session = runtime.session(path, where)
        self.inputs = {pin.name: pin for pin in map(_pin, self._session.get_inputs())}
        self.outputs = {pin.name: pin for pin in map(_pin, self._session.get_outputs())}

    def run(self, feed: Mapping[str, np.ndarray], wanted: Sequence[str]) -> list[np.ndarray]:
        """Feed by name, get by name. CandidateError names the port that does not fit."""
        self._check(feed)
        arrays = {name: np.ascontiguousarray(feed[name]) for name in self.inputs}
        try:
            return list(self._session.run(list(wanted), arrays))
        except Exception as error:  # its exceptions share no base class
            raise CandidateError(f"{self._where}: ONNX Runtime failed: {_line(error)}") from error

    def _check(self, feed: Mapping[str, np.ndarray]) -> None:
        for name in self.inputs.keys() - feed.keys():
            raise CandidateError(f"{self._where}: input {name} is not fed; there is {sorted(feed)}")
        for name in feed.keys() - self.inputs.keys():
            raise CandidateError(f"{self._where}: has no input {name}. {did_you_mean(name, self.inputs)}")
        for name, pin in self.inputs.items():
            if not pin.takes(str(feed[name].dtype), feed[name].shape):
                got = Pin(name, str(feed[name].dtype), feed[name].shape)
                raise CandidateError(f"{self._where}: input {got}, should be {pin}")


@dataclass
class Observer:
    """What tapping changed: per output, the largest difference between the clean and the tapped build.

    Where that is more than rounding, also which `taps` did it, and whether it is `grave`.
    """

    effect: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, tap: str, clean: np.ndarray, tapped: np.ndarray) -> bool:
        """Hold one pair of outputs against each other; whether any bit of them differs."""
        seen = self.effect.setdefault(tap, {"max_abs": 0.0, "bitwise": True})
        if clean.tobytes() == tapped.tobytes():
            return False
        seen["bitwise"] = False
        finite = np.isfinite(clean) & np.isfinite(tapped)
        gap = np.abs(clean[finite].astype(np.float64) - tapped[finite])
        seen["max_abs"] = max(seen["max_abs"], float(gap.max(initial=0.0)))
        if not np.array_equal(np.isfinite(clean), np.isfinite(tapped)):
            seen["nonfinite"] = True
        return True


def _pin(value: Any) -> Pin:
    return Pin(value.name, FORMATS.get(value.type, value.type), tuple(value.shape))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
