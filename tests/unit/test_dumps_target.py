"""A dump as a side of a run: played at its steps, refused when of another case, honest about the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import parity
from parity.harness.errors import UserError
from parity.harness.trace import Run
from parity.targets.dump import last_rows
from parity.targets.dumps import cvi, npz, parity_dump, raw

CASE = {"model": "klm-tiny", "weights": "random:0", "scenario": "one", "steps": 2, "tol": "fp32"}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "trace.h5"
    case = {name: value for name, value in CASE.items() if name != "tol"}
    parity.record("torch", out=path, **case)
    return path


def run_of(trace: Path) -> Run:
    return parity.Trace(trace)["torch"]


def steps_of(run: Run, keep: Callable[[str, int], bool] = lambda tap, step: True) -> list[dict[str, Any]]:
    """A run as the steps of a dump, ids beside the records."""
    steps: dict[int, dict[str, Any]] = {}
    for record in run.records():
        step = steps.setdefault(record.step, {"index": record.step, "tokens": None, "records": []})
        if record.tap == "ids":
            step["tokens"] = record.read().tolist()
        elif keep(record.tap, record.step):
            positions = record.positions
            said = {"tap": record.tap, "call": record.call, "axes": record.axes}
            said["positions"] = None if positions is None else np.atleast_2d(positions).tolist()
            step["records"].append({**said, "array": record.read()})
    return list(steps.values())


def written(folder: Path, trace: Path, *, change: Change | None = None, **manifest: Any) -> Path:
    """A dump of the reference's own values, one step of it changed."""
    steps = steps_of(run_of(trace))
    if change is not None:
        change(steps[1])
    parity_dump.write(folder / "dump", steps, **manifest)
    return folder / "dump"


def compared(trace: Path, spec: str, out: Path, **options: Any) -> Any:
    """The result of holding a dump against the stored reference."""
    return parity.run(ref=f"{trace}:torch", cand=[spec], out=out, **{**CASE, **options})


def test_a_dump_of_what_the_reference_computed_is_at_parity(trace, tmp_path):
    dump = written(tmp_path, trace)
    result = compared(trace, f"dump:{dump}", tmp_path / "out")
    (found,) = result.comparisons
    assert result.exit_code == 0
    assert found.coverage.share == 1.0
    assert all(row.status == "equal" for row in found.rows())
    provenance = parity.Trace(tmp_path / "out" / "trace.h5").runs[-1].provenance
    assert provenance["details"]["dump"]["kind"] == "parity"
    assert provenance["details"]["chip"] == "cv181x"


def test_a_wrong_channel_in_a_dump_is_found_where_it_is(trace, tmp_path):
    def change(step: dict[str, Any]) -> None:
        record = next(item for item in step["records"] if item["tap"] == "layer1.q")
        record["array"] = record["array"].copy()
        record["array"][0, 1, 0, 3] += 1.0

    dump = written(tmp_path, trace, change=change)
    (found,) = compared(trace, f"dump:{dump}", tmp_path / "out").comparisons
    assert found.verdict == "divergence"
    assert (found.first.tap, found.first.step) == ("layer1.q", 1)


def test_what_the_dump_does_not_hold_is_listed_and_never_a_fault(trace, tmp_path):
    kept = ("layer0.q", "layer2.residual", "logits")
    steps = steps_of(run_of(trace), lambda tap, step: tap in kept and (step > 0 or tap == "logits"))
    parity_dump.write(tmp_path / "dump", steps)
    result = compared(trace, f"dump:{tmp_path / 'dump'}", tmp_path / "out")
    (found,) = result.comparisons
    assert result.exit_code == 0
    rows = {(row.tap, row.step): (row.status, row.reason) for row in found.rows()}
    assert rows["layer0.k", 1] == ("skipped", "not in the dump")
    assert rows["layer0.q", 0] == ("skipped", "not in the dump at these steps")
    assert rows["layer0.q", 1][0] == "equal"
    assert found.coverage.share < 0.5


def test_a_dump_without_logits_cannot_pass(trace, tmp_path):
    steps = steps_of(run_of(trace), lambda tap, step: tap != "logits")
    parity_dump.write(tmp_path / "dump", steps)
    (found,) = compared(trace, f"dump:{tmp_path / 'dump'}", tmp_path / "out").comparisons
    assert found.verdict != "parity"
    assert any(row.tap == "logits" and row.status == "missing" for row in found.rows())


