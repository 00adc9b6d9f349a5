"""`prefilled`: started from a KV cache that was filled on the host and shipped as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from parity.harness.arrays import checked_device, to_array, to_tensor
from parity.harness.case import Case, Step, Wiring, plan
from parity.harness.dtypes import dtype_of_word
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.progress import Progress
from parity.harness.segmented import needs_mask
from parity.harness.target import Options, Unobserved
from parity.harness.values import Values

from .hosted import Filled, HostedSession
from .prefilled_files import Prefilled, read, write
from .segmented import new_cache, parse_arg, refuse_segments, torch_session

#: Rotary rows shipped with a cache, as the original prefill ships.
ROPE_ROWS = 32768


def shipped_rows(filled: Prefilled, wiring: Wiring, dtype: torch.dtype) -> Callable[..., list[Filled]]:
    """What a prefill step takes from the files, in the segments' number format."""
    names = [row.cache for row in wiring.caches]
    planes = [_cast(filled.past_k, dtype), _cast(filled.past_v, dtype)]

    def fill(step: Step, positions: np.ndarray) -> list[Filled]:
        if not np.array_equal(np.sort(positions), np.sort(filled.positions)):
            raise InconclusiveError(
                f"prefilled: the files hold {filled.positions.shape[1]} rows a sequence, the prompt has "
                f"{positions.shape[1]}; prefill this prompt, or pass it with --prompt"
            )
        return [(name, planes[at % 2][at // 2], filled.positions) for at, name in enumerate(names)]

    return fill


def _cast(array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return to_array(to_tensor(array).to(dtype))


class PrefilledTarget:
    """`prefilled[:DIR]`: the files of a folder, or of the reference's own prefill shipped through files."""

    name = "prefilled"
    summary = "torch segments started from past_k, past_v and rope files; prefilled:DIR takes yours"

    def missing(self) -> str | None:
        """Always there."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Files that are not there, unknown number formats and devices; `segments`, which changes nothing."""
        refuse_segments(self.name, options)
        if arg:
            read(Path(arg))
        dtype_of_word(options.dtype or "fp32")
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
    ) -> HostedSession:
        """Write the reference's cache (unless a folder is given), load it back, cut the segments."""
        if case.scenario.chunks:
            raise UserError(
                "prefilled: its prompt comes whole from files, it is not fed in chunks; leave chunks out, or "
                "run segmented"
            )
        folder = Path(arg) if arg else workdir / "prefilled"
        if not arg:
            if reference is None:
                raise UserError(
                    "prefilled: as the reference it needs files; use prefilled:DIR, made by `parity prefill`"
                )
            write(folder, collect(case, reference))
        filled = read(folder)
        layout, dtype = parse_arg("", case.scenario, options.dtype)
        windowed = case.scenario.policy.window is not None
        masked = needs_mask(padded=case.scenario.padded, windowed=windowed, layout=layout, static=False)
        inner = torch_session(case, new_cache(case, layout), layout, dtype, masked, options)
        inner.rope = _Shipped(filled, dtype)
        facts = replace(
            inner.facts,
            unobserved=(Unobserved("*", "prefilled on the host", steps=prefill_steps(case)),),
            substitutions=(
                *inner.facts.substitutions,
                f"the prompt's keys and values come from files in {folder.name}",
            ),
        )
        return HostedSession(inner, shipped_rows(filled, inner.wiring, dtype), facts)


class _Shipped:
    """Rotary rows from the shipped file, in the segments' number format."""

    def __init__(self, filled: Prefilled, dtype: torch.dtype) -> None:
        self._filled, self._dtype = filled, dtype

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return _cast(self._filled.rows(positions), self._dtype)


def prefill_steps(case: Case) -> tuple[int, ...]:
    """Indices of the steps that a host prefill replaces."""
    return tuple(step.index for step in plan(case.scenario) if step.kind == "prefill")


def collect(case: Case, reference: Values, *, rope_rows: int = ROPE_ROWS) -> Prefilled:
    """The cache after the prompt as the reference recorded it, with the rotary rows that follow."""
    first = plan(case.scenario)[0]
    positions = np.array(first.positions, np.int64)
    caches = case.model.wiring.caches
    stacks = [
        np.stack([reference.at(row.source, 0, positions) for row in caches[plane::2]]).astype(np.float32)
        for plane in (0, 1)
    ]
    start = int(positions.max(axis=1).min()) + 1
    return Prefilled(stacks[0], stacks[1], _rope(case, start, rope_rows), positions, start)


def _rope(case: Case, start: int, count: int) -> np.ndarray:
    module = case.model.build()
    module.load_state_dict(dict(case.state), strict=True)
    longest = getattr(case.model.config, "max_length", start + count)
    rows = torch.arange(start, min(start + count, longest))[None]
    with torch.no_grad():
        return np.asarray(case.model.rope(module, rows).float().numpy())
