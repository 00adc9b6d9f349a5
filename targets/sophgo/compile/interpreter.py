"""The toolchain's interpreter of a Top or TPU graph: every tensor of it, without a chip."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np

from parity.harness.errors import CandidateError

from . import process
from .mlir import read_graph

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: Seconds that a child which went silent has to end by itself.
GRACE = 10.0


class Interpreter:
    """One child process per graph. `top` graphs compute in float32, `tpu` graphs as the chip should.

    Use as a context manager, or `close()` it. What the child prints goes to `interpreter.log` in `workdir`.
    `inputs` are the graph's own, with their shapes.
    """

    def __init__(self, toolchain: Toolchain, mlir: Path, workdir: Path) -> None:
        """Load `mlir`, whose weights lie beside it; CandidateError if it cannot be loaded."""
        self._mlir = mlir
        self._log = workdir / "interpreter.log"
        workdir.mkdir(parents=True, exist_ok=True)
        graph = read_graph(mlir)
        self.inputs = {op.name: op.formats[0].shape for op in graph.ops if op.kind == "top.Input"}
        reading, writing = os.pipe()
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                process.worker(toolchain, "interpret", mlir.name, str(writing)),
                env=process.worker_environment(toolchain, workdir),
                cwd=mlir.parent,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        self._answers = os.fdopen(reading, "rb")
        self._receive()

    def call(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """MLIR tensor name -> float32, for all tensors, given the graph's inputs by name.

        CandidateError for an input that is missing, unknown or of another shape: the child would go on with
        what it held before.
        """
        self._check(inputs)
        assert self._child.stdin is not None
        try:
            _send(self._child.stdin, inputs)
        except BrokenPipeError:
            raise self._gone() from None
        return self._receive()

    def close(self) -> None:
        """End the child."""
        process.kill(self._child)
        self._answers.close()
        if self._child.stdin is not None:
            # What was written for a child that has gone is still in the buffer.
            with suppress(BrokenPipeError):
                self._child.stdin.close()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        if inputs.keys() != self.inputs.keys():
            fed, own = (", ".join(names) or "nothing" for names in (inputs, self.inputs))
            raise CandidateError(f"{self._mlir.name}: is fed {fed}, should be {own}")
        for name, shape in self.inputs.items():
            if not fits(inputs[name], shape):
                raise CandidateError(
                    f"{self._mlir.name}: input {name} {inputs[name].shape}, should be {shape}"
                )

    def _receive(self) -> dict[str, np.ndarray]:
        head = self._answers.read(8)
        body = self._answers.read(int.from_bytes(head, "little")) if len(head) == 8 else b""
        if len(head) < 8 or len(body) < int.from_bytes(head, "little"):
            raise self._gone()
        with np.load(io.BytesIO(body), allow_pickle=False) as data:
            names = json.loads(data["names"].tobytes())
            return {name: data[str(at)] for at, name in enumerate(names)}

    def _gone(self) -> CandidateError:
        # What it ended by is known a moment after its last word; killing it then would hide that.
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(GRACE)
        self.close()
        return CandidateError(
            f"{self._mlir.name}: the interpreter ended ({process.ending(self._child.returncode)}); "
            f"what it said is in {self._log}"
        )


def fits(array: np.ndarray, shape: tuple[int, ...] | None) -> bool:
    """Whether an array has an input's shape; to the compiler a lone number is a list of one."""
    return shape is None or (array.shape or (1,)) == shape


def _send(stream: IO[bytes], tensors: Mapping[str, np.ndarray]) -> None:
    body = io.BytesIO()
    names = np.frombuffer(json.dumps(list(tensors)).encode(), np.uint8)
    np.savez(body, names=names, **{str(at): array for at, array in enumerate(tensors.values())})  # type: ignore[arg-type]
    stream.write(len(body.getbuffer()).to_bytes(8, "little"))
    stream.write(body.getbuffer())
    stream.flush()
