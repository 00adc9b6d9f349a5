"""The arithmetic profile: what is known is derived, what is not is said."""

from __future__ import annotations

from typing import Any

import pytest

from parity.harness.errors import UserError
from parity.targets.ascend import ArithmeticProfile, profile_of
from parity.targets.ascend.profile import SWITCHES

FIXED = {
    "LCCL_DETERMINISTIC": "1",
    "HCCL_DETERMINISTIC": "true",
    "ATB_MATMUL_SHUFFLE_K_ENABLE": "0",
    "ATB_LLM_LCOC_ENABLE": "0",
}


@pytest.mark.parametrize(
    ("environment", "order"),
    [
        (FIXED, "fixed"),
        ({**FIXED, "ATB_MATMUL_SHUFFLE_K_ENABLE": "1"}, "varies"),
        ({**FIXED, "ATB_MATMUL_SHUFFLE_K_ENABLE": "1", "CLOSE_MATMUL_K_SHIFT": "1"}, "fixed"),
        ({**FIXED, "HCCL_OP_EXPANSION_MODE": "AIV"}, "varies"),
        ({}, "varies"),
        (None, "unknown"),
    ],
)
def test_the_order_of_sums_is_fixed_only_if_every_switch_says_so(environment: Any, order: str) -> None:
    said = {} if environment is None else {"environment": environment}
    assert profile_of(said).order == order


@pytest.mark.parametrize(
    ("chip", "environment", "overflow"),
    [
        ("ascend310b", {}, "saturates"),
        ("ascend310b", {"INF_NAN_MODE_ENABLE": "1"}, "inf"),
        ("ascend310p", {"INF_NAN_MODE_ENABLE": "1"}, "saturates"),
        ("ascend910b", {}, "unknown"),
        ("ascend910b", {"INF_NAN_MODE_ENABLE": "1"}, "inf"),
        ("ascend910b", {"INF_NAN_MODE_ENABLE": "1", "INF_NAN_MODE_FORCE_DISABLE": "1"}, "saturates"),
        ("ascend310b", None, "unknown"),
        (None, {}, "unknown"),
    ],
)
def test_overflow_depends_on_the_chip_and_the_switch(
    chip: str | None, environment: Any, overflow: str
) -> None:
    said = {"chip": chip, "environment": environment}
    assert profile_of({key: value for key, value in said.items() if value is not None}).overflow == overflow


def test_what_nothing_tells_is_unknown_and_listed() -> None:
    profile = profile_of({})
    assert profile == ArithmeticProfile()
    assert profile.unknown == ("chip", "precision_mode", "overflow", "order", "rounding", "deq_scale")
    assert profile.facts()["switches"] == {}


def test_other_variables_of_the_environment_are_not_kept() -> None:
    profile = profile_of({"environment": {"HOME": "/x", "LCCL_DETERMINISTIC": "1"}, "cann": "8.0"})
    assert profile.switches == {"LCCL_DETERMINISTIC": "1"}
    assert profile.details == {"cann": "8.0"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"speed": 1}, "manifest key='speed'"),
        ({"format": "parity-dump"}, "says 'parity-ascend'"),
        ({"chip": "cv181x"}, "no such Ascend chip"),
        ({"precision_mode": "fast"}, "precision_mode='fast'"),
        ({"rounding": "up"}, "rounding='up'"),
        ({"deq_scale": 3}, "deq_scale=3"),
        ({"environment": []}, "an object of texts"),
        ({"environment": {"A": 1}}, "an object of texts"),
    ],
)
def test_a_manifest_with_mistakes_is_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        profile_of(said)


def test_every_switch_says_what_it_does() -> None:
    assert len({switch.name for switch in SWITCHES}) == len(SWITCHES) == 8
    assert all(switch.effect for switch in SWITCHES)
