"""Which library of the toolchain plays the chip."""

from __future__ import annotations

from pathlib import Path

from parity.harness.errors import UserError, did_you_mean

_Files = dict[str, tuple[str, ...]]
_CVI: _Files = {"libcviruntime.so": ("libcviruntime.so",), "libcvicmodel.so": ("libcvicmodel.so",)}
#: Older packages have one bmlib for all but the newest chip, under its plain name.
_BMLIB = ("libbmlib_bm1684x.so.0", "libbmlib.so.0")


def _bm(chip: str, bmlib: tuple[str, ...] = _BMLIB) -> _Files:
    return {
        "libcmodel.so": (f"libcmodel_{chip}.so",),
        "libbmlib.so.0": bmlib,
        "libbmrt.so.1.0": ("libbmrt.so.1.0",),
    }


#: Chip -> the name that the runtime asks the loader for -> the files in `lib/` that may answer, best first.
#: The stock tools bend a link inside the package instead, which is why they run one chip at a time.
CHIP_LIBRARIES: dict[str, _Files] = {
    "cv180x": _CVI,
    "cv181x": _CVI,
    "cv182x": _CVI,
    "cv183x": _CVI,
    "bm1684": _bm("bm1684"),
    "bm1684x": _bm("bm1684x"),
    "bm1684x2": _bm("bm1684x2", ("libbmlib_bm1684x2.so.0",)),
    "bm1688": _bm("bm1688"),
    "cv186x": _bm("bm1688"),
    "cv184x": _bm("cv184x"),
}


def chip_libraries(package: Path, chip: str) -> dict[str, Path]:
    """Name -> file of a package; the first choice where it has none. UserError for an unknown chip."""
    if chip not in CHIP_LIBRARIES:
        raise UserError(f"chip={chip!r}: unknown. {did_you_mean(chip, CHIP_LIBRARIES)}")
    return {name: _first(package / "lib", files) for name, files in CHIP_LIBRARIES[chip].items()}


def _first(folder: Path, files: tuple[str, ...]) -> Path:
    return next((folder / file for file in files if (folder / file).is_file()), folder / files[0])
