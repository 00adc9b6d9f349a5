"""Torch files, written whole or not at all and read as data only."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.harness.errors import UserError


def save_whole(data: Any, path: Path) -> None:
    """Write beside `path`, then rename: a reader and a crash see the old file or the new one."""
    temporary, packed = path.with_name(f".{path.name}.{os.getpid()}"), io.BytesIO()
    torch.save(data, packed)  # into memory: torch's own writer hides what a full disk says
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(packed.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"file={str(path)!r}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_torch(path: Path) -> Any:
    """What a torch file holds, on the CPU; never runs code from it."""
    if not path.is_file():
        problem = "is a folder; name the file in it" if path.is_dir() else "there is no such file"
        raise UserError(f"weights={str(path)!r}: {problem}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch reads but would rather not
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        first = str(error).strip().splitlines()[:1]
        raise UserError(
            f"weights={str(path)!r}: is no torch checkpoint of plain tensors, or is damaged "
            f"({type(error).__name__}: {first[0] if first else 'no message'})"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint's state_dict."""
    data = read_torch(path)
    if not isinstance(data, Mapping) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise UserError(f"weights={str(path)!r}: holds no table of tensors; save the model's state_dict()")
    return {str(key): tensor for key, tensor in data.items()}
