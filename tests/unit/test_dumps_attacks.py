"""Files made to do harm: bombs, paths that lead outside, code in pickles, sizes without bytes behind them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity.harness.errors import UserError
from parity.targets.dumps import npz, parity_dump, raw, zips
from parity.targets.dumps.core import inside, opened, read_json, read_text
from parity.targets.dumps.npy import npy_array, npy_header
from parity.targets.dumps.torch_files import checked_tensor, load_torch


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")
Q = samples.Q


class Harm:
    """Unpickling it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.proof, "run"))


def header(text: str, *, version: int = 1, length: int | None = None) -> bytes:
    """The start of a .npy with any text as its header."""
    body = text.encode()
    size = len(body) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + body


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as stream:
        stream.write(header("{'descr': '|u1', 'fortran_order': False, 'shape': (104857600,)}"))
        for _ in range(100):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    with pytest.raises(UserError, match="looks like a zip bomb"):
        samples.read("npz", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_many_small_bombs_are_one_large_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bombs.npz"
    monkeypatch.setattr(zips, "LARGEST_TOTAL", 1 << 22)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.npy", bytes(1 << 20))
    with pytest.raises(UserError, match=r"would inflate .* looks like a zip bomb"):
        zips.Npz(path)


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path):
    path = tmp_path / "liar.npz"
    npz.write(path, {("x", 0, 0): np.zeros(1 << 16, np.float32)})
    whole = path.read_bytes()
    small = struct.pack("<I", 200)
    at = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: at + 20] + small * 2 + whole[at + 28 :])
    with pytest.raises(UserError, match=r"needs 262144 bytes of values|damaged"):
        samples.values(samples.read("npz", path))


def test_members_that_lie_over_one_another_are_refused(tmp_path):
    path = tmp_path / "over.npz"
    npz.write(path, {("x", 0, 0): Q, ("y", 0, 0): Q})
    whole = bytearray(path.read_bytes())
    second = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)
    whole[second + 42 : second + 46] = bytes(4)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="lie over one another"):
        samples.read("npz", path)


def test_two_arrays_of_one_name_are_two_dumps(tmp_path):
    path = tmp_path / "bmodel_inference.npz"
    stream = io.BytesIO()
    np.save(stream, Q)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", stream.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x", stream.getvalue())
    with pytest.raises(UserError, match="holds 'x' twice: two dumps were written into one file"):
        samples.read("soc-npz", path)


