"""Weights as files and factories hold them: state_dicts, safetensors, npz, ONNX graphs, modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import from_any
from parity.harness.errors import UserError, did_you_mean
from parity.harness.imports import build_module
from parity.harness.weights import Weight

from .dequantized import dequantized

TORCH = (".pt", ".pth", ".bin", ".ckpt")
KINDS = (*TORCH, ".safetensors", ".npz", ".onnx")
#: What compilers write: weights in it are packed for the chip.
COMPILED = (".cvimodel", ".bmodel", ".om")


def weights_of(spec: str, *, seed: int = 0, places: Collection[str] = ()) -> list[Weight]:
    """`module:PKG:FACTORY`, a file of one of `KINDS`, or a folder of ONNX segments. UserError for others.

    A file that is named like one of `places` holds the weights of that segment.
    """
    if spec.startswith("module:"):
        return of_state(build_module(spec.removeprefix("module:"), seed=seed).state_dict())
    path = Path(spec.removeprefix("onnx:")).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"cand={spec!r}: there is no such file; name a file, a folder of ONNX or a module:")
    if path.suffix == ".onnx":
        from .onnx.initializers import read_weights

        return read_weights(path, path.stem if path.stem in places else "")
    return of_state(read_arrays(path))


def _folder(path: Path) -> list[Weight]:
    """Every graph of a folder, each under the name of its file."""
    from .onnx.initializers import read_weights

    files = sorted(path.glob("*.onnx"))
    if not files:
        there = [item.name for item in path.iterdir() if item.suffix in KINDS]
        raise UserError(f"cand={str(path)!r}: holds no .onnx; name a file. {did_you_mean('', there)}")
    return [weight for file in files for weight in read_weights(file, file.stem)]


def read_arrays(path: Path) -> dict[str, Any]:
    """Named tensors of a file that is read as data only."""
    if path.suffix in COMPILED:
        raise UserError(
            f"cand={str(path)!r}: compiled weights are packed for the chip and cannot be read; name the ONNX "
            "graphs that it was made of"
        )
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        except (OSError, ValueError) as error:
            raise UserError(f"cand={str(path)!r}: is no npz of plain arrays ({error})") from error
    if path.suffix in TORCH:
        return _torch(path)
    raise UserError(f"cand={str(path)!r}: holds weights of no known kind; known: {', '.join(KINDS)}")


def _torch(path: Path) -> dict[str, Any]:
    import torch

    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(
            f"cand={str(path)!r}: is no torch file of plain tensors ({error})".split("\n")[0]
        ) from error
    for key in ("state_dict", "model", "state"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping):
        raise UserError(f"cand={str(path)!r}: holds no table of tensors; save the model's state_dict()")
    return {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}


def _safetensors(path: Path) -> dict[str, Any]:
    from .dumps.core import ReadOptions
    from .dumps.safetensors import SafetensorsReader

    return {entry.name: entry.load() for entry in SafetensorsReader().read(path, ReadOptions()).entries}


def of_state(state: Mapping[str, Any]) -> list[Weight]:
    """Floating tensors of a table, in its order, and codes with a scale; other integers are no weights."""
    arrays = {str(k): from_any(v.detach() if hasattr(v, "detach") else v) for k, v in state.items()}
    made, scales = [], set[str]()
    for name, (array, dtype) in arrays.items():
        if "int" not in dtype and dtype != "bool":
            made.append(Weight(name, np.asarray(array, np.float32), dtype))
        elif (found := _scale_of(name, arrays)) is not None:
            scale, zero = found
            scales |= {scale, zero or scale}
            numbers = np.asarray(arrays[scale][0], np.float32).reshape(-1)
            offset = None if zero is None else np.asarray(arrays[zero][0], np.float32).reshape(-1)
            made.append(dequantized(name, array, numbers, offset, 0, 0))
    return [weight for weight in made if weight.name not in scales]


def _scale_of(name: str, arrays: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Names of the scale and the zero point that stand beside codes."""
    stem = name.removesuffix("weight")
    for scale in (f"{name}_scale", f"{name}.scale", f"{stem}scale", f"{stem}scales"):
        if scale in arrays:
            zeros = (f"{name}_zero_point", f"{name}.zero_point", f"{stem}zero_point", f"{stem}zeros")
            return scale, next((zero for zero in zeros if zero in arrays), None)
    return None
