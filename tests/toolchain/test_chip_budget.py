"""Parts of a chip's candidate exchanged: the guilty segment, its share, a plan that holds when compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

import parity
from parity.harness.errors import UserError
from parity.targets.sophgo.asked import qtables
from parity.targets.sophgo.compile.tables import read_qtable, write_qtable

CASE = {"scenario": "exact", "steps": 4, "weights": "random:0"}


def test_a_plan_for_int8_reaches_its_target_when_it_is_compiled_and_run(toolchain, tmp_path: Path):
    case = {**CASE, "steps": 24}
    before = parity.budget(cand="cvi:int8", **case).budget
    assert 0.6 < before.explained < 1.6
    assert sum(share.error > 0 for share in before.shares) >= 4
    target = 0.6 * before.whole
    result = parity.budget(cand="cvi:int8", target_kl=target, qtable=tmp_path / "tables", **case)
    kept = result.budget.plan
    assert kept is not None
    assert 0 < len(kept.parts) < 5
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(
        f"{part}_qtable.txt" for part in kept.parts
    )
    assert result.achieved is not None
    assert result.achieved < before.whole
    assert result.exit_code == int(result.achieved > target)
    assert set(read_qtable(Path(result.tables[0])).values()) == {"BF16"}


def test_a_table_of_no_segment_is_refused(tmp_path: Path):
    write_qtable(tmp_path / "seg_9_qtable.txt", {"x": "BF16"})
    with pytest.raises(UserError, match="is of no segment"):
        qtables(tmp_path, ["seg_0", "seg_1"])
    with pytest.raises(UserError, match="holds no SEGMENT_qtable"):
        qtables(tmp_path.parent / tmp_path.name / "..", ["seg_0"])


def test_a_segment_that_the_chip_gets_wrong_is_found(toolchain, tmp_path: Path, monkeypatch):
    """One segment is compiled from other weights than the reference has."""
    from parity.targets.sophgo import graphs as module

    original = module.build

    def wrong(part, segment, *rest):
        if segment.name == "seg_1":
            part.layer_bottom.ln2.weight.mul_(1.5)
        return original(part, segment, *rest)

    monkeypatch.setattr(module, "build", wrong)
    result = parity.bisect(cand="cvi", out=tmp_path / "out", **CASE)
    assert result.culprits == ("seg_1",)
    assert result.found.proven


def test_a_few_tokens_of_a_chip_are_scored(toolchain):
    result = parity.evaluate(cand="cvi", tokens=6, weights="random:0")
    found = result.candidates[0].found
    assert found is not None, result.candidates[0].failure
    assert found.own.count == 6
    assert 0 < found.kl_mean < 0.1
