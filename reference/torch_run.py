"""The trusted run: the whole model in eager torch, with no trick between the formula and the result.

Layout `recompute` feeds the whole history at every step and keeps no cache at all; `grow` keeps every row.
Which rows may be attended to is the cache policy's business and the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.arrays import checked_device, to_array
from parity.harness.case import CachePolicy, Case, Step
from parity.harness.dtypes import WORDS, dtype_of_word
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress
from parity.harness.segmented import last_real
from parity.harness.target import Facts, Options
from parity.harness.tracer import step as mark_step
from parity.harness.values import Values

from .policies import visible

LAYOUTS = ("recompute", "grow")


@dataclass
class TorchSession:
    """Executes steps with the whole module."""

    module: nn.Module
    policy: CachePolicy
    layout: str
    device: str
    facts: Facts
    _tokens: Tensor | None = None
    _positions: Tensor | None = None
    _past: Any = field(default=None, repr=False)

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Logits `[B, V]`; records the rows of the new tokens."""
        if step.reset:
            self._tokens = self._positions = self._past = None
        new = torch.from_numpy(tokens).to(self.device)
        at = torch.from_numpy(positions).to(self.device)
        rows = tokens.shape[1]
        with torch.no_grad(), mark_step(step.index, rows=rows, positions=positions, whole_caches=step.last):
            logits = self._recompute(new, at) if self.layout == "recompute" else self._grow(new, at)
        return last_real(to_array(logits), positions)

    def _remember(self, new: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        self._tokens = new if self._tokens is None else torch.cat([self._tokens, new], dim=1)
        self._positions = at if self._positions is None else torch.cat([self._positions, at], dim=1)
        return self._tokens, self._positions

    def _recompute(self, new: Tensor, at: Tensor) -> Tensor:
        tokens, held = self._remember(new, at)
        logits, _ = self.module(tokens, positions_bt=held, mask_bts=visible(held, held, self.policy))
        return torch.as_tensor(logits[:, -new.shape[1] :])

    def _grow(self, new: Tensor, at: Tensor) -> Tensor:
        _, held = self._remember(new, at)
        logits, self._past = self.module(
            new, positions_bt=at, mask_bts=visible(at, held, self.policy), past=self._past
        )
        return torch.as_tensor(logits)

    def close(self) -> None:
        """Let go of the caches."""
        self._past = None


class TorchTarget:
    """`torch[:dtype+layout][@device]`: eager torch."""

    name = "torch"
    summary = "eager torch, the whole model; fp64, fp32, fp16, bf16; layouts recompute, grow; any device"

    def missing(self) -> str | None:
        """Always there: torch is a base dependency."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Unknown words, number formats and devices."""
        parse_arg(arg, default_dtype=options.dtype)
        checked_device(options.device)

    def prepare(
        self,
        case: Case,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> TorchSession:
        """Load the checkpoint strictly and cast it."""
        dtype, layout = parse_arg(arg, default_dtype=options.dtype)
        device = checked_device(options.device)
        module = load_module(case).to(device=device, dtype=getattr(torch, dtype))
        facts = Facts(
            dtype=dtype,
            layout=layout,
            cache_records="rows",
            substitutions=() if dtype == "float32" else (f"weights and tables cast to {dtype}",),
            details={"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__},
        )
        return TorchSession(module, case.scenario.policy, layout, device, facts)


def parse_arg(arg: str, *, default_dtype: str | None) -> tuple[str, str]:
    """`bf16`, `grow`, `fp64+grow` -> logical dtype and layout."""
    dtype, layout = dtype_of_word(default_dtype or "fp32"), "recompute"
    for word in filter(None, arg.split("+")):
        if word in LAYOUTS:
            layout = word
        elif word in WORDS or word in WORDS.values():
            dtype = dtype_of_word(word)
        else:
            raise UserError(f"torch:{arg}: {word!r} is unknown. {did_you_mean(word, [*WORDS, *LAYOUTS])}")
    return dtype, layout


def load_module(case: Case) -> nn.Module:
    """The whole model with the case's weights, strictly loaded, in eval mode."""
    module = case.model.build()
    module.load_state_dict(dict(case.state), strict=True)
    return module.eval()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run with so many torch threads; the number before is restored."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
