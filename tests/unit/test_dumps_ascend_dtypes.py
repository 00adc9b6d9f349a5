"""Three numberings and what they must never share; layouts and their table."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import pytest

from parity.harness.dtypes import NAMES
from parity.harness.errors import UserError
from parity.targets.dumps.ascend.dtypes import ACL, ADUMP, ONNX, Numbering, dtype_of_text
from parity.targets.dumps.ascend.layouts import FORMATS, PLAIN, format_name

#: The rows of the vendor's three tables: word -> (adump, ACL, ONNX).
ROWS: Mapping[str, tuple[int, int, int]] = {
    "float32": (1, 0, 1),
    "float16": (2, 1, 10),
    "int8": (3, 2, 3),
    "uint8": (4, 4, 2),
    "int16": (5, 6, 5),
    "uint16": (6, 7, 4),
    "int32": (7, 3, 6),
    "int64": (8, 9, 7),
    "uint32": (9, 8, 12),
    "uint64": (10, 10, 13),
    "bool": (11, 12, 9),
    "float64": (12, 11, 11),
    "complex64": (16, 16, 14),
    "complex128": (17, 17, 15),
    "bfloat16": (27, 27, 16),
    "int4": (28, 29, 22),
    "float8_e5m2": (34, 35, 19),
    "float8_e4m3fn": (35, 36, 17),
    "float8_e8m0fnu": (36, 37, 24),
}


@pytest.mark.parametrize("word", ROWS)
def test_every_format_has_its_own_code_in_each_numbering(word: str) -> None:
    assert tuple(table.code(word) for table in (ADUMP, ACL, ONNX)) == ROWS[word]
    for table, code in zip((ADUMP, ACL, ONNX), ROWS[word], strict=True):
        assert table.logical(code, "f", "x") == word


def test_code_one_means_something_else_where_it_can() -> None:
    assert [table.logical(1, "f", "x") for table in (ADUMP, ACL, ONNX)] == ["float32", "float16", "float32"]
    assert [table.words[33] for table in (ADUMP, ACL)] == ["hifloat8", "complex32"]


def test_the_onnx_numbering_is_that_of_the_onnx_package() -> None:
    for code, word in ONNX.words.items():
        if word in NAMES:
            assert onnx.helper.tensor_dtype_to_np_dtype(code).name == word


@pytest.mark.parametrize("table", [ADUMP, ACL, ONNX], ids=lambda table: table.name)
def test_no_word_of_a_kept_format_comes_twice(table: Numbering) -> None:
    words = [word for word in table.words.values() if word in NAMES]
    assert len(words) == len(set(words))


def test_unknown_and_unkept_codes_say_so() -> None:
    with pytest.raises(UserError, match="data type 28, which ONNX's numbering does not know"):
        ONNX.logical(28, "f", "x")
    with pytest.raises(UserError, match=r"string .13 of the numbering of ACL., whose numbers cannot be kept"):
        ACL.logical(13, "f", "x")
    with pytest.raises(UserError, match="has no code for it"):
        ACL.code("float8_e3m4")


@pytest.mark.parametrize(
    ("text", "word"),
    [("DT_FLOAT", "float32"), ("torch.bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("DT_BF16", "bfloat16"),
     ("Float32", "float32"), ("DT_DOUBLE", "float64"), ("DT_INT8", "int8")],
)  # fmt: skip
def test_words_of_texts_are_known(text: str, word: str) -> None:
    assert dtype_of_text(text, "f", "x") == word


def test_a_word_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="number format 'DT_WIDE'"):
        dtype_of_text("DT_WIDE", "f", "x")


def test_layouts_that_are_not_plain_are_named() -> None:
    assert {"FRACTAL_NZ", "NC1HWC0", "FRACTAL_Z"} & PLAIN == set()
    assert set(FORMATS.values()) >= PLAIN
    with pytest.raises(UserError, match="format 5"):
        format_name(5, "f", "x")
