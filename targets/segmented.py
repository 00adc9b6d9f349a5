"""`segmented`: the model cut into head, blocks and tail in torch, the cache kept outside the graphs."""

from __future__ import annotations

from pathlib import Path

import torch

from parity.harness.arrays import checked_device
from parity.harness.case import Case, Scenario
from parity.harness.dtypes import WORDS, dtype_of_word
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress
from parity.harness.segmented import FAR, Cache, SegmentedSession, needs_mask
from parity.harness.target import Facts, Options
from parity.harness.values import Values

from .caches import GrowCache, WindowCache
from .torch_segments import RopeTable, TorchExecutor

LAYOUTS = ("window", "grow", "recompute")


class SegmentedTarget:
    """`segmented[:layout+dtype][@device]`."""

    name = "segmented"
    summary = "head, blocks and tail in torch, cache outside; layouts window, grow, recompute"

    def missing(self) -> str | None:
        """Always there."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Unknown words, number formats and devices; `segments`, which would change nothing."""
        refuse_segments(self.name, options)
        _words(arg, options.dtype)
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
    ) -> SegmentedSession:
        """Cut the checkpoint into segments, strictly."""
        layout, dtype = parse_arg(arg, case.scenario, options.dtype)
        masked = needs_mask(
            padded=case.scenario.padded,
            windowed=case.scenario.policy.window is not None,
            layout=layout,
            static=False,
        )
        return torch_session(case, new_cache(case, layout), layout, dtype, masked, options)


def refuse_segments(target: str, options: Options) -> None:
    """UserError for a choice of segments where torch runs all of them."""
    if options.segments is not None:
        raise UserError(
            f"segments={options.segments!r}: all segments of {target} are run by torch; leave it out, or "
            "name candidates that choose: --cand onnx, `parity export`, `parity compile`"
        )


def torch_session(
    case: Case, cache: Cache, layout: str, dtype: torch.dtype, masked: bool, options: Options
) -> SegmentedSession:
    """A session over torch segments with the cache given."""
    wiring = case.model.masked_wiring if masked else case.model.wiring
    device = checked_device(options.device)
    name = str(dtype).removeprefix("torch.")
    return SegmentedSession(
        wiring=wiring,
        executor=TorchExecutor(case.model.split(case.state, masked=masked), wiring, dtype, device),
        cache=cache,
        rope=RopeTable(case, dtype),
        facts=Facts(
            dtype=name,
            layout=layout,
            cache_records="rows" if layout == "recompute" else "views",
            substitutions=() if dtype == torch.float32 else (f"weights and tables cast to {name}",),
            details={"masked": masked, "device": device, "torch": torch.__version__},
        ),
        window=case.scenario.policy.window,
        repeat=layout == "recompute",
        hidden=FAR,
    )


def parse_arg(arg: str, scenario: Scenario, default_dtype: str | None) -> tuple[str, torch.dtype]:
    """`grow+bf16` -> layout and dtype; a windowed scenario runs in a rolling window by default."""
    layout, dtype = _words(arg, default_dtype)
    layout = layout or ("grow" if scenario.policy.window is None else "window")
    if layout == "window" and scenario.policy.window is None:
        raise UserError("segmented:window: the scenario's cache policy is full; use segmented:grow")
    return layout, getattr(torch, dtype)


def _words(arg: str, default_dtype: str | None) -> tuple[str | None, str]:
    """Layout, if one is named, and logical dtype."""
    layout, dtype = None, dtype_of_word(default_dtype or "fp32")
    for word in filter(None, arg.split("+")):
        if word in WORDS or word in WORDS.values():
            dtype = dtype_of_word(word)
        elif word in LAYOUTS:
            layout = word
        else:
            raise UserError(f"segmented:{arg}: {word!r} is unknown. {did_you_mean(word, [*LAYOUTS, *WORDS])}")
    return layout, dtype


def new_cache(case: Case, layout: str) -> Cache:
    """An empty cache of a layout."""
    window = case.scenario.policy.window
    if layout == "window" and window is not None:
        return WindowCache(case.scenario.batch, window)
    return GrowCache(case.scenario.batch)
