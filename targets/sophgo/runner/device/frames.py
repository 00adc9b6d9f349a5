"""Models driven through two pipes, as the C libraries write to stdout whatever they please.

A frame is a length (u32, little-endian) and JSON of that length. After a `call` request come the inputs' raw
bytes, after its answer the outputs' and the inner tensors', in the model's own order.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, BinaryIO

from .chip import Chip
from .native import end_with, unbuffer_stdout
from .tensors import Failure, Slot


def answer_frames(chip: Chip, source: int, sink: int) -> None:
    """Answer requests until the other side closes its end."""
    unbuffer_stdout()
    end_with(source)
    with os.fdopen(source, "rb") as requests, os.fdopen(sink, "wb") as answers:
        while True:
            request = _read(requests)
            if request is None:
                return
            try:
                answer, tensors = _answer(chip, request, requests)
            except Failure as error:
                answer, tensors = {"error": str(error)}, []
            text = json.dumps(answer).encode()
            answers.write(struct.pack("<I", len(text)) + text)
            for slot in tensors:
                answers.write(slot.memory)
            answers.flush()


def _answer(chip: Chip, request: dict[str, Any], requests: BinaryIO) -> tuple[dict[str, Any], list[Slot]]:
    name = request["name"]
    if request["op"] == "load":
        model = chip.load(name, request["path"], request["net"], request["all_tensors"])
        sides = ("inputs", "outputs", "inner")
        return {side: [slot.facts() for slot in getattr(model, side)] for side in sides}, []
    model = chip.models[name]
    for slot in model.inputs:
        _fill(requests, slot.memory)
    model.forward()
    return {}, model.outputs + model.inner


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    size = requests.read(4)
    if len(size) < 4:
        return None
    request: dict[str, Any] = json.loads(requests.read(struct.unpack("<I", size)[0]))
    return request


def _fill(requests: BinaryIO, memory: memoryview) -> None:
    """Straight from the pipe into the tensor, without a copy."""
    at = 0
    while at < len(memory):
        count = requests.readinto(memory[at:])  # type: ignore[attr-defined]
        if not count:
            raise Failure("the request broke off")
        at += count
