"""Files that `torch.save` wrote, loaded without running what is in them.

`weights_only` alone is not enough: a tensor in such a file may claim a size that its storage does not have,
and a compressed member may inflate without end. So the zip is checked first, storages stay in the file
(mapped, so that none can be enlarged), and every tensor is held against its storage.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import LARGEST_TENSOR, bad, first_bytes, size_of
from .zips import MAGIC, check_zip, mishaps, verify

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes of the largest description of objects in a file; tensors lie elsewhere.
LARGEST_PICKLE = 1 << 26
#: A view may show its storage's elements so often (repeated heads of a cache), not more.
MOST_REPEATS = 256


def looks_like_torch(path: Path) -> bool:
    """Whether a file is named and begins like one of torch.save's."""
    return path.suffix in (".pt", ".pth", ".bin") and first_bytes(path, 4) == MAGIC


def load_torch(path: Path) -> Any:
    """The object of a file, its tensors on the CPU and still in the file; UserError for everything else.

    Check each tensor with `checked_tensor` before its values are taken.
    """
    if first_bytes(path, 4) != MAGIC:
        raise bad(path, "is not of the zip form that torch.save has written since 1.6; save it again")
    infos = check_zip(path, size_of(path))
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED:
            raise bad(path, f"{info.filename!r} in it is compressed, which torch.save never does")
        if info.filename.endswith(".pkl") and info.file_size > LARGEST_PICKLE:
            raise bad(
                path, f"{info.filename!r} in it has {info.file_size} bytes, too many for a list of tensors"
            )
    verify(path, infos)
    import torch

    with mishaps(path, "what torch.save wrote"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def checked_tensor(path: Path, what: str, found: Any) -> Tensor:
    """A dense CPU tensor that is as large as it says; UserError for anything else."""
    import torch

    if not isinstance(found, torch.Tensor) or type(found) not in (torch.Tensor, torch.nn.Parameter):
        raise bad(path, f"{what} is a {type(found).__name__}, where a tensor is expected")
    if found.layout != torch.strided or found.is_quantized or found.device.type != "cpu":
        raise bad(path, f"{what} is no plain tensor ({found.layout}, {found.dtype}, {found.device})")
    held = found.untyped_storage().nbytes()
    needed = found.numel() * found.element_size()
    if needed > LARGEST_TENSOR or needed > MOST_REPEATS * held:
        raise bad(
            path, f"{what} of shape {list(found.shape)} needs {needed} bytes, but the file holds {held}"
        )
    return found.detach()
