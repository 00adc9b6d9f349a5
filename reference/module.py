"""The trusted run of a module of the user's: eager torch, eval mode, no gradients, taps by hooks."""

from __future__ import annotations

from pathlib import Path

import torch

from parity.harness.arrays import checked_device
from parity.harness.case import ModuleCase
from parity.harness.dtypes import WORDS, dtype_of_word
from parity.harness.errors import UserError, did_you_mean
from parity.harness.module_session import ModuleSession, Original, dtype_of, prepared, tensors
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options
from parity.harness.values import Values


class ModuleReference:
    """`torch[:dtype][@device]` for a `ModuleCase`."""

    name = "torch"
    summary = "eager torch, any module; fp64, fp32, fp16, bf16 or as it was built; any device"

    def missing(self) -> str | None:
        """Always there: torch is a base dependency."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Unknown number formats and devices."""
        wanted_dtype(arg, options)
        checked_device(options.device)

    def prepare(
        self,
        case: ModuleCase,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> ModuleSession:
        """A copy of the module in eval mode, as it was built or cast to the type that was asked for."""
        dtype = wanted_dtype(arg, options)
        device = checked_device(options.device)
        module, said = prepared(case.module, dtype=dtype, device=device)
        facts = Facts(
            dtype=dtype or dtype_of(module),
            layout="call",
            substitutions=said,
            details={"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__},
        )
        inputs = tensors(module, case.inputs, dtype=dtype, device=device)
        original = Original.of(case) if reference is not None else None
        return ModuleSession(module, inputs, facts, UserError, options.seed, original, handed=options.handed)


def wanted_dtype(arg: str, options: Options) -> str | None:
    """The logical dtype that was asked for; None: as the factory built it."""
    word = arg or options.dtype
    if not word:
        return None
    if word not in WORDS and word not in WORDS.values():
        raise UserError(f"torch:{arg}: {word!r} is no dtype. {did_you_mean(word, WORDS)}")
    return dtype_of_word(word)
