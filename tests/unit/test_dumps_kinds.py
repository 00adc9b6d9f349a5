"""What each kind of dump says of itself, and what it refuses, beyond coming back bit for bit."""

from __future__ import annotations

import importlib.util
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps import READERS, npy_folder, parity_dump, raw, traced, zips
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.detect import detect, digest, parse, reader
from parity.targets.dumps.formats import Format, format_of


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")
Q, BITS = samples.Q, samples.BITS
HERE = Path("any")


@pytest.mark.parametrize("kind", samples.SAMPLES)
def test_every_kind_is_recognised_as_itself(kind, tmp_path):
    assert detect(samples.SAMPLES[kind](tmp_path)) == kind


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_is_called_by_its_kind_and_says_what_it_reads(kind):
    made = reader(kind)
    assert made.kind == kind
    assert made.summary
    assert all(meaning for meaning in made.settings.values())


@pytest.mark.parametrize("kind", READERS)
def test_no_reader_takes_a_setting_that_it_does_not_have(kind, tmp_path):
    path = samples.SAMPLES[kind](tmp_path) if kind in samples.SAMPLES else tmp_path
    with pytest.raises(UserError):
        reader(kind).read(path, ReadOptions(settings={"colour": "blue"}))


@pytest.mark.parametrize("kind", READERS)
def test_no_reader_recognises_what_is_nothing(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent"):
        assert not reader(kind).detects(path)


def test_what_looks_like_nothing_is_refused_with_the_kinds_that_there_are(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"looks like no kind of dump.*parity.*atb"):
        detect(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is not there"):
        detect(tmp_path / "absent")
    with pytest.raises(UserError, match="Did you mean 'npz'"):
        reader("npzz")


def test_what_looks_like_two_kinds_is_refused_with_both(tmp_path):
    samples.make_bmrt(tmp_path)
    raw.write(tmp_path, [({"name": "x"}, Q)])
    with pytest.raises(UserError, match="could be of kind bmrt or raw; say which with kind=NAME"):
        detect(tmp_path)


def test_a_general_kind_steps_back(tmp_path):
    raw.write(tmp_path, [({"name": "x"}, Q)])
    np.save(tmp_path / "beside.npy", Q)
    assert detect(tmp_path) == "raw"


def test_a_dump_is_named_with_its_kind_sidecar_and_settings():
    assert parse("a+b/dump") == (Path("a+b/dump"), None, ReadOptions())
    path, kind, options = parse("d+kind=bmrt+manifest=m/i.txt+side=input")
    assert (path, kind) == (Path("d"), "bmrt")
    assert options == ReadOptions(Path("m/i.txt"), {"side": "input"})
    for wrong, match in (
        ("", "names no path"),
        ("d+kind=npz+kind=npy", "given twice"),
        ("d+side=", "is empty"),
    ):
        with pytest.raises(UserError, match=match):
            parse(wrong)


def test_a_digest_is_of_names_and_contents(tmp_path):
    folder = tmp_path / "d"
    npy_folder.write(folder, {"a": Q, "b": Q})
    before = digest(folder)
    assert (before["files"], before["bytes"]) == (2, 2 * (folder / "a.npy").stat().st_size)
    (folder / "a.npy").rename(folder / "c.npy")
    assert digest(folder)["sha256"] != before["sha256"]
    (folder / "link").symlink_to("/etc/passwd")
    assert digest(folder)["files"] == 2


# --- number formats -------------------------------------------------------------------------------------


def test_scales_are_undone_by_the_declared_rule():
    codes = np.array([-128, -1, 0, 127], np.int8)
    assert Format("int8", 0.5, -1).real(codes).tolist() == [-63.5, 0.0, 0.5, 64.0]
    assert Format("int8", 4.0, 0, inverse=True).real(codes).tolist() == [-32.0, -0.25, 0.0, 31.75]
    assert Format("int8").real(codes) is codes
    assert Format("int8", 0.5, -1).meta == {
        "dequantized": {"format": "int8", "scale": 0.5, "zero_point": -1, "rule": "(q - zero_point) * scale"}
    }


def test_the_largest_codes_do_not_wrap():
    wide = np.array([np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int32)
    assert Format("int32", 0.5, 1 << 20).real(wide).tolist() == [-1074266112.0, 1073217536.0]


@pytest.mark.parametrize(
    ("word", "scale", "zero", "match"),
    [
        ("int99", 1.0, 0, "Did you mean"),
        ("float32", 0.5, 0, "only integers have one"),
        ("int8", 0, 0, "no quantization has"),
        ("int8", -1.0, 0, "no quantization has"),
        ("int8", float("nan"), 0, "has scale nan"),
        ("int8", "x", 0, "has scale x"),
        ("int8", 1.0, 0.5, "zero point 0.5"),
    ],
)
def test_a_format_that_cannot_be_is_refused(word, scale, zero, match):
    with pytest.raises(UserError, match=match):
        format_of(HERE, "x", word, scale, zero)


def test_a_runtime_that_writes_scale_zero_for_floats_is_understood():
    assert format_of(HERE, "x", "bf16", 0, 0) == Format("bfloat16")


# --- our own --------------------------------------------------------------------------------------------


def test_our_own_dump_says_taps_tokens_and_origin(tmp_path):
    contents = samples.read("parity", samples.make_parity(tmp_path))
    assert contents.facts["chip"] == "cv181x"
    assert contents.tokens.tolist() == [[7]]
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[7]], 1: [[8]]}
    first, second, third = list(contents.entries)[:3]
    assert (first.name, first.tap, first.axes) == ("seg_head/layer0.q", "layer0.q", "b h t d")
    assert first.positions.tolist() == [[0, 1, 2]]
    assert (second.name, second.tap) == ("seg_head/inner", None)
    assert third.load().tolist() == [-0.5, 0.25, 1.5]


@pytest.mark.parametrize(
    ("scenario", "wanted"),
    [
        ({"tokens": [[1, 2]]}, [[1, 2]]),
        ({"ids": [[1, 2]]}, [[1, 2]]),
        ({"ids": [[1], [2, 3]]}, None),
        (None, None),
    ],
)
def test_the_prompt_is_the_scenarios_where_the_first_step_has_no_ids(scenario, wanted, tmp_path):
    parity_dump.write(tmp_path / "d", [{"index": 1, "tokens": [[9]], "records": []}], scenario=scenario)
    tokens = samples.read("parity", tmp_path / "d").tokens
    assert (None if tokens is None else tokens.tolist()) == wanted


def test_a_padded_array_gets_its_logical_shape(tmp_path):
    record = {"array": Q.reshape(2, 3, 4, 1), "tap": "q", "shape": [2, 12]}
    parity_dump.write(tmp_path / "d", [{"index": 0, "records": [record]}])
    (entry,) = samples.read("parity", tmp_path / "d").entries
    assert entry.load().shape == entry.shape == (2, 12)
    assert entry.meta["padding undone"] == [2, 3, 4, 1]


def test_a_runner_that_was_stopped_is_said_to_be(tmp_path):
    parity_dump.write(tmp_path / "d", [{"index": 0, "records": []}], complete=False)
    contents = samples.read("parity", tmp_path / "d")
    assert contents.facts["complete"] is False
    assert "stopped before its end" in contents.notes[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "this parity reads 1"),
        ({"format": "other"}, "should have 'parity-dump'"),
        ({"steps": 3}, "no list"),
        ({"steps": None}, "lacks 'steps'"),
        (
            {"steps": [{"index": 0, "file": "gone.npz", "records": []}]},
            "lacks gone.npz, which its manifest names",
        ),
    ],
)
def test_a_manifest_of_ours_that_is_none_is_refused(change, match, tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = {**json.loads((dump / "manifest.json").read_text()), **change}
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=match):
        samples.values(samples.read("parity", dump))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "float32", "shape": [9]}, "belongs to another dump"),
        ({"format": "bfloat16"}, "belongs to another dump"),
        ({"key": "9999"}, "has no array '9999'"),
        ({"axes": "b h"}, "has axes 'b h'"),
        ({"positions": [[1, 2]]}, "2 positions for 3 rows"),
        ({"call": -1}, "which cannot be"),
        ({"call": 1 << 40}, "which cannot be"),
        ({"tap": 3}, "no text"),
    ],
)
def test_a_record_that_does_not_fit_its_array_is_refused(change, match, tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["steps"][0]["records"][0].update(change)
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=match):
        samples.values(samples.read("parity", dump))


