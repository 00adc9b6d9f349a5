"""Device layouts and how each is undone. What no rule is declared for is refused by its name.

Padding that a layout adds holds undefined values; it is cut off and never reaches a statistic.
Source: msaccucmp's converters, held against this module by the tests marked `vendor`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from ..core import bad

#: Format code -> name, the same in AscendCL dumps and in ACL; -1 is ACL's undefined.
FORMATS = {
    -1: "UNDEFINED",
    0: "NCHW",
    1: "NHWC",
    2: "ND",
    3: "NC1HWC0",
    4: "FRACTAL_Z",
    12: "NC1HWC0_C04",
    13: "FRACTAL_Z_C04",
    16: "HWCN",
    27: "NDHWC",
    29: "FRACTAL_NZ",
    30: "NCDHW",
    32: "NDC1HWC0",
    33: "FRACTAL_Z_3D",
    37: "FRACTAL_Z_3D_TRANSPOSE",
    40: "RESERVED",
    43: "ND_RNN_BIAS",
    44: "FRACTAL_ZN_RNN",
    47: "NCL",
    255: "MAX",
}
#: Layouts whose elements lie in the order of the stated shape.
PLAIN = frozenset({"UNDEFINED", "NCHW", "NHWC", "ND", "HWCN", "NDHWC", "NCDHW", "RESERVED", "NCL", "MAX"})
#: Rows of a fractal, whatever the number format.
FRACTAL_ROWS = 16


def format_name(code: int, path: str | os.PathLike[str], what: str) -> str:
    """The name of a format code; UserError for one that is not in the table."""
    if code not in FORMATS:
        raise bad(path, f"{what} has the format {code}, which is not known")
    return FORMATS[code]


def logical_shape(
    layout: str, physical: Sequence[int], original: Sequence[int], path: str | os.PathLike[str], what: str
) -> tuple[int, ...]:
    """The shape after `undo`; UserError for a layout without a rule and for shapes that contradict it."""
    if layout in PLAIN:
        return tuple(physical)
    if layout not in ("FRACTAL_NZ", "NC1HWC0", "NC1HWC0_C04"):
        raise bad(
            path,
            f"{what} lies in the device layout {layout}, which cannot be undone here; "
            "leave it out with leave_out=NAME",
        )
    if not original:
        raise bad(
            path, f"{what} lies in the layout {layout} without its original shape; where it ends is lost"
        )
    fits = _nz_fits if layout == "FRACTAL_NZ" else _c0_fits
    if not fits(tuple(physical), tuple(original)):
        raise bad(
            path, f"{what}: {list(physical)} in {layout} cannot hold the original shape {list(original)}"
        )
    return tuple(original)


def _nz_fits(physical: tuple[int, ...], original: tuple[int, ...]) -> bool:
    """(..., N1, M1, 16, N0) holds (..., M, N) if nothing but padding is left over in the last two.

    The dimensions before them may have been merged: they lie in the same order.
    """
    if len(physical) < 4 or physical[-2] != FRACTAL_ROWS:
        return False
    lead, (n1, m1, m0, n0) = physical[:-4], physical[-4:]
    rows = (1, *original) if len(original) == 1 else original
    same = math.prod(lead) == math.prod(rows[:-2])
    return same and m1 * m0 - m0 < rows[-2] <= m1 * m0 and n1 * n0 - n0 < rows[-1] <= n1 * n0


def _c0_fits(physical: tuple[int, ...], original: tuple[int, ...]) -> bool:
    """(N, C1, H, W, C0) holds (N, C, H, W)."""
    if len(physical) != 5 or len(original) != 4:
        return False
    n, c1, h, w, c0 = physical
    return original == (n, original[1], h, w) and c1 * c0 - c0 < original[1] <= c1 * c0


def undo(layout: str, array: np.ndarray, original: Sequence[int]) -> np.ndarray:
    """The logical array of a physical one, padding cut off; `logical_shape` has accepted the shapes."""
    if layout in PLAIN:
        return array
    if layout == "FRACTAL_NZ":
        return _undo_nz(array, tuple(original))
    n, c1, h, w, c0 = array.shape
    rows = array.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c0, h, w)
    return np.ascontiguousarray(rows[:, : original[1]])


def _undo_nz(array: np.ndarray, original: tuple[int, ...]) -> np.ndarray:
    *lead, n1, m1, m0, n0 = array.shape
    rows = np.moveaxis(array, -4, -2).reshape(*lead, m1 * m0, n1 * n0)
    height = original[-2] if len(original) > 1 else 1
    return np.ascontiguousarray(rows[..., :height, : original[-1]]).reshape(original)
