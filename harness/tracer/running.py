"""`running`: the original tool's way to record a run, into a file of the working folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..errors import UserError, did_you_mean
from .store import store
from .taps import recording


@contextmanager
def running(
    name: str, enable: bool = True, save: bool = True, dtype: Any = None, no_grad: bool = True
) -> Iterator[None]:
    """Record every tap inside as run `name`, appended to the trace file of the working folder.

    The file is `traced_tensors.h5`, or what PARITY_TRACE names. A name that the file already has becomes
    a new generation, said on stderr; `compare()` takes the newest. So a loop that opens `running("x")`
    for every token ends with the last token's records being compared; put the loop inside, or mark
    `step(i)`, to compare them all.

    enable=False changes nothing: an outer run goes on recording. save=False keeps the run in memory, for
    `compare()` in this process. dtype (torch, numpy or a name) casts floating records, the original type
    is kept in their meta. no_grad turns gradients off inside, where torch has been imported.
    """
    if not enable:
        yield
        return
    wanted = _dtype_name(dtype)
    with _no_grad(no_grad), store.run(name, save=save) as sink, recording(sink, dtype=wanted):
        yield


def _no_grad(wanted: bool) -> AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return torch.no_grad() if wanted and torch is not None else nullcontext()


def _dtype_name(dtype: Any) -> str | None:
    """The logical name of a torch dtype, a numpy dtype or a name; UserError if it is not a float type."""
    if dtype is None:
        return None
    from ..dtypes import NAMES, logical_dtype

    name = str(dtype).removeprefix("torch.")
    if name not in NAMES:
        import numpy as np

        try:
            name = np.dtype(dtype).name
        except TypeError:
            raise UserError(f"dtype={dtype!r}: unknown number format. {did_you_mean(name, NAMES)}") from None
    logical_dtype(name)
    if not name.startswith(("float", "bfloat")):
        raise UserError(f"dtype={name}: records can be cast to a floating type only")
    return name
