"""Compiled models as calls: a child process per chip plays them, arrays go in and out.

The child runs the very file that boards run, with the toolchain's simulators; what the C libraries print
goes to a log.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.harness.dtypes import logical_dtype
from parity.harness.errors import CandidateError, did_you_mean

from . import arrays, chatter
from .program import write_program

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: Seconds. The largest segments that simulators were seen to run take some ten.
PATIENCE = 900.0


@dataclass(frozen=True)
class Tensor:
    """One input or output as the artefact describes it; CVI artefacts pad shapes to four dimensions.

    Outputs: real = (q - zero_point) * scale. Inputs: q = real * scale + zero_point.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    scale: float
    zero_point: int

    @property
    def nbytes(self) -> int:
        """Bytes of the raw tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * logical_dtype(self.format).itemsize


@dataclass(frozen=True)
class Output:
    """What a model gave: `raw` in its own number format, `real` float32 with the scale undone."""

    tensor: Tensor
    raw: np.ndarray
    real: np.ndarray


@dataclass(frozen=True)
class _Model:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]


class Device:
    """Any number of models on one chip, in one child process.

    `models` maps names to artefacts; `nets` says which net of a combined .bmodel a name means, where that
    differs from the name. With `all_tensors` a .cvimodel also shows every inner tensor that survives in
    memory. `rounding` is how float32 becomes bfloat16: to the nearest even, or `truncate` as the vendor's
    own runner does. A call that takes longer than `patience` seconds is given up. CandidateError for a model
    that cannot be loaded or run, with the library's own reason.
    """

    def __init__(
        self,
        chip: str,
        models: Mapping[str, Path],
        toolchain: Toolchain,
        *,
        log: Path,
        all_tensors: bool = False,
        nets: Mapping[str, str] | None = None,
        rounding: str = "nearest",
        patience: float = PATIENCE,
    ) -> None:
        self.chip, self._rounding = chip, rounding
        self._child = _Child(chip, toolchain, log, patience)
        self._models: dict[str, _Model] = {}
        try:
            for name, path in models.items():
                self._models[name] = self._load(name, path, (nets or {}).get(name, name), all_tensors)
        except BaseException:
            self.close()
            raise

    def inputs(self, model: str) -> tuple[Tensor, ...]:
        """Inputs in the artefact's order."""
        return self._model(model).inputs

    def outputs(self, model: str) -> tuple[Tensor, ...]:
        """Outputs in the artefact's order, which is that of the ONNX graph's."""
        return self._model(model).outputs

    def inner(self, model: str) -> tuple[Tensor, ...]:
        """Further tensors that `all_tensors` shows, in the runtime's order."""
        return self._model(model).inner

    def call(self, model: str, inputs: Mapping[str, np.ndarray]) -> list[Output]:
        """Run a model on arrays by input name; its outputs, then the inner tensors if any are shown."""
        known = self._model(model)
        where = f"{model} on {self.chip}"
        _check_names(where, known, inputs)
        try:
            raw = [arrays.lowered(item, inputs[item.name], self._rounding) for item in known.inputs]
        except CandidateError as error:
            raise CandidateError(f"{where}: {error}") from error
        shown = (*known.outputs, *known.inner)
        answer = self._child.ask({"op": "call", "name": model}, raw, [item.nbytes for item in shown], where)
        return [_output(item, data) for item, data in zip(shown, answer[1], strict=True)]

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _model(self, name: str) -> _Model:
        if name not in self._models:
            raise CandidateError(f"model={name!r}: is not loaded. {did_you_mean(name, self._models)}")
        return self._models[name]

    def _load(self, name: str, path: Path, net: str, all_tensors: bool) -> _Model:
        request = {"op": "load", "name": name, "path": str(path), "net": net, "all_tensors": all_tensors}
        facts, _ = self._child.ask(request, [], [], f"{name} on {self.chip} ({path.name}, while loading)")
        return _Model(*(tuple(map(_tensor, facts[side])) for side in ("inputs", "outputs", "inner")))


def _tensor(facts: Mapping[str, Any]) -> Tensor:
    return Tensor(**{**facts, "shape": tuple(facts["shape"])})


def _output(tensor: Tensor, data: bytearray) -> Output:
    raw = np.frombuffer(data, logical_dtype(tensor.format)).reshape(tensor.shape)
    return Output(tensor, raw, arrays.real(tensor, raw))


def _check_names(where: str, model: _Model, inputs: Mapping[str, np.ndarray]) -> None:
    wanted = {tensor.name for tensor in model.inputs}
    if missing := sorted(wanted - set(inputs)):
        raise CandidateError(f"{where}: input {missing[0]!r} is not given; it takes {sorted(wanted)}")
    if extra := sorted(set(inputs) - wanted):
        raise CandidateError(f"{where}: has no input {extra[0]!r}; it takes {sorted(wanted)}")


class _Child:
    """The process and its two pipes; its end is told in words."""

    def __init__(self, chip: str, toolchain: Toolchain, log: Path, patience: float) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        workdir = log.parent / f"{log.stem}-work"
        environment = toolchain.environment(chip, workdir)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        program = write_program(workdir)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program), "frames", chip, str(theirs_in), str(theirs_out)],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=workdir,
                pass_fds=(theirs_in, theirs_out), start_new_session=True,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._log, self._patience = log, patience
        self._sink, self._source = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")

    def ask(
        self, request: Mapping[str, Any], tensors: list[memoryview], sizes: list[int], where: str
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """One exchange of frames; an interruption half-way ends the child, as its pipes are then useless."""
        if self._sink.closed:
            raise CandidateError(f"{where}: its device was closed, or interrupted in a call")
        self._start = self._log.stat().st_size
        try:
            self._send(json.dumps(request).encode(), tensors)
            self._await(where)
            answer = json.loads(self._read(struct.unpack("<I", self._read(4))[0]))
            if "error" in answer:
                raise CandidateError(f"{where}: {answer['error']}{self._told()}; log: {self._log}")
            return answer, [self._read(size) for size in sizes]
        except (OSError, EOFError) as error:
            raise CandidateError(self._epitaph(where)) from error
        except KeyboardInterrupt:
            self.close()
            raise

    def _send(self, text: bytes, tensors: list[memoryview]) -> None:
        self._sink.write(struct.pack("<I", len(text)) + text)
        for tensor in tensors:
            self._sink.write(tensor)
        self._sink.flush()

    def _await(self, where: str) -> None:
        """A damaged model can keep a simulator busy for ever."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        if not poll.poll(1000 * self._patience):
            self.close()
            raise CandidateError(f"{where}: gave no answer within {self._patience:g} s; log: {self._log}")

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        at, view = 0, memoryview(data)
        while at < size:
            count = self._source.readinto(view[at:])
            if not count:
                raise EOFError
            at += count
        return data

    def _epitaph(self, where: str) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        return f"{where}: {chatter.ending(code)}{self._told()}; log: {self._log}"

    def _told(self) -> str:
        return chatter.reason(self._log, self._start)

    def close(self) -> None:
        """Kill and reap; twice is fine."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._sink, self._source):
            try:
                pipe.close()
            except OSError:
                continue
