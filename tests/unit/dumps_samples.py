"""One small dump of every kind that is not of Ascend: for fuzzing, importing and playing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from parity.targets.dumps import bmrt, cvi, npy_folder, npz, parity_dump, raw, safetensors, soc, traced
from parity.targets.dumps.core import Contents, ReadOptions
from parity.targets.dumps.detect import reader
from parity.targets.dumps.formats import Format
from parity.targets.dumps.signature import Port

Q = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) / 8
BITS = np.array([[1.0, -2.5, 3.0]], ml_dtypes.bfloat16)
CODES = np.array([-3, 0, 5], np.int8)


def make_parity(folder: Path) -> Path:
    records = [
        {"array": Q, "tap": "layer0.q", "axes": "b h t d", "positions": [[0, 1, 2]], "segment": "seg_head"},
        {"array": BITS, "tap": None, "tensor": "inner", "segment": "seg_head"},
        {"array": CODES, "tap": "layer0.k", "scale": 0.25, "zero_point": -1, "segment": "seg_head"},
    ]
    steps = [{"index": n, "tokens": [[7 + n]], "positions": [[n]], "records": records} for n in range(2)]
    parity_dump.write(folder / "dump", steps, scenario={"tokens": [[7]]})
    return folder / "dump"


def make_raw(folder: Path) -> Path:
    tensors = [
        ({"name": "layer0.q", "axes": "b h t d", "positions": [[0, 1, 2]]}, Q),
        ({"name": "bits", "step": 1}, BITS),
        ({"name": "codes", "file": "other.bin", "scale": 0.25, "zero_point": -1}, CODES),
    ]
    raw.write(folder / "dump", tensors, chip="board", tokens=[[7]], fed={"0": [[7]]})
    return folder / "dump"


def make_cvi(folder: Path) -> Path:
    path = folder / "out.npz"
    cvi.write(path, {"q_Concat": Q, "/a/b_bf16": BITS, "codes": CODES}, {"codes": 0.25})
    return path


def make_soc(folder: Path) -> Path:
    path = folder / "failed_bmodel_outputs.npz"
    soc.write(path, {f"q_asm_3_{n}_7_{side}": Q + n for n in range(2) for side in ("actual", "desired")})
    return path


def make_npz(folder: Path) -> Path:
    path = folder / "any.npz"
    npz.write(
        path, {("layer0.q", 0, 0): Q, ("layer0.q", 1, 0): Q, ("bits", 0, 1): BITS, ("codes", 0, 0): CODES}
    )
    return path


def make_bmrt(folder: Path) -> Path:
    outputs = [Port("q", Q.shape, Format("float32")), Port("bits", BITS.shape, Format("bfloat16"))]
    inputs = [Port("codes", CODES.shape, Format("int8", 4.0))]
    bmrt.write(folder / "output_ref_data.dat.bmrt", [Q, BITS])
    bmrt.write(folder / "input_ref_data.dat.bmrt", [CODES])
    bmrt.write_info(folder / "info.txt", "seg_0", inputs, outputs)
    return folder


def make_npy(folder: Path) -> Path:
    long = "layer0." + "x" * 260
    npy_folder.write(folder / "npy", {"q.0.1700000000000000": Q, "q.0.1700000000000009": Q + 1, long: CODES})
    return folder / "npy"


def make_traced(folder: Path) -> Path:
    path = folder / "traced_tensors.pt"
    traced.write(path, {".layer0.q": {"device": Q}, ".bits": {"device": BITS}})
    return path


def make_safetensors(folder: Path) -> Path:
    path = folder / "any.safetensors"
    safetensors.write(path, {"layer0.q": Q, "bits": BITS, "codes": CODES})
    return path


SAMPLES: Mapping[str, Callable[[Path], Path]] = {
    "parity": make_parity,
    "raw": make_raw,
    "cvi-npz": make_cvi,
    "soc-npz": make_soc,
    "npz": make_npz,
    "bmrt": make_bmrt,
    "npy": make_npy,
    "traced": make_traced,
    "safetensors": make_safetensors,
}


def read(kind: str, path: Path, **settings: str) -> Contents:
    """Open a dump as a kind."""
    return reader(kind).read(path, ReadOptions(settings=settings))


def values(contents: Contents) -> dict[tuple[str, int, int], np.ndarray]:
    """Everything of a dump, loaded."""
    return {(entry.name, entry.step, entry.call): entry.load() for entry in contents.entries}
