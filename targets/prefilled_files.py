"""A KV cache shipped as files: past_k, past_v and the rotary rows that follow, as .npy and .pt.

The layout is that of the first keyboard demos, so their files load here and ours load there:
`past_k`, `past_v` `[L, B, G, S, D]` float32 in layer order, `rope` `[2, 1, N, D]` whose row i belongs to the
i-th token *after* the prompt. `prefill.json` adds what those files cannot say (positions of padded rows);
without it the rows stand at 0..S-1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.harness.arrays import to_array, to_tensor
from parity.harness.errors import UserError

NAMES = ("past_k", "past_v", "rope")


@dataclass(frozen=True)
class Prefilled:
    """Keys, values `[L, B, G, S, D]`, positions `[B, S]`, rotary rows `[2, 1, N, D]` from `rope_start`."""

    past_k: np.ndarray
    past_v: np.ndarray
    rope: np.ndarray
    positions: np.ndarray
    rope_start: int

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rotary rows `[2, B, T, D]` for absolute positions `[B, T]`."""
        index = positions - self.rope_start
        if index.min() < 0 or index.max() >= self.rope.shape[2]:
            last = self.rope_start + self.rope.shape[2] - 1
            raise UserError(
                f"rope: rows for positions {self.rope_start}..{last} are shipped, but position "
                f"{int(positions.min() if index.min() < 0 else positions.max())} is needed; prefill again"
            )
        return np.asarray(self.rope[:, 0][:, index])


def write(folder: Path, filled: Prefilled) -> list[Path]:
    """Write all files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in NAMES:
        array = np.ascontiguousarray(getattr(filled, name))
        np.save(folder / f"{name}.npy", array)
        torch.save(to_tensor(array), folder / f"{name}.pt")
        written += [folder / f"{name}.npy", folder / f"{name}.pt"]
    note = folder / "prefill.json"
    note.write_text(json.dumps({"positions": filled.positions.tolist(), "rope_start": filled.rope_start}))
    return [*written, note]


def read(folder: Path) -> Prefilled:
    """Read a folder that this or the original prefill wrote; UserError for what does not fit together."""
    if not folder.is_dir():
        raise UserError(f"prefilled:{folder}: no such folder; make one with `parity prefill --out {folder}`")
    arrays = {name: _read_one(folder, name) for name in NAMES}
    past_k, past_v, rope = (arrays[name] for name in NAMES)
    if past_k.ndim != 5 or past_k.shape != past_v.shape:
        raise UserError(
            f"prefilled:{folder}: past_k has shape {past_k.shape} and past_v {past_v.shape}, but should be "
            "[layers, batch, heads, tokens, channels]"
        )
    if rope.ndim != 4 or rope.shape[0] != 2 or rope.shape[-1] != past_k.shape[-1]:
        raise UserError(
            f"prefilled:{folder}: rope has shape {rope.shape}, but should be [2, 1, N, {past_k.shape[-1]}]"
        )
    note = _read_note(folder / "prefill.json", past_k.shape[1], past_k.shape[3])
    return Prefilled(past_k, past_v, rope, **note)


def _read_one(folder: Path, name: str) -> np.ndarray:
    """The .npy, else the .pt; where both are there they must hold the same bits."""
    found: list[np.ndarray] = []
    npy, pt = folder / f"{name}.npy", folder / f"{name}.pt"
    try:
        if npy.exists():
            found.append(np.load(npy, allow_pickle=False))
        if pt.exists():
            found.append(to_array(torch.load(pt, weights_only=True, map_location="cpu")))
    except Exception as error:
        raise UserError(f"prefilled:{folder}: {name} cannot be read ({error}); prefill again") from error
    if not found:
        raise UserError(f"prefilled:{folder}: has neither {name}.npy nor {name}.pt")
    if len(found) == 2 and not np.array_equal(found[0], found[1], equal_nan=True):
        raise UserError(f"prefilled:{folder}: {name}.npy and {name}.pt differ; delete the stale one")
    return found[0]


def _read_note(path: Path, batch: int, rows: int) -> Mapping[str, Any]:
    if not path.exists():
        return {"positions": np.tile(np.arange(rows, dtype=np.int64), (batch, 1)), "rope_start": rows}
    try:
        note = json.loads(path.read_text())
        positions, start = np.array(note["positions"], np.int64), int(note["rope_start"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a prefill note ({error}); prefill again") from error
    if positions.shape != (batch, rows):
        raise UserError(
            f"{path}: positions have shape {positions.shape}, but the cache holds {(batch, rows)}"
        )
    return {"positions": positions, "rope_start": start}