def test_a_step_that_stands_twice_is_refused(tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["steps"].append(manifest["steps"][0])
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="step 0 stands twice"):
        samples.read("parity", dump)


# --- npz ------------------------------------------------------------------------------------------------


def test_a_name_that_a_program_appends_again_and_again_is_its_steps_where_that_is_said(tmp_path):
    """The first chat demos for the BM1684X append every step to one file."""
    path = tmp_path / "dev1.npz"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(3):
            zips.write_member(archive, "block_0.npy", Q + step)
    with pytest.raises(UserError, match="holds 'block_0' twice"):
        samples.read("npz", path)
    for said, places in (("steps", [(0, 0), (1, 0), (2, 0)]), ("calls", [(0, 0), (0, 1), (0, 2)])):
        found = list(samples.read("npz", path, repeats=said).entries)
        assert [(entry.name, entry.step, entry.call) for entry in found] == [
            ("block_0", *place) for place in places
        ]
        assert [entry.load()[0, 0, 0, 0] for entry in found] == [0, 1, 2]
    with pytest.raises(UserError, match="should be steps or calls"):
        samples.read("npz", path, repeats="often")


def test_a_name_that_ends_like_a_repeat_is_a_name(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a": Q, "a#1": Q})
    assert [entry.name for entry in samples.read("npz", tmp_path / "x.npz", repeats="steps").entries] == [
        "a",
        "a#1",
    ]


# --- folders, tracer, raw -------------------------------------------------------------------------------


def test_files_of_one_name_are_calls_in_the_order_of_their_times(tmp_path):
    entries = list(samples.read("npy", samples.make_npy(tmp_path)).entries)
    assert [(entry.name[:8], entry.call) for entry in entries] == [("layer0.x", 0), ("q.0", 0), ("q.0", 1)]
    assert entries[1].load()[0, 0, 0, 0] == 0
    assert entries[2].load()[0, 0, 0, 0] == 1


def test_a_list_of_long_names_that_is_none_is_refused(tmp_path):
    folder = samples.make_npy(tmp_path)
    (folder / "mapping.csv").write_text("a,b,c\n")
    with pytest.raises(UserError, match="has a line of 3 fields"):
        samples.read("npy", folder)
    (folder / "mapping.csv").write_text("a,b\na,c\n")
    with pytest.raises(UserError, match="gives 'a' two names"):
        samples.read("npy", folder)
    (folder / "mapping.csv").write_text("gone,b\n")
    assert "1 files that are not there" in samples.read("npy", folder).notes[0]


def test_two_files_that_get_one_name_are_refused(tmp_path):
    npy_folder.write(tmp_path, {"a": Q, "b": Q})
    (tmp_path / "mapping.csv").write_text("b,a\n")
    with pytest.raises(UserError, match="second file that is named 'a'"):
        samples.values(samples.read("npy", tmp_path))


def test_one_run_of_the_original_tracers_file_is_read(tmp_path):
    path = tmp_path / "traced_tensors.pt"
    traced.write(path, {".q": {"ref": Q, "seg": Q + 1}, ".only": {"ref": BITS}})
    with pytest.raises(UserError, match="holds the runs 'ref', 'seg'; say which with run=NAME"):
        samples.read("traced", path)
    contents = samples.read("traced", path, run="seg")
    assert contents.notes == ("1 names have no record of run 'seg', first '.only'",)
    (entry,) = contents.entries
    assert (entry.name, entry.tap) == (".q", "q")
    assert np.array_equal(entry.load(), Q + 1)


def test_a_raw_manifest_describes_npy_and_npz_files_too(tmp_path):
    np.save(tmp_path / "a.npy", BITS.view(np.uint16))
    np.savez(tmp_path / "b.npz", inner=Q.reshape(2, 3, 4, 1))
    tensors = [
        {"name": "bits", "file": "a.npy", "dtype": "bfloat16", "tap": "layer0.k", "step": 4},
        {"name": "q", "file": "b.npz", "member": "inner", "shape": [1, 2, 3, 4]},
    ]
    content = {"format": "parity-raw", "version": 1, "tensors": tensors}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    bits, q = samples.read("raw", tmp_path).entries
    assert (bits.dtype, bits.step, bits.tap) == ("bfloat16", 4, "layer0.k")
    assert bits.load().view(np.uint16).tolist() == BITS.view(np.uint16).tolist()
    assert np.array_equal(q.load(), Q)


def test_bytes_that_no_tensor_owns_must_be_said_to_be_unused(tmp_path):
    raw.write(tmp_path, [({"name": "x"}, Q)])
    file = tmp_path / "tensors.bin"
    file.write_bytes(file.read_bytes() + b"\0" * 32)
    with pytest.raises(UserError, match="two dumps were written into one file"):
        samples.read("raw", tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["unused"] = [{"file": "tensors.bin", "offset": Q.nbytes, "length": 32}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(samples.values(samples.read("raw", tmp_path))) == 1
    manifest["unused"][0]["offset"] -= 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="overlap"):
        samples.read("raw", tmp_path)
