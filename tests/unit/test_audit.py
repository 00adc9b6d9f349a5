"""The audit of tolerance policies: our own misses nothing and flags nothing harmless; others are shown up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.auditing import Audit
from parity.cli import cli
from parity.harness.errors import UserError
from parity.harness.traps import FORMATS, shipped


@pytest.fixture(scope="module")
def default() -> Audit:
    return parity.audit()


def test_the_default_policy_misses_no_fault(default: Audit) -> None:
    assert [(trap.name, trap.format) for trap in default.missed] == []


def test_the_default_policy_flags_nothing_harmless(default: Audit) -> None:
    assert [(trap.name, trap.format) for trap in default.cried] == []
    assert default.exit_code == 0


def test_every_trap_of_the_field_is_set_in_every_format_that_can_hold_it(default: Audit) -> None:
    names = {trap.name for trap in default.traps}
    assert len(names) >= 38
    assert {trap.format for trap in default.traps} == set(FORMATS)
    for name in (
        "one NaN",
        "last token",
        "masked scores",
        "stolen top-1",
        "no common name",
        "one step of int8",
    ):
        assert name in names


def test_a_harmless_trap_differs_and_a_fault_is_no_copy() -> None:
    equal = {"bit for bit equal", "zero tensor", "no common name", "a step missing", "a tap missing"}
    for trap in shipped():
        same = all(
            one.values.shape == two.values.shape
            and np.array_equal(one.values.astype(np.float64), two.values.astype(np.float64), equal_nan=True)
            for (_, one), (_, two) in zip(trap.expected, trap.actual, strict=False)
        )
        assert same is (trap.name in equal or trap.name.startswith("empty")), (trap.name, trap.format)


def test_a_loose_policy_is_told_what_it_misses() -> None:
    found = parity.audit("bf16", formats=("float32",))
    assert "tiny and wrong" in {trap.name for trap in found.missed}
    assert "large mean" in {trap.name for trap in found.missed}
    assert found.exit_code == 1


def test_a_strict_policy_is_told_where_it_cries_wolf() -> None:
    found = parity.audit("exact", formats=("float32",))
    assert not found.missed
    assert "rounding" in {trap.name for trap in found.cried}


def test_no_policy_passes_a_comparison_of_nothing() -> None:
    for policy in ("auto", "bf16", "w4a16"):
        missed = {trap.name for trap in parity.audit(policy, formats=("float32",)).missed}
        assert not missed & {
            "no common name",
            "a tap missing",
            "empty on both sides",
            "half of the tensor missing",
        }


def test_traps_of_ones_own_are_set_beside_ours(tmp_path) -> None:
    good = np.linspace(1.0, 2.0, 50)
    for folder, change in (("bugs", 3.0), ("harmless", 1e-9)):
        (tmp_path / folder).mkdir()
        np.savez(
            tmp_path / folder / f"mine-{folder}.npz", expected=good, actual=good + change, twin0=good + 1e-9
        )
    found = {trap.name: trap for trap in parity.audit(traps=tmp_path, formats=("float32",)).traps}
    assert not found["mine-bugs"].missed
    assert not found["mine-harmless"].cried
    assert found["mine-bugs"].verdict == "divergence"


def test_a_harmless_trap_that_holds_nothing_is_undecided_and_no_cry(tmp_path) -> None:
    (tmp_path / "harmless").mkdir()
    np.savez(tmp_path / "harmless" / "empty.npz", expected=np.zeros(0), actual=np.zeros(0))
    found = parity.audit(traps=tmp_path, formats=("float32",))
    assert [trap.name for trap in found.undecided] == ["empty"]
    assert not found.cried
    assert found.exit_code == 1
    said = CliRunner().invoke(cli, ["audit", "--format", "float32", "--traps", str(tmp_path)]).output
    assert "UNDECIDED" in said
    assert "the records hold no values" in said
    assert "nothing can be said of 1" in said


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int64])
def test_a_trap_of_whole_numbers_or_truth_values_is_judged(dtype: type, tmp_path) -> None:
    values = np.array([True, False, True, True]).astype(dtype)
    for folder, actual in (("bugs", ~values.astype(bool)), ("harmless", values)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / f"{folder}.npz", expected=values, actual=actual.astype(dtype))
    found = {trap.name: trap.verdict for trap in parity.audit(traps=tmp_path, formats=("float32",)).traps}
    assert (found["bugs"], found["harmless"]) == ("divergence", "parity")


def test_a_folder_without_traps_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"traps=.*holds neither bugs/\*\.npz"):
        parity.audit(traps=tmp_path)


def test_a_trap_without_its_arrays_is_refused(tmp_path) -> None:
    (tmp_path / "bugs").mkdir()
    np.savez(tmp_path / "bugs" / "a.npz", expected=np.zeros(3))
    with pytest.raises(UserError, match="has no array 'actual'"):
        parity.audit(traps=tmp_path)
    (tmp_path / "bugs" / "a.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="cannot be read as npz"):
        parity.audit(traps=tmp_path)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="format='float33'"):
        parity.audit(formats=("float33",))


def test_the_command_prints_what_is_missed_and_exits_with_1() -> None:
    done = CliRunner().invoke(cli, ["audit", "bf16", "--format", "float32"])
    assert done.exit_code == 1
    assert "MISSED" in done.output
    assert "misses" in done.output.splitlines()[-1]
    data = json.loads(CliRunner().invoke(cli, ["audit", "exact", "--json"]).stdout)
    assert data["exit_code"] == 1
    assert {"name", "format", "verdict", "cried", "missed", "harmless", "ratio", "undecided", "doubt"} == set(
        data["traps"][0]
    )
