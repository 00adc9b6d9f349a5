"""Whatever a dump's writer writes its reader reads, bit for bit, in the same order."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.harness.dtypes import as_storage, logical_dtype, storage_dtype
from parity.targets.dumps import bmrt, cvi, npy_folder, npz, parity_dump, raw, safetensors, soc, traced
from parity.targets.dumps.core import Contents, ReadOptions
from parity.targets.dumps.cvi import four_dimensions
from parity.targets.dumps.detect import detect, reader
from parity.targets.dumps.formats import Format
from parity.targets.dumps.signature import Port

PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint8", "bool")
BITS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
TORCH = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMES = st.text(st.characters(categories=("L", "N"), include_characters="._-/ :"), min_size=1, max_size=20)

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def arrays(draw: st.DrawFn, words: tuple[str, ...]) -> np.ndarray:
    """Random bits of one of these formats, NaN payloads included."""
    name = draw(st.sampled_from(words), label="dtype")
    shape = draw(SHAPES, label="shape")
    storage = storage_dtype(name)
    size = math.prod(shape) * storage.itemsize
    flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size), label="bits"), storage)
    if name == "bool":
        flat = flat % 2
    if name == "int4":
        flat = flat.view(np.int8) // 16
    return flat.astype(storage).view(logical_dtype(name)).reshape(shape)


def tables(words: tuple[str, ...]) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Some arrays by name."""
    return st.dictionaries(NAMES, arrays(words), min_size=1, max_size=4)


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two arrays are of one type and shape, and have the same bits."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    return as_storage(found)[0].tobytes() == as_storage(np.ascontiguousarray(wanted))[0].tobytes()


def reread(kind: str, path: Path, **said: str) -> Contents:
    """Open a dump, which is recognised as what it is."""
    assert detect(path) == kind
    return reader(kind).read(path, ReadOptions(settings=said))


def check(contents: Contents, wanted: list[tuple[str, np.ndarray]]) -> None:
    """The entries are these, in this order, and say of themselves what they are."""
    entries = list(contents.entries)
    assert [entry.name for entry in entries] == [name for name, _ in wanted]
    assert contents.count in (None, len(entries))
    for entry, (_, array) in zip(entries, wanted, strict=True):
        back = entry.load()
        assert same(back, array), (entry.name, back, array)
        assert entry.shape == array.shape