@pytest.mark.parametrize("kind", ["npz", "cvi-npz", "soc-npz", "safetensors"])
def test_a_file_appended_to_itself_is_two_dumps(kind, tmp_path):
    path = samples.SAMPLES[kind](tmp_path)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match=r"two files|two dumps|appended"):
        samples.values(samples.read(kind, path))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_pickle_inside_an_array_is_never_loaded(name, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / name
    harmful = np.array([Harm(proof)], object)
    np.save(path, harmful) if name == "x.npy" else np.savez(path, x=harmful)
    with pytest.raises(UserError, match=r"Python objects \(a pickle\), which is code"):
        samples.values(samples.read("npy" if name == "x.npy" else "npz", path))
    assert not proof.exists()


def test_code_inside_a_torch_file_is_never_run(tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "traced_tensors.pt"
    torch.save({"x": {"run": Harm(proof)}}, path)
    with pytest.raises(UserError, match="cannot be read"):
        samples.read("traced", path)
    assert not proof.exists()


def test_a_bare_pickle_with_the_name_of_a_torch_file_is_refused(tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "traced_tensors.pt"
    path.write_bytes(pickle.dumps(Harm(proof)))
    with pytest.raises(UserError, match="save it again"):
        samples.read("traced", path)
    assert not proof.exists()


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A view may repeat what is stored, but not a million times."""
    path = tmp_path / "traced_tensors.pt"
    torch.save({"x": {"run": torch.zeros(1).expand(1 << 20)}}, path)
    with pytest.raises(UserError, match="needs 4194304 bytes, but the file holds 4"):
        samples.values(samples.read("traced", path))
    torch.save({"x": {"run": torch.ones(1, 2, 1, 4).expand(1, 2, 8, 4)}}, path)
    ((key, array),) = samples.values(samples.read("traced", path)).items()
    assert (key[0], array.shape, array.sum()) == ("x", (1, 2, 8, 4), 64)


def test_what_is_no_plain_tensor_is_said_to_be_what_it_is(tmp_path):
    path = tmp_path / "traced_tensors.pt"
    torch.save({"x": {"run": [1, 2]}}, path)
    with pytest.raises(UserError, match="is a list, where a tensor is expected"):
        samples.values(samples.read("traced", path))
    with pytest.raises(UserError, match="no plain tensor"):
        checked_tensor(path, "x", torch.eye(2).to_sparse())
    torch.save([1], path)
    with pytest.raises(UserError, match="name -> run -> tensor"):
        samples.read("traced", path)


def test_a_damaged_torch_file_fails_its_checksum(tmp_path):
    path = tmp_path / "traced_tensors.pt"
    torch.save({"x": {"run": torch.full((256,), 3.0)}}, path)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<f", 3.0) * 8)
    path.write_bytes(whole[:at] + b"\0\0\0\0" + whole[at + 4 :])
    with pytest.raises(UserError, match="damaged"):
        load_torch(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024)}", "cut short"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "impossible shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", "impossible shape"),
        ("{'descr': '<f4', 'fortran_order': 1, 'shape': ()}", "wrong types"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}", "are no numbers"),
        ("{'descr': '<U8', 'fortran_order': False, 'shape': ()}", "are no numbers"),
        ("{'descr': '<f4', 'shape': ()}", "without descr, fortran_order and shape"),
        ("(" * 500, "cannot be read"),
        ("__import__('os').system('true')", "cannot be read"),
    ],
)
def test_a_header_that_cannot_be_is_refused(text, match, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(header(text))
    with pytest.raises(UserError, match=match):
        npy_header(path)


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(header("{}", version=2, length=0xFFFFFFFF))
    with pytest.raises(UserError, match="header of 4294967295 bytes"):
        npy_header(path)


def test_a_file_with_too_many_or_too_few_values_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, Q)
    whole = path.read_bytes()
    for content, match in ((whole + b"\0", "bytes are appended"), (whole[:-1], "cut short")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=match):
            npy_header(path)
        with pytest.raises(UserError, match=r"appended|cut short"):
            npy_array(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link", "folder/../../secret", "a\0b", ""])
def test_a_manifest_leads_nowhere_outside_its_folder(name, tmp_path):
    (tmp_path / "secret").write_bytes(Q.tobytes())
    dump = tmp_path / "dump"
    raw.write(dump, [({"name": "x"}, Q)])
    (dump / "link").symlink_to(tmp_path / "secret")
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["tensors"][0]["file"] = name
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"outside its folder|no name|empty 'file'"):
        samples.values(samples.read("raw", dump))


def test_a_link_inside_a_folder_of_arrays_is_not_followed_out(tmp_path):
    np.save(tmp_path / "secret.npy", Q)
    folder = tmp_path / "npy"
    folder.mkdir()
    (folder / "x.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(UserError, match="outside its folder"):
        samples.read("npy", folder)


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError):
        opened(inside(tmp_path, "a"))


def test_a_pipe_does_not_keep_a_reader_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UserError, match="is no regular file"):
        samples.values(samples.read("npy", tmp_path))


def test_a_manifest_without_end_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no UTF-8"):
        read_text(path)
    with path.open("wb") as file:
        file.truncate(1 << 29)
    with pytest.raises(UserError, match="too many for a text"):
        read_text(path)


def test_a_sparse_file_of_terabytes_takes_no_memory(tmp_path):
    raw.write(tmp_path, [({"name": "x"}, Q)])
    with (tmp_path / "tensors.bin").open("r+b") as file:
        file.truncate(1 << 36)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["tensors"][0]["shape"] = [1 << 34]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="taken at once"):
        samples.values(samples.read("raw", tmp_path))


def test_a_step_file_that_the_manifest_does_not_know_is_another_dump(tmp_path):
    dump = samples.make_parity(tmp_path)
    (dump / "step_000009.npz").write_bytes((dump / "step_000000.npz").read_bytes())
    with pytest.raises(UserError, match="two dumps lie in one folder"):
        samples.read("parity", dump)


def test_an_array_that_the_manifest_does_not_know_is_another_dump(tmp_path):
    dump = samples.make_parity(tmp_path)
    zips.write_npz(dump / "step_000001.npz", {f"{n:04d}": x for n, x in enumerate((Q, Q, Q, Q))})
    with pytest.raises(UserError, match=r"belongs to another dump|does not know"):
        samples.values(samples.read("parity", dump))


def test_a_dump_without_its_manifest_says_what_happened(tmp_path):
    dump = samples.make_parity(tmp_path)
    (dump / parity_dump.MANIFEST).unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json: the runner did not come to its end"):
        samples.read("parity", dump)