def test_a_dump_of_another_prompt_is_refused(trace, tmp_path):
    def change(step: dict[str, Any]) -> None:
        step["tokens"] = [[step["tokens"][0][0] ^ 1]]

    dump = written(tmp_path, trace, change=change)
    with pytest.raises(UserError, match=r"step 1 of the dump was fed .*another prompt"):
        compared(trace, f"dump:{dump}", tmp_path / "out")


def test_ids_recorded_as_a_tap_are_checked_too(trace, tmp_path):
    def change(step: dict[str, Any]) -> None:
        step["records"].insert(0, {"array": np.array([[511]], np.int32), "tap": "ids"})
        step["tokens"] = None

    dump = written(tmp_path, trace, change=change)
    with pytest.raises(UserError, match="another prompt"):
        compared(trace, f"dump:{dump}", tmp_path / "out")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"provenance": {"model": "klm", "weights": "0"}}, "is of model 'klm'"),
        ({"provenance": {"model": "klm-tiny", "weights": "0"}}, "is of weights '0'"),
        ({"scenario": {"policy": "full"}}, "scenario with policy 'full'"),
        ({"scenario": {"policy": "window(63)", "resets": [1]}}, "scenario with resets"),
    ],
)
def test_a_dump_that_says_it_is_of_another_case_is_refused(said, match, trace, tmp_path):
    dump = written(tmp_path, trace, **said)
    with pytest.raises(UserError, match=match):
        compared(trace, f"dump:{dump}", tmp_path / "out")


def test_a_dump_of_a_stranger_is_refused_with_names_of_both_sides(trace, tmp_path):
    npz.write(tmp_path / "any.npz", {("conv1", 0, 0): np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"holds conv1 \.\.\., none of which is a tap of this case \(ids"):
        compared(trace, f"dump:{tmp_path / 'any.npz'}", tmp_path / "out")


def test_names_of_the_original_programs_are_known(trace, tmp_path):
    """`seg0.q` of the first keyboard demo is `layer0.q`."""
    run = run_of(trace)
    npz.write(
        tmp_path / "any.npz", {("seg0.q", 1, 0): run["layer0.q", 1], ("logits", 1, 0): run["logits", 1]}
    )
    result = compared(trace, f"dump:{tmp_path / 'any.npz'}", tmp_path / "out")
    (found,) = result.comparisons
    assert {(row.tap, row.step) for row in found.rows() if row.status == "equal"} >= {("layer0.q", 1)}
    assert any("its token ids were not checked" in finding.text for finding in found.findings)


def test_a_map_file_names_and_transforms_what_the_dump_holds(trace, tmp_path):
    run = run_of(trace)
    arrays = {("blk.0.query", 1, 0): run["layer0.q", 1].swapaxes(1, 3), ("logits", 1, 0): run["logits", 1]}
    npz.write(tmp_path / "any.npz", arrays)
    transform = '[[transform]]\ntaps = "blk.*"\nop = "transpose"\nargs = [0, 3, 2, 1]\n'
    (tmp_path / "map.toml").write_text(f'[rename]\n"blk.*.query" = "layer*.q"\n{transform}')
    spec, file = f"dump:{tmp_path / 'any.npz'}", str(tmp_path / "map.toml")
    (found,) = compared(trace, spec, tmp_path / "out", map=file).comparisons
    row = next(row for row in found.rows() if (row.tap, row.step) == ("layer0.q", 1))
    assert row.status == "equal"
    assert "transpose" in row.rule
    assert "blk.0.query" in row.rule


def test_padding_to_four_dimensions_is_undone_with_the_references_shape(trace, tmp_path):
    """A board's npz of a cvimodel: the tap's name by the artefact's manifest, its rank by the reference."""
    run = run_of(trace)
    residual = run["layer1.residual", 1].astype(ml_dtypes.bfloat16)
    cvi.write(tmp_path / "out.npz", {"residual_Add": residual, "logits_f32": run["logits", 1]}, {})
    tensors = [
        {"mlir": "residual_Add", "tap": "layer1.residual", "format": "bf16"},
        {"mlir": "logits_f32", "tap": "logits", "format": "fp32"},
    ]
    (tmp_path / "manifest.json").write_text(
        json.dumps({"chip": "cv181x", "mode": "bf16", "tensors": tensors})
    )
    spec = f"dump:{tmp_path / 'out.npz'}+kind=cvi-npz+manifest={tmp_path / 'manifest.json'}+step_offset=1"
    (found,) = compared(trace, spec, tmp_path / "out", tol="bf16").comparisons
    row = next(row for row in found.rows() if (row.tap, row.step) == ("layer1.residual", 1))
    assert (row.status, row.dtype) == ("pass", "bfloat16")
    assert parity.Trace(tmp_path / "out" / "trace.h5").runs[-1].provenance["dtype"] == "bfloat16"


def test_a_device_that_was_stopped_is_a_warning(trace, tmp_path):
    dump = written(tmp_path, trace, complete=False)
    (found,) = compared(trace, f"dump:{dump}", tmp_path / "out").comparisons
    assert any("was stopped while it wrote" in finding.text for finding in found.findings)


def test_a_dump_can_be_the_reference_when_it_went_its_own_way(trace, tmp_path):
    dump = written(tmp_path, trace)
    result = parity.run(ref=f"dump:{dump}", cand=["segmented"], out=tmp_path / "out", **CASE)
    assert result.exit_code == 0


def test_a_forced_dump_as_the_reference_says_how_to_name_it(trace, tmp_path):
    def change(step: dict[str, Any]) -> None:
        step["tokens"] = [[step["tokens"][0][0] ^ 1]]

    dump = written(tmp_path, trace, change=change)
    with pytest.raises(UserError, match="import it with `parity import` and name the run"):
        parity.run(ref=f"dump:{dump}", cand=["segmented"], out=tmp_path / "out", **CASE)


def test_calls_with_a_gap_are_not_moved_together(trace, tmp_path):
    run = run_of(trace)
    raw.write(tmp_path / "dump", [({"name": "logits", "call": 1}, run["logits", 0])])
    with pytest.raises(UserError, match="has call 1 of step 0 where call 0 should be"):
        compared(trace, f"dump:{tmp_path / 'dump'}", tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("dump:absent", "is not there"),
        ("dump:.+kind=npzz", "Did you mean"),
        ("dump:.+step_offset=x", "should be a whole number"),
        ("dump:.", "looks like no kind"),
    ],
)
def test_what_is_no_dump_is_refused_before_anything_runs(spec, match, trace, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=match):
        compared(trace, spec, tmp_path / "out")