@quick
@given(tables(PLAIN + BITS))
def test_an_npz_of_our_own_comes_back(table: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.npz"
        npz.write(path, {(name, step, step % 2): x for step, (name, x) in enumerate(table.items())})
        check(reread("npz", path), list(table.items()))
        places = [(entry.step, entry.call) for entry in reread("npz", path).entries]
        assert places == [(step, step % 2) for step in range(len(table))]


@quick
@given(tables(PLAIN))
def test_a_checkers_npz_comes_back(table: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soc_infer_net.npz"
        soc.write(path, table)
        check(reread("soc-npz", path), list(table.items()))
        failed = Path(folder) / "failed_bmodel_outputs.npz"
        sides = ("actual", "desired")
        soc.write(failed, {f"{name}_asm_1_0_2_{side}": x for name, x in table.items() for side in sides})
        check(reread("soc-npz", failed, side="desired"), list(table.items()))


@quick
@given(tables(("float32", "bfloat16", "int8", "uint8")), st.sampled_from([0.25, 0.5, 3.0]))
def test_a_cvi_boards_npz_comes_back_with_its_scales_undone(
    table: dict[str, np.ndarray], scale: float
) -> None:
    table = {"_".join(name.split()) or "x": array for name, array in table.items()}
    integers = {name for name, array in table.items() if array.dtype.kind in "iu"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.npz"
        cvi.write(path, table, dict.fromkeys(integers, scale))
        real = [
            (
                name,
                (x.astype(np.float32) * scale if name in integers else x).reshape(four_dimensions(x.shape)),
            )
            for name, x in table.items()
        ]
        check(reread("cvi-npz", path), real)


@quick
@given(tables(PLAIN))
def test_a_folder_of_npy_comes_back_long_names_and_all(table: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = {"t" + name: array for name, array in table.items()}
        long = {name + "n" * 300: array for name, array in table.items()}
        both = {**table, **long}
        npy_folder.write(Path(folder) / "d", both)
        check(reread("npy", Path(folder) / "d"), sorted(both.items()))


@quick
@given(tables(TORCH))
def test_the_original_tracers_file_comes_back(table: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced_tensors.pt"
        traced.write(path, {f".{name}": {"a": x, "b": x[..., :0]} for name, x in table.items() if x.ndim})
        wanted = [(f".{name}", x) for name, x in table.items() if x.ndim]
        if wanted:
            check(reread("traced", path, run="a"), wanted)


@quick
@given(tables((*PLAIN, "bfloat16", "float8_e4m3fn", "float8_e5m2")))
def test_safetensors_come_back(table: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        safetensors.write(path, table)
        found = {entry.name: entry.load() for entry in reread("safetensors", path).entries}
        assert found.keys() == table.keys()
        assert all(same(found[name], table[name]) for name in table)


@quick
@given(tables(PLAIN + BITS), st.booleans())
def test_raw_files_with_a_manifest_come_back(table: dict[str, np.ndarray], apart: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensors = [
            ({"name": name, **({"file": f"{number}.bin"} if apart else {})}, array)
            for number, (name, array) in enumerate(table.items())
        ]
        raw.write(Path(folder) / "d", tensors)
        check(reread("raw", Path(folder) / "d"), list(table.items()))


@quick
@given(st.lists(arrays(("float32", "float16", "bfloat16", "int8", "int32")), min_size=1, max_size=4))
def test_what_the_bm_runtime_saves_comes_back(found: list[np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ports = [Port(f"t{n}", x.shape, Format(str(x.dtype.name))) for n, x in enumerate(found)]
        bmrt.write(Path(folder) / "output_ref_data.dat.bmrt", found)
        bmrt.write_info(Path(folder) / "info.txt", "net", [], ports)
        check(reread("bmrt", Path(folder)), [(f"t{n}", x) for n, x in enumerate(found)])


@quick
@given(
    st.lists(tables(("float32", "float16", "bfloat16", "int8", "int32", "uint8")), min_size=1, max_size=3),
    st.sampled_from([(1.0, 0), (0.25, 0), (0.5, -3)]),
)
def test_our_own_dump_comes_back_with_scales_undone(
    steps: list[dict[str, np.ndarray]], quantized: tuple[float, int]
) -> None:
    scale, zero = quantized
    listed, wanted = [], []
    for index, table in enumerate(steps):
        records = []
        for name, array in table.items():
            integer = array.dtype.kind in "iu"
            said = {"scale": scale, "zero_point": zero} if integer else {}
            records.append({"array": array, "tap": name, "segment": "s", "tensor": name, **said})
            real = integer and quantized != (1.0, 0)
            exact = (array.astype(np.int64) - zero) * scale if real else array
            wanted.append((f"s/{name}", exact.astype(np.float32) if real else array))
        listed.append({"index": index, "tokens": [[index]], "records": records})
    with tempfile.TemporaryDirectory() as folder:
        parity_dump.write(Path(folder) / "d", listed)
        contents = reread("parity", Path(folder) / "d")
        assert {step: ids.tolist() for step, ids in contents.fed.items()} == {
            index: [[index]] for index in range(len(steps))
        }
        check(contents, wanted)


def test_bits_of_bfloat16_are_kept_where_a_float_would_change_them() -> None:
    payload = np.array([0x7FA5, 0xFF81, 0x0001, 0x8000], np.uint16).view(ml_dtypes.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        raw.write(Path(folder), [({"name": "x"}, payload)])
        (entry,) = reread("raw", Path(folder)).entries
        assert same(entry.load(), payload)
