"""Which library of the toolchain plays the chip."""

from __future__ import annotations

from parity.harness.errors import UserError, did_you_mean

_CVI = {"libcviruntime.so": "libcviruntime.so", "libcvicmodel.so": "libcvicmodel.so"}


def _bm(chip: str, bmlib: str = "bm1684x") -> dict[str, str]:
    return {
        "libcmodel.so": f"libcmodel_{chip}.so",
        "libbmlib.so.0": f"libbmlib_{bmlib}.so.0",
        "libbmrt.so.1.0": "libbmrt.so.1.0",
    }


#: Chip -> the name that the runtime asks the loader for -> the file in `lib/` that must answer. The stock
#: tools bend a link inside the package instead, which is why they run one chip at a time.
CHIP_LIBRARIES: dict[str, dict[str, str]] = {
    "cv180x": _CVI,
    "cv181x": _CVI,
    "cv182x": _CVI,
    "cv183x": _CVI,
    "bm1684": _bm("bm1684"),
    "bm1684x": _bm("bm1684x"),
    "bm1684x2": _bm("bm1684x2", "bm1684x2"),
    "bm1688": _bm("bm1688"),
    "cv186x": _bm("bm1688"),
    "cv184x": _bm("cv184x"),
}


def chip_libraries(chip: str) -> dict[str, str]:
    """A row of the table; UserError for a chip that is not in it."""
    if chip not in CHIP_LIBRARIES:
        raise UserError(f"chip={chip!r}: unknown. {did_you_mean(chip, CHIP_LIBRARIES)}")
    return CHIP_LIBRARIES[chip]
