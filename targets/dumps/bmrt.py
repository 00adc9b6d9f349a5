"""What the BM runtime writes with BMRT_SAVE_IO_TENSORS=1: tensors one behind the other, no header.

`input_ref_data.dat.bmrt` and `output_ref_data.dat.bmrt` hold a launch's inputs and outputs in the model's
order and number formats (scales of inputs multiply on the way in); each launch overwrites them. `bmrt_test
--context_dir` uses the same form without the `.bmrt`. Names, shapes and formats come from a sidecar (see
`signature`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from parity.harness.dtypes import as_storage

from .core import Contents, Dumped, ReadOptions, array_at, bad, checked_settings, inside, size_of
from .formats import Where, dumped
from .raw import check_spans
from .signature import Port, Signature, read_signature

SIDES = ("input", "output")
_PACKED = ("int4", "uint4")


class BmrtReader:
    """`bmrt`: one .dat file, or a folder with the files of a launch."""

    kind = "bmrt"
    summary = "BMRT_SAVE_IO_TENSORS files, input_ref_data.dat[.bmrt] and output_ref_data.dat[.bmrt]"
    settings: Mapping[str, str] = {
        "side": "input or output, where the file's name does not say it",
        "net": "the net of the sidecar, where it describes several",
        "stage": "the stage of that net",
    }

    def detects(self, path: Path) -> bool:
        """By name: they have no header."""
        if path.is_dir():
            return any(_data_files(path))
        return path.name.endswith((".dat.bmrt", "_ref_data.dat"))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """The tensors of each file, in the model's order."""
        checked_settings(self, options)
        files = sorted(_data_files(path)) if path.is_dir() else [path]
        if not files:
            raise bad(path, "holds no input_ref_data or output_ref_data file")
        folder = path if path.is_dir() else path.parent
        signature = read_signature(options.manifest or _sidecar(folder), options)
        parts = [(file, _ports(file, signature, options)) for file in files]
        for file, ports in parts:
            _check_size(file, ports)
        facts = {"chip": "bm1684x", **signature.facts}
        count = sum(len(ports) for _, ports in parts)
        return Contents(self.kind, facts, _entries(parts), count=count)


def _data_files(folder: Path) -> Iterator[Path]:
    for side in SIDES:
        for name in (f"{side}_ref_data.dat.bmrt", f"{side}_ref_data.dat"):
            if (folder / name).is_file():
                yield folder / name
                break


def _sidecar(folder: Path) -> Path:
    """The one file beside a dump that can describe it."""
    known = [
        file for file in (folder / "manifest.json", *sorted(folder.glob("*info*.txt"))) if file.is_file()
    ]
    if len(known) != 1:
        found = (
            f"several files could describe it ({known[0].name}, {known[1].name})" if known else "no manifest"
        )
        raise bad(
            folder,
            f"{found}: the files have no header. Write names, shapes and formats beside them (`model_tool "
            "--info x.bmodel > info.txt`, or a manifest.json), or name the sidecar with --manifest",
        )
    return inside(folder, known[0].name)


def _ports(file: Path, signature: Signature, options: ReadOptions) -> tuple[Port, ...]:
    said = options.text("side", next((side for side in SIDES if file.name.startswith(side)), ""))
    if said not in SIDES:
        raise bad(file, "does not say whether it holds inputs or outputs; give side=input or side=output")
    ports = signature.inputs if said == "input" else signature.outputs
    if said == "input":
        ports = tuple(replace(port, format=replace(port.format, inverse=True)) for port in ports)
    for port in ports:
        if port.format.dtype in _PACKED:
            raise bad(file, f"{port.name!r} is {port.format.dtype}, whose packing is not known")
    if not ports:
        raise bad(file, f"the sidecar describes no {said}s")
    return ports


def _check_size(file: Path, ports: Sequence[Port]) -> None:
    size, needed = size_of(file), sum(port.nbytes for port in ports)
    if size > needed > 0 and size % needed == 0:
        raise bad(
            file,
            f"has {size} bytes, {size // needed} times what one launch writes ({needed}): several dumps were "
            "appended; keep one launch to a file",
        )
    check_spans(file, [(start, start + port.nbytes, repr(port.name)) for start, port in _places(ports)], size)


def _places(ports: Iterable[Port]) -> Iterator[tuple[int, Port]]:
    """Each port and the byte at which it begins."""
    at = 0
    for port in ports:
        yield at, port
        at += port.nbytes


def _entries(parts: Sequence[tuple[Path, tuple[Port, ...]]]) -> Iterator[Dumped]:
    for file, ports in parts:
        role = next((side for side in SIDES if file.name.startswith(side)), "")
        for start, port in _places(ports):
            load = partial(array_at, file, start, port.shape, port.format.dtype, repr(port.name))
            where = Where(tap=port.tap, meta={"role": role} if role else {})
            yield dumped(port.name, port.shape, port.format, load, where)


def write(file: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write tensors one behind the other, as the runtime does."""
    parts = (as_storage(array)[0] for array in arrays)
    file.write_bytes(b"".join(bits.astype(bits.dtype.newbyteorder("<")).tobytes() for bits in parts))


def write_info(file: Path, net: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Write the sidecar as `model_tool --info` prints it."""
    lines = ["bmodel version: B.2.2", "chip: BM1684X", "", f"net 0: [{net}]  static", "stage 0, core num: 1"]
    for side, ports in (("input", inputs), ("output", outputs)):
        for port in ports:
            form = port.format
            said = f"scale: {form.scale:g}, zero_point: {form.zero_point}"
            lines.append(f"{side}: {port.name}, {list(port.shape)}, {form.dtype}, {said}")
    file.write_text("\n".join([*lines, ""]))
