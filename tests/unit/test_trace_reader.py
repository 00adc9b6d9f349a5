"""Reading: by name, step and call, lazily, live, and never trusting what a file claims."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import Trace, TraceWriter, blocks
from parity.harness.trace import format as trace_format

SOURCE = ":".join(p for p in sys.path if p)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A trace with one complete run: three steps of two taps."""
    path = tmp_path / "t.h5"
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for step in range(3):
            run.record("layer0.q", np.arange(12.0).reshape(3, 4) + step, step=step, axes="t d")
            run.record("logits", np.full(5, step, np.float32), step=step)
    return path


def test_values_are_found_by_tap_step_and_call(path: Path) -> None:
    run = Trace(path)["torch"]
    np.testing.assert_array_equal(run["layer0.q", 2], np.arange(12.0).reshape(3, 4) + 2)
    np.testing.assert_array_equal(run["logits", 1, 0], np.full(5, 1, np.float32))
    assert run.complete
    assert len(run) == 6


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda t: t["toch"], "Did you mean 'torch'"),
        (lambda t: t["torch"]["layer0.k", 1], "Did you mean 'layer0.q'"),
        (lambda t: t["torch"]["logits"], "has 3 records"),
        (lambda t: t["torch"]["logits", 7], "steps 0, 1, 2"),
        (lambda t: t["torch"].records("x"), "has no such tap"),
        (lambda t: t["torch"].records()[0].read_flat(5, 13), "outside the 12 elements"),
        (lambda t: t["torch"].records()[0].read_flat(-1, 3), "outside the 12 elements"),
    ],
    ids=["run", "tap", "many", "step", "records", "range", "negative"],
)
def test_a_wrong_name_or_place_says_what_there_is(
    path: Path, ask: Callable[[Trace], object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        ask(Trace(path))


def test_flat_pieces_equal_the_record_across_chunk_borders(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal(700_000).astype(np.float32)
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("torch") as run:
        run.record("pad", np.zeros(1000, np.float32))
        run.record("x", data)
    record = Trace(tmp_path / "t.h5")["torch"].records("x")[0]
    for size in (1, 65_536, 300_000, 600_000):
        for start in (0, 261_000, 262_144, 523_000, 700_000 - size):
            stop = min(start + size, data.size)
            np.testing.assert_array_equal(record.read_flat(start, stop), data[start:stop])
    np.testing.assert_array_equal(record.read_flat(0, data.size), data)
    assert record.read_flat(5, 5).shape == (0,)
    assert not record.read_flat(0, 10).flags.writeable


def test_memory_for_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MEMORY", 4 << 20)
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("torch") as run:
        for step in range(20):
            run.record("x", np.full(1 << 18, step, np.float32), step=step)
    trace = Trace(tmp_path / "t.h5")
    for record in trace["torch"].records():
        assert record.read_flat(0, 1000)[0] == record.step
    assert len(trace._blocks._kept) <= 4


def test_a_file_that_is_being_written_can_be_read(path: Path) -> None:
    with TraceWriter(path) as writer:
        run = writer.run("live")
        run.record("q", np.arange(3), step=0)
        writer.flush()
        trace = Trace(path)
        assert not trace["live"].complete
        np.testing.assert_array_equal(trace["live"]["q", 0], np.arange(3))
        code = (
            "import sys, h5py; from parity.harness.trace import Trace; t = Trace(sys.argv[1]);"
            "assert t['live']['q', 0].tolist() == [0, 1, 2]; assert t['torch'].complete;"
            "f = h5py.File(sys.argv[1], 'r', swmr=True); assert f['index'].shape == (7,)"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={"PYTHONPATH": SOURCE})
        run.record("q", np.arange(4), step=1)
        writer.flush()
        assert len(trace["live"]) == 1, "a trace is a snapshot"
        assert len(Trace(path)["live"]) == 2


def test_reading_needs_no_torch(path: Path) -> None:
    code = (
        "import sys; from parity.harness.trace import Trace;"
        "Trace(sys.argv[1])['torch'].verify(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={"PYTHONPATH": SOURCE})


def test_a_flipped_bit_is_found_and_named(path: Path) -> None:
    record = Trace(path)["torch"].records("logits")[1]
    stream = Trace(path).layout.streams["data/float32"]
    with open(path, "r+b") as file:
        file.seek(stream.chunks[0][0] + 4 * record.offset + 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    run = Trace(path)["torch"]
    failures = run.verify()
    assert len(failures) == 1
    assert "'logits' at step 1 fails its checksum" in failures[0]
    with pytest.raises(UserError, match="fails its checksum"):
        run["logits", 1]
    np.testing.assert_array_equal(run["logits", 2], np.full(5, 2, np.float32))


def test_a_piece_of_a_damaged_record_is_not_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("x", np.zeros(600_000, np.float32))
    chunks = Trace(path).layout.streams["data/float32"].chunks
    with open(path, "r+b") as file:
        file.seek(chunks[1][0] + 17)
        file.write(b"\1")
    record = Trace(path)["torch"].records()[0]
    with pytest.raises(UserError, match="fails its checksum"):
        record.read_flat(0, 10)


def test_a_program_that_ends_without_closing_leaves_a_clean_file(tmp_path: Path) -> None:
    code = (
        "import sys; from parity.harness.trace import TraceWriter;"
        "run = TraceWriter(sys.argv[1]).run('torch'); run.record('q', [1, 2])"
    )
    path = tmp_path / "t.h5"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={"PYTHONPATH": SOURCE})
    assert not Trace(path)["torch"].complete
    with h5py.File(path, "r") as file:
        assert file["runs/torch/q"][0, 1] == 2


def test_missing_foreign_and_cut_files_are_clear_errors(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Trace(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not a trace" * 10)
    with pytest.raises(UserError, match="not an HDF5 file"):
        Trace(tmp_path / "text.h5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(UserError, match="not an HDF5 file"):
        Trace(tmp_path / "empty.h5")
    with pytest.raises(UserError, match="is no file"):
        Trace(tmp_path)
    whole = path.read_bytes()
    for size in (100, 2000, 9000):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"damaged|cut off"):
            Trace(tmp_path / "cut.h5")


def test_a_file_cut_anywhere_never_ends_in_anything_but_words(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for size in itertools.chain(range(0, 20_000, 700), range(20_000, len(whole), 150_000)):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        try:
            trace = Trace(tmp_path / "cut.h5")
            for run in trace.runs:
                run.verify()
        except UserError:
            continue


def test_a_newer_format_asks_for_an_update(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(UserError, match="format 99"):
        Trace(path)


def _forge(path: Path, number: int, **fields: object) -> None:
    """Change an index row and make its checksum hold again."""
    with h5py.File(path, "r+") as file:
        rows = file["index"][:]
        for name, value in fields.items():
            rows[name][number] = value
        crc = zlib.crc32(rows[number].tobytes()[: trace_format.ROW_CRC_AT])
        rows["row_crc"][number] = crc
        file["index"][:] = rows


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": -5},
        {"offset": 1 << 60},
        {"shape": (1 << 62, 1 << 62, 1 << 62, 4, 0, 0, 0, 0), "ndim": 4},
        {"shape": (-3, -4, 0, 0, 0, 0, 0, 0)},
        {"shape": (1 << 40, 4, 0, 0, 0, 0, 0, 0)},
        {"ndim": 9},
        {"dtype": 200},
    ],
    ids=["negative-offset", "far-offset", "overflow", "negative-shape", "huge-shape", "dims", "dtype"],
)
def test_a_row_that_cannot_be_true_is_named_before_anything_is_allocated(
    path: Path, fields: dict[str, object]
) -> None:
    _forge(path, 2, **fields)
    with pytest.raises(UserError, match="index row 2 points outside"):
        Trace(path)


def test_a_stream_that_claims_more_than_the_file_holds_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["index"].resize((1 << 50,))
    with pytest.raises(UserError, match="index claims"):
        Trace(path)


def test_lines_about_runs_that_make_no_sense_are_a_clear_error(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        text = file["text"]
        line = trace_format.line({"end_of": 77, "complete": True})
        end = text.shape[0]
        text.resize((end + len(line),))
        text[end:] = np.frombuffer(line, np.uint8)
    with pytest.raises(UserError, match="makes no sense"):
        Trace(path)


def test_a_row_that_refers_to_a_missing_text_is_a_clear_error(path: Path) -> None:
    _forge(path, 2, tap=9999)
    with pytest.raises(UserError, match="text 9999 is missing"):
        list(Trace(path)["torch"].records())


def test_a_damaged_row_and_a_damaged_text_are_named(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        rows = file["index"][:]
        rows["step"][1] = 77
        file["index"][:] = rows
    with pytest.raises(UserError, match="index row 1 fails its checksum"):
        Trace(path)
    with h5py.File(path, "r+") as file:
        rows["step"][1] = 0
        file["index"][:] = rows
        file["text"][12] ^= 1
    with pytest.raises(UserError, match="line 1 of its text"):
        Trace(path)


def test_links_out_of_the_file_are_not_followed(path: Path, tmp_path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("index", "kept")
        file["index"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "index")
    with pytest.raises(UserError, match="its index or text is not that of a trace"):
        Trace(path)


def test_records_of_a_tap_are_listed_without_reading_values(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(path)
    monkeypatch.setattr(blocks.Blocks, "_load", None)
    monkeypatch.setattr(blocks.Blocks, "fresh", None)
    assert [r.shape for r in trace["torch"].records("layer0.q")] == [(3, 4)] * 3
