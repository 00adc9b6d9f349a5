"""Effective number formats: what was silently replaced is an error, what was asked for is not."""

from __future__ import annotations

import pytest

from parity.harness.errors import CandidateError
from parity.targets.sophgo.compile.chips import MODES, chip_named
from parity.targets.sophgo.compile.formats import Effective, effective
from parity.targets.sophgo.compile.mlir import Format, Graph, Op

CV181X, BM1684X = chip_named("cv181x"), chip_named("bm1684x")


def graph(*ops: tuple[str, str, str], attributes: str = "", reads: tuple[str, ...] = ("x", "w")) -> Graph:
    """Operators as (kind, name, format)."""
    made = (Op(kind, (name,), (Format(form, (1, 8)),), reads, attributes) for kind, name, form in ops)
    return Graph(tuple(made), (), {})


TOP = Graph(
    (
        Op("top.Weight", ("w",), (Format("f32", (8, 8)),), (), ""),
        Op("top.MatMul", ("p",), (Format("f32", (1, 8)),), ("x", "w"), ""),
        Op("top.MatMul", ("scores",), (Format("f32", (1, 8)),), ("x", "y"), ""),
    ),
    (),
    {},
)


def read(tpu: Graph, mode: str, chip: str = "cv181x", **qtable: str) -> Effective:
    return effective(tpu, TOP, chip_named(chip), MODES[mode], qtable)


def test_formats_are_counted_without_moves_and_casts():
    tpu = graph(
        ("tpu.MatMul", "p", "bf16"),
        ("tpu.Reshape", "r", "f32"),
        ("tpu.Cast", "c", "f32"),
        ("top.Input", "x", "f32"),
    )
    assert read(tpu, "bf16") == Effective({"bf16": 1}, ())


def test_another_16_bit_format_than_asked_for_is_an_error_with_the_list():
    tpu = graph(("tpu.MatMul", "p", "bf16"), ("tpu.Add", "s", "bf16"))
    with pytest.raises(
        CandidateError, match="mode=f16: the compiler computes p, s on bm1684x in bf16 instead of f16"
    ):
        read(tpu, "f16", "bm1684x")


def test_float32_in_the_place_of_a_narrower_format_is_said_and_fine():
    found = read(graph(("tpu.MatMul", "p", "f16"), ("tpu.Active", "silu", "f32")), "f16", "bm1684x")
    assert [(item.tensor, item.format) for item in found.kept] == [("silu", "f32")]


def test_what_a_qtable_asks_for_is_no_replacement():
    found = read(graph(("tpu.MatMul", "p", "bf16"), ("tpu.Add", "s", "f16")), "bf16", "bm1684x", s="F16")
    assert [(item.tensor, item.why) for item in found.kept] == [("s", "asked for by the qtable")]


@pytest.mark.parametrize(("word", "got"), [("F32", "f16"), ("F16", "bf16"), ("INT8", "f16")])
def test_what_a_qtable_asks_for_and_does_not_get_is_an_error(word, got):
    tpu = graph(("tpu.MatMul", "p", "int8"), ("tpu.Add", "s", got))
    with pytest.raises(CandidateError, match=f"qtable: the compiler computes s on bm1684x in {got} instead"):
        read(tpu, "int8", "bm1684x", s=word)


def test_int8_without_any_int8_is_an_error():
    with pytest.raises(CandidateError, match="computes p, s on cv181x in bf16 instead of int8"):
        read(graph(("tpu.MatMul", "p", "bf16"), ("tpu.Add", "s", "bf16")), "int8")


def test_weights_left_in_float_in_int8_are_an_error_that_names_them():
    tpu = graph(("tpu.MatMul", "p", "bf16"), ("tpu.Add", "s", "int8"))
    with pytest.raises(
        CandidateError, match="left the weights of p in bf16: if that is meant, say so by a qtable"
    ):
        read(tpu, "int8")
    assert read(tpu, "int8", p="BF16").counts == {"bf16": 1, "int8": 1}


def test_a_product_of_two_activations_may_stay_in_float_in_int8():
    tpu = graph(("tpu.MatMul", "p", "int8"), ("tpu.MatMul", "scores", "bf16"))
    assert [item.tensor for item in read(tpu, "int8").kept] == ["scores"]


def test_weights_wider_than_asked_for_are_an_error_with_the_remedy():
    tpu = graph(("tpu.MatMul", "p", "f16"), ("tpu.MatMul", "scores", "f16"))
    with pytest.raises(
        CandidateError, match="left the weights of p in f16: choose a group size that divides"
    ):
        read(tpu, "w4f16", "bm1684x")


def test_weights_of_the_asked_width_are_fine_and_others_not():
    four = graph(("tpu.A16MatMul", "p", "f16"), attributes="{weight_bits = 4 : i64}")
    assert read(four, "w4f16", "bm1684x").counts == {"f16": 1}
    with pytest.raises(CandidateError, match="mode=w8f16: the compiler left the weights of p"):
        read(four, "w8f16", "bm1684x")


def test_a_long_list_is_cut_and_counted():
    tpu = graph(*(("tpu.Add", f"s{at}", "bf16") for at in range(9)))
    with pytest.raises(CandidateError, match="s5 and 3 more"):
        read(tpu, "f16", "bm1684x")
