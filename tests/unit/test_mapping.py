"""The map file: declared differences only, each of them used or complained about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.mapping import TapMap, load_map

GOOD = """
[rename]
"module:layers.*.attn" = "module:h.*.attention"
"module:norm" = "module:ln_f"
[axes]
"module:layers.*" = "b t d"
[inputs]
"tokens" = "input_ids"
[[transform]]
taps = "module:layers.*.attn"
op = "transpose"
args = [0, 2, 1]
[[transform]]
taps = "module:layers.0.*"
op = "squeeze"
args = [0]
[[transform]]
taps = "q"
op = "dequantize"
args = { scale = [0.5, 2.0], zero_point = 1, axis = 0 }
[[transform]]
taps = "flat"
op = "reshape"
args = [2, -1]
"""


def written(folder: Path, text: str) -> TapMap:
    path = folder / "map.toml"
    path.write_text(text)
    return load_map(path)


def test_a_star_on_the_right_takes_what_the_star_on_the_left_matched(tmp_path: Path) -> None:
    tapmap = written(tmp_path, GOOD)
    assert tapmap.rename("module:layers.11.attn") == "module:h.11.attention"
    assert tapmap.rename("module:norm") == "module:ln_f"
    assert tapmap.rename("module:layers.0.mlp") == "module:layers.0.mlp"
    assert tapmap.axes("module:layers.3.mlp") == "b t d"
    assert tapmap.axes("logits") is None
    assert (tapmap.input("tokens"), tapmap.input("mask")) == ("input_ids", "mask")


def test_transforms_are_applied_in_file_order_and_said_in_words(tmp_path: Path) -> None:
    tapmap = written(tmp_path, GOOD)
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    done = tapmap.apply("module:layers.0.attn", array)
    np.testing.assert_array_equal(done, array[0].T)
    assert tapmap.rule("module:layers.0.attn") == (
        "renamed from module:layers.0.attn, transpose [0, 2, 1], squeeze [0] (declared in map.toml)"
    )
    assert tapmap.rule("logits") == ""
    assert tapmap.apply("logits", array) is array
    assert tapmap.apply("flat", array).shape == (2, 3)


def test_dequantize_takes_one_scale_per_channel(tmp_path: Path) -> None:
    tapmap = written(tmp_path, GOOD)
    real = tapmap.apply("q", np.array([[3, -127], [2, 1]], np.int8))
    np.testing.assert_array_equal(real, np.array([[1.0, -64.0], [2.0, 0.0]], np.float32))
    with pytest.raises(UserError, match="needs integers"):
        tapmap.apply("q", np.zeros((2, 2), np.float32))


def test_a_transform_that_does_not_fit_names_tap_and_shape(tmp_path: Path) -> None:
    sentence = r"transpose \[0, 2, 1\] does not fit 'module:layers.0.attn' of shape \(4,\)"
    with pytest.raises(UserError, match=sentence):
        written(tmp_path, GOOD).apply("module:layers.0.attn", np.zeros(4))


def test_entries_that_matched_nothing_are_listed(tmp_path: Path) -> None:
    tapmap = written(tmp_path, GOOD)
    assert tapmap.unmatched(["module:layers.0.attn", "q"]) == ['rename "module:norm"', 'transform "flat"']
    assert tapmap.unmatched_inputs(["input_ids"]) == ['inputs "tokens"']


def test_two_taps_under_one_name_are_refused(tmp_path: Path) -> None:
    tapmap = written(tmp_path, '[rename]\n"a" = "b"\n')
    assert tapmap.names(["a", "c"]) == {"b": "a", "c": "c"}
    with pytest.raises(UserError, match="'a' and 'b' are both mapped onto 'b'"):
        tapmap.names(["a", "b"])
    with pytest.raises(UserError, match="both mapped onto 'x'"):
        written(tmp_path, '[rename]\n"a" = "x"\n"b" = "x"\n')


def test_swapped_names_are_no_collision(tmp_path: Path) -> None:
    tapmap = written(tmp_path, '[rename]\n"k" = "v"\n"v" = "k"\n')
    assert tapmap.names(["k", "v"]) == {"v": "k", "k": "v"}


def test_an_exact_name_goes_before_a_glob_and_two_globs_are_ambiguous(tmp_path: Path) -> None:
    tapmap = written(tmp_path, '[rename]\n"l.*" = "h.*"\n"l.1" = "one"\n"*.2" = "two.*"\n')
    assert tapmap.rename("l.1") == "one"
    with pytest.raises(UserError, match=r"both match 'l\.2'"):
        tapmap.rename("l.2")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[renames]\n", "Did you mean 'rename'"),
        ("[rename]\na = 1\n", "holds lines like"),
        ("transform = 3\n", r"write \[\[transform\]\]"),
        ("[[transform]]\ntaps = 'a'\nop = 'transpos'\nargs = [0]\n", "Did you mean 'transpose'"),
        ("[[transform]]\ntaps = 'a'\nop = 'squeeze'\n", "lacks 'args'"),
        ("[[transform]]\ntaps = 'a'\nop = 'squeeze'\nargs = 'x'\n", "whole numbers"),
        ("[[transform]]\ntaps = 'a'\nop = 'squeeze'\nargs = [0]\naxis = 1\n", "unknown key of"),
        ("[[transform]]\ntaps = 'a'\nop = 'dequantize'\nargs = [0]\n", r"scale = \.\."),
        ("[rename]\n'a' = 'b*'\n", "more stars"),
        ("[rename\n", "is not TOML"),
    ],
)
def test_a_wrong_map_file_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        written(tmp_path, text)


def test_a_map_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_map(tmp_path / "none.toml")
