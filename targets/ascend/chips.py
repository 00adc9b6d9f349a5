"""The Ascend chips whose command lines can be written."""

from __future__ import annotations

from dataclasses import dataclass

from parity.harness.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Chip:
    """A chip family as `--chip` names it.

    `socs` are the values that `--soc_version` takes, the usual one first. `always_saturates`: fp16 overflow
    becomes 65504 whatever the environment says.
    """

    name: str
    socs: tuple[str, ...]
    always_saturates: bool
    note: str


_A2 = tuple(f"Ascend910B{number}" for number in (1, 2, 3, 4))

#: Source: the vendor's `atc` and MindIE manuals; the boards' own answer is `npu-smi info`.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "ascend310b",
            ("Ascend310B4", "Ascend310B1", "Ascend310B2", "Ascend310B3"),
            False,
            "Atlas 200I/500 A2 and the Orange Pi AI Pro (8 TOPS: 310B4, 20 TOPS: 310B1)",
        ),
        Chip("ascend310p", ("Ascend310P3", "Ascend310P1"), True, "Atlas 300I Pro, 300I Duo"),
        Chip("ascend910b", _A2, False, "Atlas A2 training and inference series"),
    )
}


def chip_of(name: str) -> tuple[Chip, str]:
    """A chip and its `--soc_version` from a family (`ascend310b`) or a version (`Ascend310B1`, any case)."""
    word = name.lower()
    if word in CHIPS:
        return CHIPS[word], CHIPS[word].socs[0]
    for chip in CHIPS.values():
        for soc in chip.socs:
            if soc.lower() == word:
                return chip, soc
    raise UserError(f"chip={name!r}: no such Ascend chip is known. {did_you_mean(word, CHIPS)}")