@pytest.mark.slow
def test_a_module_of_the_users_is_held_against_what_its_device_wrote(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x)\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return Net().eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 4), np.float32))
    case = {"model": "mynet:build", "inputs": str(tmp_path / "inputs.npz"), "tol": "fp32"}
    parity.run(ref="torch", cand=["onnx"], out=tmp_path / "first", **case)
    own = parity.Trace(tmp_path / "first" / "trace.h5")["torch"]
    npz.write(tmp_path / "board.npz", {("output", 0, 0): own["output"]})
    result = parity.run(ref="torch", cand=[f"dump:{tmp_path / 'board.npz'}"], out=tmp_path / "out", **case)
    assert result.exit_code == 0
    wrong = own["output"] + 1
    npz.write(tmp_path / "wrong.npz", {("output", 0, 0): wrong})
    result = parity.run(ref="torch", cand=[f"dump:{tmp_path / 'wrong.npz'}"], out=tmp_path / "bad", **case)
    assert result.exit_code == 1


def test_a_dump_without_token_ids_is_warned_of(trace, tmp_path):
    steps = steps_of(run_of(trace))
    (told,) = compared(trace, f"dump:{written(tmp_path, trace)}", tmp_path / "told").comparisons
    assert not [finding for finding in told.findings if finding.level == "warning"]
    for step in steps:
        step["tokens"] = None
    parity_dump.write(tmp_path / "silent", steps)
    (found,) = compared(trace, f"dump:{tmp_path / 'silent'}", tmp_path / "out").comparisons
    (warning,) = [finding.text for finding in found.findings if finding.level == "warning"]
    assert "its token ids were not checked: it has none" in warning


def test_the_digests_of_a_dumps_models_are_its_runs_artefacts(trace, tmp_path):
    models = {"seg_0": {"file": "a", "sha256": "aa"}, "seg_1": {"file": None, "sha256": None}}
    compared(trace, f"dump:{written(tmp_path, trace, models=models)}", tmp_path / "out")
    details = parity.Trace(tmp_path / "out" / "trace.h5").runs[-1].provenance["details"]
    assert details["artefacts"] == {"seg_0": "aa"}


def test_logits_of_the_last_real_token_are_what_a_step_predicts_from():
    logits = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    positions = np.array([[0, 1], [0, -1]])
    assert last_rows(logits, positions).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert last_rows(logits[:, :1], positions).tolist() == [[0, 1, 2], [6, 7, 8]]
    assert last_rows(logits[:, 0], positions).tolist() == [[0, 1, 2], [6, 7, 8]]
    assert last_rows(logits[0, 0], positions) is None
    assert last_rows(logits[:1], positions) is None
