"""Nano dumps: the list form, the exact end, and ACL's numbering."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps.ascend.adump import AdumpReader
from parity.targets.dumps.ascend.adump_writer import Written, fractal_nz, write_adump
from parity.targets.dumps.ascend.nano import NanoReader, NanoTensor, parse_nano, write_nano
from parity.targets.dumps.core import Dumped, ReadOptions

NAME = "Conv.a_b.3.2.1700000000000001"


def entries(path: Path) -> dict[str, Dumped]:
    return {entry.name: entry for entry in NanoReader().read(path, ReadOptions()).entries}


def test_code_one_is_float16_here_and_float32_in_an_adump(tmp_path: Path) -> None:
    write_nano(tmp_path / "n" / NAME, outputs=[NanoTensor(bytes(4), dtype=1, shape=(2,))])
    write_adump(tmp_path / "a" / NAME, "op", outputs=[Written(np.zeros(2, np.float32))])
    assert b"\x08\x01" in (tmp_path / "a" / NAME).read_bytes()
    (nano,), (adump,) = (
        reader.read(tmp_path / folder, ReadOptions()).entries
        for reader, folder in ((NanoReader(), "n"), (AdumpReader(), "a"))
    )
    assert (nano.dtype, adump.dtype) == ("float16", "float32")


def test_inputs_and_outputs_are_read_with_shapes_layouts_and_origins(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.int8).reshape(2, 3)
    y = np.random.default_rng(0).standard_normal((20, 35)).astype(np.float16)
    stored = fractal_nz(y)
    write_nano(
        tmp_path / NAME,
        [NanoTensor(x.tobytes(), 2, (2, 3))],
        [NanoTensor(stored.tobytes(), 1, stored.shape, 29, (20, 35), "/conv", 1)],
    )
    found = entries(tmp_path)
    assert list(found) == ["a_b:input:0", "a_b:output:0"]
    np.testing.assert_array_equal(found["a_b:input:0"].load(), x)
    np.testing.assert_array_equal(found["a_b:output:0"].load(), y)
    assert found["a_b:output:0"].meta["origin"] == "/conv:1"


def test_a_list_of_an_unknown_kind_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_nano(path, [NanoTensor(b"\x07", 2, (1,))])
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    extra = struct.pack("<II", 9, 3) + b"xyz"
    path.write_bytes(struct.pack("<Q", length + 11) + raw[8 : 8 + length] + extra + raw[8 + length :])
    assert entries(path)["a_b:input:0"].load().tolist() == [7]


def header(*lists: bytes, magic: int = 0x5A5A5A5A) -> bytes:
    body = struct.pack("<II", magic, 1) + b"".join(lists)
    return struct.pack("<Q", len(body)) + body


def tensor(*entries: bytes, size: int = 0) -> bytes:
    body = b"".join(entries)
    return struct.pack("<iiiQQQI", 2, 2, 0, 0, 0, size, len(body)) + body


def listed(tag: int, *tensors: bytes, count: int | None = None) -> bytes:
    body = struct.pack("<I", len(tensors) if count is None else count) + b"".join(tensors)
    return struct.pack("<II", tag, len(body)) + body


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (header(magic=1), "magic number is 0x1"),
        (header(listed(4), listed(4)), "list 4 comes twice"),
        (header(listed(4, count=1 << 30)), "announces 1073741824 inputs"),
        (header(listed(4, count=1)), "wanted where 0 are left"),
        (header(listed(4, tensor(b"\0" * 5))), "wanted where"),
        (header(listed(4, tensor(struct.pack("<II", 0, 7) + bytes(7)))), "7 bytes, which is no list"),
        (header(listed(4, tensor(struct.pack("<II", 0, 800) + bytes(800)))), "800 bytes, which is no list"),
        (header(listed(4, tensor(struct.pack("<II", 2, 0)))), "entry with the tag 2"),
        (header(listed(4, tensor(), count=0)), "follow the last of its inputs"),
        (header(listed(4, tensor(size=1 << 60))), "cut short"),
        (header(listed(4, tensor())) + b"x", "belong to no tensor"),
        (struct.pack("<Q", 1 << 62) + b"ZZZZ", "announces a header"),
        (b"abc", "needs 8 bytes"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, raw: bytes, told: str) -> None:
    path = tmp_path / NAME
    path.write_bytes(raw)
    with pytest.raises(UserError, match=told):
        parse_nano(path)


def test_the_two_kinds_of_device_dump_are_told_apart(tmp_path: Path) -> None:
    write_nano(tmp_path / "n" / NAME, outputs=[NanoTensor(bytes(4), dtype=1, shape=(2,))])
    write_adump(tmp_path / "a" / NAME, "op", outputs=[Written(np.zeros(2, np.float32))])
    assert NanoReader().detects(tmp_path / "n")
    assert not AdumpReader().detects(tmp_path / "n")
    assert AdumpReader().detects(tmp_path / "a")
    assert not NanoReader().detects(tmp_path / "a")
