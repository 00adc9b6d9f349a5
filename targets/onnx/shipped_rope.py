"""The rotary table beside segments of others: their device reads it, so it is run and judged too."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from parity.harness.errors import UserError

NAME = "rope.npz"


class ShippedRope:
    """Rows of `rope` float `[2, 1, N, D]`, cos and sin of positions 0 to N - 1."""

    def __init__(self, path: Path, head_dim: int) -> None:
        """UserError for what is no such table."""
        self._path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                table = file["rope"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"rope={str(path)!r}: holds no plain array `rope` ({error})") from error
        if (
            table.ndim != 4
            or table.shape[:2] != (2, 1)
            or table.shape[3] != head_dim
            or table.dtype.kind != "f"
        ):
            raise UserError(
                f"rope={str(path)!r}: is {table.dtype}{list(table.shape)}, "
                f"should be float32[2, 1, N, {head_dim}]"
            )
        self._table = table.astype(np.float32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows `[2, B, T, D]` for positions `[B, T]`; -1 reads row 0."""
        rows = self._table.shape[2]
        if positions.max(initial=-1) >= rows:
            raise UserError(
                f"rope={str(self._path)!r}: has rows for positions 0..{rows - 1}, but position "
                f"{int(positions.max())} is needed; export a longer table"
            )
        return np.asarray(self._table[:, 0][:, np.maximum(positions, 0)])
