"""The toolchain's interpreter of a Top or TPU graph, as a process that answers call after call.

What the C++ side prints goes to standard output; answers go to a descriptor of their own. A message is its
length (8 bytes, little endian) and an .npz: `names`, the JSON list of the tensors' names as bytes, and the
arrays under "0", "1" ... A failed call is answered by an .npz that holds `error` alone.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np


def interpret(arguments: Sequence[str]) -> None:
    """Arguments: MLIR file (its weights beside it in the current folder), descriptor of the answers."""
    graph, answers = arguments
    import pymlir  # type: ignore[import-not-found]

    pymlir.set_mem_mode("value_mem")
    module = pymlir.module()
    module.load(graph)
    with os.fdopen(int(answers), "wb") as out:
        _send(out, {})
        while (inputs := _receive(sys.stdin.buffer)) is not None:
            _send(out, _call(module, inputs))


def _call(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Every tensor of the graph, real values as float32."""
    for name, array in inputs.items():
        module.set_tensor(name, array.astype(np.float32), list(array.shape))
    module.invoke(True)
    return {name: np.asarray(array, np.float32) for name, array in module.get_all_tensor().items()}


def _receive(stream: BinaryIO) -> dict[str, Any] | None:
    """None when the other side has gone."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(head, "little"))), allow_pickle=False) as data:
        names = json.loads(data["names"].tobytes())
        return {name: data[str(at)] for at, name in enumerate(names)}


def _send(stream: BinaryIO, tensors: dict[str, Any]) -> None:
    body = io.BytesIO()
    names = np.frombuffer(json.dumps(list(tensors)).encode(), np.uint8)
    np.savez(body, names=names, **{str(at): array for at, array in enumerate(tensors.values())})
    stream.write(len(body.getbuffer()).to_bytes(8, "little"))
    stream.write(body.getbuffer())
    stream.flush()
