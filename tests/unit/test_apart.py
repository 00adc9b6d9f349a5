"""Total error = quantization + implementation: what an emulation shows of a narrow candidate's error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import parity
from parity import emulating
from parity.cases import build_case
from parity.emulating import emulated_of, emulated_run, keep_emulated
from parity.floors import dtypes_of
from parity.harness.comparison import Comparison, Row
from parity.harness.progress import Silent
from parity.harness.target import Options, parse_spec
from parity.harness.trace import Trace, TraceWriter
from parity.recorder import Job, record, reference_values
from parity.request import Request

DRAW = np.random.default_rng(0)
RIGHT = DRAW.standard_normal((1, 256, 32)).astype(np.float32)
NOISE = DRAW.standard_normal(RIGHT.shape).astype(np.float32)


def written(
    path: Path, emulated: np.ndarray | None, candidate: np.ndarray, *, dtype: str = "w8a8", **about: str
) -> Path:
    """A trace with a reference, a candidate in a narrow arithmetic, and its emulation."""
    narrow = {"dtype": dtype, **about}
    sides = [("torch", RIGHT, {}), ("chip", candidate, narrow), ("chip@emulated", emulated, narrow)]
    with TraceWriter(path) as writer:
        for name, values, provenance in sides:
            if values is not None:
                with writer.run(name, target=name, provenance=provenance) as run:
                    run.record("q", values, axes="b t d", positions=np.arange(256))
    return path


def told(path: Path) -> tuple[Comparison, Row]:
    """The comparison of the stored runs and its only row."""
    found = parity.compare_traces(path, path, cand_run="chip")
    (row,) = found.rows()
    return found, row


def test_a_faithful_build_of_a_bad_quantization_is_quantization(tmp_path: Path) -> None:
    rough = RIGHT + 0.9 * NOISE
    found, row = told(written(tmp_path / "t.h5", rough, rough))
    assert found.verdict == "divergence"
    assert row.quantization == pytest.approx(row.error)
    assert row.implementation == 0.0
    assert row.kind == "quantization"


def test_a_wrong_build_of_a_good_quantization_is_a_bug(tmp_path: Path) -> None:
    found, row = told(written(tmp_path / "t.h5", RIGHT + 0.01 * NOISE, RIGHT + 0.9 * NOISE))
    assert found.verdict == "divergence"
    assert row.quantization == pytest.approx(0.01, rel=0.1)
    assert row.implementation == pytest.approx(row.error, rel=0.05)
    assert row.kind == "bug"


def test_one_wrong_row_is_a_bug_though_noise_elsewhere_holds_more_of_the_error(tmp_path: Path) -> None:
    emulated = RIGHT + 0.2 * NOISE
    candidate = emulated.copy()
    candidate[0, 7] = -RIGHT[0, 7]
    _, row = told(written(tmp_path / "t.h5", emulated, candidate))
    assert row.status == "fail"
    assert row.quantization is not None
    assert row.implementation is not None
    assert row.implementation < row.quantization
    assert row.kind == "bug"


def test_a_healthy_build_passes_with_both_parts_and_without_a_bug(tmp_path: Path) -> None:
    emulated = RIGHT + 0.1 * NOISE
    found, row = told(written(tmp_path / "t.h5", emulated, emulated + 0.05 * NOISE[:, ::-1]))
    assert found.verdict == "parity"
    assert row.kind == "quantization"
    assert row.implementation == pytest.approx(0.05, rel=0.1)
    assert not found.culprits


def test_a_stored_candidate_is_judged_by_its_emulation_and_not_by_the_ceiling_of_its_format(
    tmp_path: Path,
) -> None:
    """0.2 is within what int8 may do at most; beside an emulation that does 0.01 it is a fault."""
    values = RIGHT + 0.2 * NOISE
    assert told(written(tmp_path / "bare.h5", None, values))[0].verdict == "parity"
    path = written(tmp_path / "t.h5", RIGHT + 0.01 * NOISE, values)
    assert told(path)[0].verdict == "divergence"
    judged = parity.judge(path)
    assert [found.label for found in judged.result] == ["chip"]
    assert judged["chip"].verdict == "divergence"
    assert judged["chip"].records[0].implementation == pytest.approx(0.2, rel=0.1)


def test_without_an_emulation_nothing_is_told_apart(tmp_path: Path) -> None:
    _, row = told(written(tmp_path / "t.h5", None, RIGHT + 0.9 * NOISE))
    assert row.error is not None
    assert (row.quantization, row.implementation) == (None, None)


def test_nothing_is_told_apart_where_each_went_on_with_its_own_tokens(tmp_path: Path) -> None:
    _, row = told(written(tmp_path / "t.h5", RIGHT + 0.1 * NOISE, RIGHT + 0.1 * NOISE, replay="free"))
    assert (row.quantization, row.implementation) == (None, None)


def test_another_emulated_format_is_rounding(tmp_path: Path) -> None:
    values = RIGHT + 0.5 * NOISE
    _, row = told(written(tmp_path / "t.h5", values, values, dtype="bfloat16"))
    assert row.kind == "rounding"
    assert row.implementation == 0.0


def test_both_parts_survive_the_report(tmp_path: Path) -> None:
    found, row = told(written(tmp_path / "t.h5", RIGHT + 0.01 * NOISE, RIGHT + 0.9 * NOISE))
    (again,) = Comparison.from_json(found.to_json()).rows()
    assert (again.quantization, again.implementation) == (row.quantization, row.implementation)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A model of ours in bf16 in the place of a chip, and torch's bf16 as its emulation."""
    folder = tmp_path_factory.mktemp("emulation")
    request = Request(weights="random:0", scenario="one", steps=2)
    case = build_case(request, progress=Silent(), like=None)
    path = folder / "trace.h5"
    record(Job(parse_spec("torch"), case, Options(), path, folder), progress=Silent())
    forced = reference_values(Trace(path)["torch"])
    chip = Job(parse_spec("chip=torch:bf16"), case, Options(), path, folder, reference=forced)
    record(chip, progress=Silent())
    spec = replace(parse_spec("torch:bf16"), label="chip@emulated")
    return Job(spec, case, Options(), path, folder, reference=forced), path


def test_an_emulation_is_run_once_and_then_taken_from_the_cache(
    emulation: tuple[Job, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, path = emulation
    candidate = Trace(path)["chip"]
    first = emulated_run(job, candidate, tmp_path, progress=Silent())
    monkeypatch.delattr(emulating, "record")
    again = emulated_run(job, candidate, tmp_path, progress=Silent())
    assert again.taps == first.taps
    assert dtypes_of(again) == ("bfloat16",)
    assert [entry.suffix for entry in (tmp_path / "emulated").iterdir()] == [".h5"]


def test_what_the_format_does_to_a_real_run_is_all_of_the_error_of_the_same_arithmetic(
    emulation: tuple[Job, Path], tmp_path: Path
) -> None:
    job, path = emulation
    own = tmp_path / "t.h5"
    own.write_bytes(path.read_bytes())
    run = emulated_run(job, Trace(own)["chip"], tmp_path, progress=Silent())
    keep_emulated(run, own, "chip", 10, Silent())
    assert emulated_of(Trace(own), "chip") is None
    keep_emulated(run, own, "chip", None, Silent())
    assert emulated_of(Trace(own), "chip") is not None
    found = parity.compare_traces(own, own, cand_run="chip")
    rows = [row for row in found.rows() if row.error]
    assert len(rows) > 50
    assert all(row.quantization == pytest.approx(row.error) for row in rows)
    assert all(row.implementation == 0.0 for row in rows)
