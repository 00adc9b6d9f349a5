"""Chips and the number formats that the compiler really gives them: every row was compiled (tests/toolchain).

The compiler takes more modes than it has: some it replaces without a word, at some it crashes. Those are
refused here, with what would have happened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from parity.harness.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Mode:
    """A number format of arithmetic; `format` is what operators come out in, `weight_bits` of weights alone.

    `calibrated`: needs a table of thresholds. `group_size`: of weights that share a scale, by default.
    """

    name: str
    format: str
    weight_bits: int | None = None
    calibrated: bool = False
    group_size: int = 0


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("f32", "f32"),
        Mode("f16", "f16"),
        Mode("bf16", "bf16"),
        Mode("int8", "int8", calibrated=True),
        Mode("w8f16", "f16", weight_bits=8, group_size=64),
        Mode("w8bf16", "bf16", weight_bits=8, group_size=64),
        Mode("w4f16", "f16", weight_bits=4, group_size=64),
        Mode("w4bf16", "bf16", weight_bits=4, group_size=64),
    )
}

GROUP_SIZES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Chip:
    """`family` says which runtime loads its artefacts; `note` what a person should know before."""

    name: str
    family: str
    suffix: str
    modes: tuple[str, ...]
    note: str = ""


_CVI = ("bf16", "int8")
_BM = ("f32", "f16", "bf16", "int8", "w8f16", "w8bf16", "w4f16", "w4bf16")
_ATTENTION = "attention in f16 is a kernel that is built while compiling, with cmake, make and g++"


def _cvi(name: str) -> Chip:
    return Chip(name, "cvi", ".cvimodel", _CVI)


def _bm(name: str, modes: tuple[str, ...], note: str = "") -> Chip:
    return Chip(name, "bm", ".bmodel", modes, note)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _cvi("cv180x"),
        _cvi("cv181x"),
        _cvi("cv182x"),
        _cvi("cv183x"),
        _bm("cv184x", ("bf16", "int8", "w8bf16", "w4bf16")),
        _bm("cv186x", _BM, _ATTENTION),
        _bm("bm1684", ("f32", "int8")),
        _bm("bm1684x", _BM),
        _bm("bm1684x2", tuple(mode for mode in _BM if mode != "f32")),
        _bm("bm1688", _BM, _ATTENTION),
    )
}

#: (chip, mode) -> what the compiler makes of a mode that it takes and has not.
_REPLACED = (
    (r"cv18[0-3]x", {"f16": "bf16", "w8bf16": "bf16", "w4bf16": "bf16", "int4": "int8", "w4int8": "int8"}),
    (r"cv184x", {"f16": "bf16"}),
    (r"bm1684", {"int4": "int8"}),
)


def chip_named(name: str) -> Chip:
    """A row of the table; UserError for a chip that is not in it."""
    if name not in CHIPS:
        raise UserError(f"chip={name!r}: unknown. {did_you_mean(name, CHIPS)}")
    return CHIPS[name]


def mode_for(chip: Chip, name: str) -> Mode:
    """The mode if the chip has it; UserError says what the compiler would have done instead."""
    word = name.lower()
    if word in chip.modes:
        return MODES[word]
    has = ", ".join(chip.modes)
    for pattern, table in _REPLACED:
        if re.fullmatch(pattern, chip.name) and word in table:
            raise UserError(
                f"mode={name!r}: {chip.name} has no {word}: the compiler would take it and compute "
                f"{table[word]} without a word; {chip.name} has {has}"
            )
    if word in MODES:
        raise UserError(f"mode={name!r}: the compiler has no {word} for {chip.name}; it has {has}")
    raise UserError(f"mode={name!r}: unknown. {did_you_mean(word, chip.modes)}")


def group_size_for(mode: Mode, asked: int | None) -> int:
    """Weights per scale; UserError for a size that the compiler has not, or a mode without groups."""
    if asked is None:
        return mode.group_size
    if not mode.group_size:
        raise UserError(
            f"group_size={asked}: {mode.name} has no groups of weights; they belong to w8* and w4*"
        )
    if asked not in GROUP_SIZES:
        raise UserError(f"group_size={asked}: should be one of {', '.join(map(str, GROUP_SIZES))}")
    return asked
