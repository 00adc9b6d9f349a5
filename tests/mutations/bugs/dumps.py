"""What a device wrote, or how it was read: nothing can be run again, so the first departure is all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from .. import dumping
from ..plant import Apply, Plant

FAMILY = "dumps"
Steps = list[dict[str, Any]]


def _steps(change: Callable[[Steps], Steps]) -> Apply:
    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(dumping, "finished", change)

    return apply


def _records(tap: str, change: Callable[[np.ndarray], np.ndarray], *, start: int = 0) -> Apply:
    """Every record of a tap from a step on."""

    def changed(steps: Steps) -> Steps:
        for step in steps:
            for record in step["records"]:
                if record["tap"] == tap and step["index"] >= start:
                    record["array"] = np.ascontiguousarray(change(np.array(record["array"])))
        return steps

    return _steps(changed)


def _of_another_step(tap: str) -> Apply:
    """A buffer that is written out before the device has filled it holds what it held a step ago."""

    def changed(steps: Steps) -> Steps:
        found = {step["index"]: next(r for r in step["records"] if r["tap"] == tap) for step in steps}
        arrays = {index: record["array"] for index, record in found.items()}
        for index in arrays:
            if index >= 2:
                found[index]["array"] = arrays[index - 1]
        return steps

    return _steps(changed)


def _all_one_step_late(steps: Steps) -> Steps:
    """Every decode step's records are those of the step before."""
    kept = {step["index"]: [dict(record) for record in step["records"]] for step in steps}
    for step in steps:
        if step["index"] < 2:
            continue
        before = {(r["tap"], r["call"]): r for r in kept[step["index"] - 1]}
        for record in step["records"]:
            other = before.get((record["tap"], record["call"]))
            if other is not None and other["array"].shape == record["array"].shape:
                record["array"] = other["array"]
    return steps


def _positions_late(tap: str) -> Apply:
    def changed(steps: Steps) -> Steps:
        for step in steps:
            for record in step["records"]:
                if record["tap"] == tap and record["positions"] is not None:
                    held = np.array(record["positions"])
                    record["positions"] = (
                        np.where(held > 0, held - 1, held).tolist()
                        if held.size == 1
                        else np.roll(held, 1, 1).tolist()
                    )
        return steps

    return _steps(changed)


def _bits(array: np.ndarray) -> np.ndarray:
    """bf16 bits that were read as fp16."""
    return torch.from_numpy(array).bfloat16().view(torch.float16).float().numpy()


def _integers(array: np.ndarray) -> np.ndarray:
    """bf16 bits taken for numbers."""
    return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().astype(np.float32)


def _codes(array: np.ndarray) -> np.ndarray:
    """int8 codes whose scale nobody multiplied."""
    return np.round(array * (127 / np.abs(array).max())).astype(np.float32)


def _swapped_bytes(array: np.ndarray) -> np.ndarray:
    return np.nan_to_num(array.byteswap().view(np.float32), nan=0.0, posinf=1e30, neginf=-1e30)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """`[B, H, T, D]` memory read as `[B, D, T, H]`."""
    return array.transpose(0, 3, 2, 1).reshape(array.shape)


def _aligned(array: np.ndarray) -> np.ndarray:
    """Rows that the device pads to 256 bytes, read without it: from the second row on all is shifted."""
    flat = array.reshape(-1, array.shape[-1])
    wide = np.concatenate([flat, np.zeros((len(flat), 8), flat.dtype)], 1)
    return wide.reshape(-1)[: flat.size].reshape(array.shape)


def _dump(name: str, born: str, apply: Apply, says: tuple[str, ...]) -> Plant:
    return Plant(f"dump-{name}", FAMILY, born, apply, says, on=("dump",))


PLANTS = [
    _dump("of-another-step", "layer1.q@2", _of_another_step("layer1.q"), ("step|before",)),
    _dump("all-one-step-late", "embed@2", _steps(_all_one_step_late), ("step|before",)),
    _dump("bits-as-half", "layer1.norm1", _records("layer1.norm1", _bits), ("bits|bf16|fp16",)),
    _dump("bits-as-integers", "layer2.mlp", _records("layer2.mlp", _integers), ("bits|bf16|integer",)),
    _dump("scale-not-undone", "layer0.o", _records("layer0.o", _codes), ("scale|times|factor|int8|quanti",)),
    _dump("bytes-swapped", "layer3.act", _records("layer3.act", _swapped_bytes), ("byte|endian",)),
    _dump(
        "channels-last", "layer2.q", _records("layer2.q", _channels_last), ("layout|transpos|order|permut",)
    ),
    _dump("rows-padded", "layer1.attn", _records("layer1.attn", _aligned), ("shift|pad|row|stride",)),
    _dump(
        "positions-late",
        "layer1.k",
        _positions_late("layer1.k"),
        ("position|shift|roll|by 1|step|after|before",),
    ),
    _dump(
        "late-steps-empty",
        "layer2.attn@3",
        _records("layer2.attn", np.zeros_like, start=3),
        ("zero|empty|by 0",),
    ),
    _dump(
        "one-channel",
        "layer0.mid@2",
        _records("layer0.mid", lambda x: np.concatenate([x[..., :-1], x[..., -1:] + 1], -1), start=2),
        ("channel|offset|constant|d 127",),
    ),
    _dump(
        "rounded",
        "layer3.norm2",
        _records("layer3.norm2", lambda x: torch.from_numpy(x).bfloat16().float().numpy()),
        ("bf16|bfloat16",),
    ),
]
