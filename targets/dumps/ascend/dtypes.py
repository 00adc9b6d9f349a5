"""Three numberings of number formats that look alike and are not: 1 is float32, float16 or float32 again.

They are never merged and never guessed: each reader names the one its files use. Source: `dump_data.proto`
of oam-tools and runtime (ADUMP), `atb_probe.h` of msprobe and `nano_dump_data.py` (ACL), ONNX TensorProto.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from parity.harness.dtypes import NAMES
from parity.harness.errors import UserError, did_you_mean

from ..core import bad


@dataclass(frozen=True)
class Numbering:
    """Code -> word. A word is one of parity's logical formats where numbers of it can be kept."""

    name: str
    words: Mapping[int, str]

    def word(self, code: int, path: str | os.PathLike[str], what: str) -> str:
        """The word of a code; UserError for a code that the numbering does not have."""
        if code not in self.words:
            raise bad(path, f"{what} has the data type {code}, which {self.name} does not know")
        return self.words[code]

    def logical(self, code: int, path: str | os.PathLike[str], what: str) -> str:
        """The logical format of a code; UserError for unknown codes and for formats that are not kept."""
        word = self.word(code, path, what)
        if word not in NAMES:
            raise bad(
                path,
                f"{what} is of type {word} ({code} of {self.name}), whose numbers cannot be kept; "
                "leave it out with leave_out=NAME",
            )
        return word

    def code(self, word: str) -> int:
        """The code of a word, for writers; UserError where the numbering has none."""
        for code, known in self.words.items():
            if known == word:
                return code
        raise UserError(f"dtype={word!r}: {self.name} has no code for it. {did_you_mean(word, NAMES)}")


#: `OutputDataType` of an AscendCL dump's protobuf.
ADUMP = Numbering(
    "the numbering of AscendCL dumps",
    {
        0: "undefined",
        1: "float32",
        2: "float16",
        3: "int8",
        4: "uint8",
        5: "int16",
        6: "uint16",
        7: "int32",
        8: "int64",
        9: "uint32",
        10: "uint64",
        11: "bool",
        12: "float64",
        13: "string",
        14: "dual_sub_int8",
        15: "dual_sub_uint8",
        16: "complex64",
        17: "complex128",
        18: "qint8",
        19: "qint16",
        20: "qint32",
        21: "quint8",
        22: "quint16",
        23: "resource",
        24: "string_ref",
        25: "dual",
        26: "variant",
        27: "bfloat16",
        28: "int4",
        29: "uint1",
        30: "int2",
        31: "uint2",
        32: "complex32",
        33: "hifloat8",
        34: "float8_e5m2",
        35: "float8_e4m3fn",
        36: "float8_e8m0fnu",
        37: "float6_e3m2",
        38: "float6_e2m3",
        39: "float4_e2m1",
        40: "float4_e1m2",
        41: "hifloat4",
        42: "hifloat4_scale",
    },
)

#: `aclDataType` and GE's `DataType`: ATB files, nano dumps, descriptions of an .om.
ACL = Numbering(
    "the numbering of ACL",
    {
        -1: "undefined",
        0: "float32",
        1: "float16",
        2: "int8",
        3: "int32",
        4: "uint8",
        6: "int16",
        7: "uint16",
        8: "uint32",
        9: "int64",
        10: "uint64",
        11: "float64",
        12: "bool",
        13: "string",
        14: "dual_sub_int8",
        15: "dual_sub_uint8",
        16: "complex64",
        17: "complex128",
        18: "qint8",
        19: "qint16",
        20: "qint32",
        21: "quint8",
        22: "quint16",
        23: "resource",
        24: "string_ref",
        25: "dual",
        26: "variant",
        27: "bfloat16",
        28: "undefined",
        29: "int4",
        30: "uint1",
        31: "int2",
        32: "uint2",
        33: "complex32",
        34: "hifloat8",
        35: "float8_e5m2",
        36: "float8_e4m3fn",
        37: "float8_e8m0fnu",
        38: "float6_e3m2",
        39: "float6_e2m3",
        40: "float4_e2m1",
        41: "float4_e1m2",
    },
)

#: ONNX `TensorProto.DataType`: graphs that describe the outputs of an .om.
ONNX = Numbering(
    "ONNX's numbering",
    {
        0: "undefined",
        1: "float32",
        2: "uint8",
        3: "int8",
        4: "uint16",
        5: "int16",
        6: "int32",
        7: "int64",
        8: "string",
        9: "bool",
        10: "float16",
        11: "float64",
        12: "uint32",
        13: "uint64",
        14: "complex64",
        15: "complex128",
        16: "bfloat16",
        17: "float8_e4m3fn",
        18: "float8_e4m3fnuz",
        19: "float8_e5m2",
        20: "float8_e5m2fnuz",
        21: "uint4",
        22: "int4",
        23: "float4_e2m1",
        24: "float8_e8m0fnu",
    },
)

#: What texts call the formats: GE's words without `DT_`, ATB's csv and torch's, in lower case.
WORDS: Mapping[str, str] = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}


def dtype_of_text(text: str, path: str | os.PathLike[str], what: str) -> str:
    """The logical format that a word names (`DT_FLOAT`, `torch.float16`, `bf16`); UserError for others."""
    plain = text.strip().lower().removeprefix("dt_").removeprefix("torch.")
    word = WORDS.get(plain, plain)
    if word not in NAMES:
        raise bad(path, f"{what} has the number format {text!r}. {did_you_mean(word, NAMES)}")
    return word
