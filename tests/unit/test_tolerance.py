"""Tolerances: the formula, the table of bounds, and a user's file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.dtypes import NAMES
from parity.harness.errors import UserError
from parity.harness.metrics import measure
from parity.harness.tolerance import PROFILES, Bound, Tolerance, describe, load_tolerance, within


def test_the_formula_is_not_symmetric_and_includes_its_border() -> None:
    assert within(1.5, 1.0, 0.25, 0.25)
    assert not within(1.0, 0.5, 0.25, 0.25)


def test_nan_never_holds_and_infinity_only_with_its_own_sign() -> None:
    a = np.array([np.nan, np.nan, np.inf, np.inf, -np.inf, 1.0, np.inf])
    e = np.array([np.nan, 1.0, np.inf, -np.inf, -np.inf, np.inf, 1.0])
    assert within(a, e, 1e300, 1e300).tolist() == [False, False, True, False, True, False, False]


def test_64_bit_integers_are_held_exactly() -> None:
    big = np.array([2**62 + 1], np.int64)
    assert not within(big, big - 1, 0.0, 0.0).any()
    assert within(big, big, 0.0, 0.0).all()


def test_low_precision_errors_are_not_computed_in_low_precision() -> None:
    e = np.array([256.0], ml_dtypes.bfloat16)
    assert not within(np.array([257.0], np.float32), e, 0.5, 0.0).any()


def test_the_compiled_pass_counts_by_the_same_formula_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    e = rng.standard_normal(20000).astype(np.float32)
    bound = 0.01 + 0.1 * np.abs(e.astype(np.float64))
    for a in (e + bound, np.nextafter(e + bound, np.inf), e - bound):
        assert measure(a, e, atol=0.01, rtol=0.1).mismatched == (~within(a, e, 0.01, 0.1)).sum()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_bound_for_every_number_format(profile: str) -> None:
    assert set(PROFILES[profile]) == set(NAMES)


def test_the_coarser_of_both_formats_decides() -> None:
    tolerance = load_tolerance("fp32")
    fine = tolerance.bound("x", "float32", "float32")
    coarse = tolerance.bound("x", "bfloat16", "bfloat16")
    assert (
        tolerance.bound("x", "float32", "bfloat16") == tolerance.bound("x", "bfloat16", "float32") == coarse
    )
    assert coarse.atol > fine.atol


def test_token_ids_are_exact_and_quantized_integers_may_be_one_step_off() -> None:
    for profile in ("fp32", "bf16", "w8a8"):
        assert load_tolerance(profile).bound("ids", "int64", "int64") == Bound(0.0, 0.0)
    assert load_tolerance("w8a8").bound("q", "int8", "int8") == Bound(1.0, 0.0)


def test_auto_has_a_kind_and_falls_back_to_the_format() -> None:
    auto = load_tolerance("auto")
    assert (auto.kind, load_tolerance("fp32").kind) == ("auto", "bound")
    for name, profile in (
        ("float32", "fp32"),
        ("float16", "fp16"),
        ("bfloat16", "bf16"),
        ("float64", "fp64"),
    ):
        assert auto.bound("x", name, name) == PROFILES[profile][name]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tol.toml"
    path.write_text(text)
    return str(path)


def test_overrides_go_by_glob_and_the_last_one_holds(tmp_path: Path) -> None:
    tolerance = load_tolerance(
        write(
            tmp_path,
            """
            profile = "fp32"
            allow_nonfinite = ["*.scores"]
            [[override]]
            taps = "layer*.q"
            atol = 0.5
            reason = "int8 rotation table"
            [[override]]
            taps = "layer3.*"
            rtol = 1e-7
            """,
        )
    )
    base = PROFILES["fp32"]["float32"]
    assert tolerance.bound("layer1.q", "float32", "float32") == Bound(0.5, base.rtol)
    assert tolerance.bound("layer3.q", "float32", "float32") == Bound(base.atol, 1e-7)
    assert tolerance.bound("logits", "float32", "float32") == base
    assert tolerance.overrides("layer1.q")
    assert not tolerance.overrides("logits")
    assert tolerance.reason("layer1.q") == "int8 rotation table"
    assert tolerance.allows_nonfinite("layer0.scores")
    assert not tolerance.allows_nonfinite("logits")
    assert tolerance.name == "tol.toml (fp32)"


def test_globs_that_match_nothing_are_reported(tmp_path: Path) -> None:
    text = 'allow_nonfinite = ["sores"]\n[[override]]\ntaps = "layr*"\natol = 0.0\n'
    tolerance = load_tolerance(write(tmp_path, text))
    assert tolerance.unmatched(["layer0.q", "scores"]) == ["layr*", "sores"]
    assert Tolerance("fp32").unmatched(["layer0.q"]) == []


def test_loosening_needs_a_reason_and_tightening_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loosens the profile 'fp32' without a reason"):
        load_tolerance(write(tmp_path, 'profile = "fp32"\n[[override]]\ntaps = "q"\natol = 1.0\n'))
    load_tolerance(write(tmp_path, 'profile = "fp32"\n[[override]]\ntaps = "q"\natol = 1e-9\n'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profile = ", "is not TOML"),
        ("profil = 'fp32'", "Did you mean 'profile'"),
        ("profile = 'fp23'", "Did you mean 'fp32'"),
        ("profile = 3", "unknown"),
        ("override = 3", r"\[\[override\]\]"),
        ("allow_nonfinite = 'x'", "list of tap globs"),
        ("[[override]]\natol = 1", "should be a tap glob"),
        ("[[override]]\ntaps = 'x'", "neither atol nor rtol"),
        ("[[override]]\ntaps = 'x'\natol = -1", "at least 0"),
        ("[[override]]\ntaps = 'x'\natol = nan", "at least 0"),
        ("[[override]]\ntaps = 'x'\natol = true", "at least 0"),
        ("[[override]]\ntaps = 'x'\natol = '1'", "at least 0"),
        ("[[override]]\ntaps = 'x'\nreason = 3\natol = 0", "should be a sentence"),
        ("[[override]]\ntap = 'x'", "Did you mean 'taps'"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_tolerance(write(tmp_path, text))


@pytest.mark.parametrize("spec", ["fp23", "bfp16", "nonsense"])
def test_an_unknown_profile_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="is no profile and no file"):
        load_tolerance(spec)


def test_a_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_tolerance(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        load_tolerance(str(tmp_path / "bad.toml"))


def test_the_printed_table_comes_from_the_code() -> None:
    text = describe()
    assert "|a - e| <= atol + rtol * |e|" in text
    for name, row in PROFILES.items():
        assert f"| {name} |" in text
        assert f"{row['bfloat16'].atol:g} / {row['bfloat16'].rtol:g}" in text


def test_an_unknown_number_format_is_refused() -> None:
    with pytest.raises(UserError, match="unknown number format"):
        load_tolerance("fp32").bound("x", "float23", "float32")
