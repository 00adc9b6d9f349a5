"""Rules that vendors publish, as profiles: their numbers, our verdicts.

A rule is one or more limits on the numbers of a record. NaN on one side fails, a missing record fails,
nothing compared is inconclusive: the vendors' own tools are not so strict. Where a rule is written in other
terms than ours, what it became is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metrics import LogitMetrics, Metrics

#: Floating formats, from the finest.
_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8")
ANYTHING = (math.inf, 0.0)
"""A bound that every finite error is within."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One number of a record and how large it may be; `of` says what the vendor calls it."""

    metric: str
    most: float
    of: str = ""


@dataclass(frozen=True)
class Vendor:
    """A published rule.

    `bounds` are atol and rtol per format of a record (`*`: any other floating one), `shares` the share of
    values that may lie outside. Where `logits` is set only distributions are judged. Whole numbers are exact,
    those of 8 bits may be `step` apart.
    """

    rule: str
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    logits: bool = False
    step: float = 1.0

    def bound(self, dtype: str) -> tuple[float, float]:
        """atol and rtol for records of a format."""
        if dtype == "bool" or ("int" in dtype and dtype not in ("int8", "uint8")):
            return 0.0, 0.0
        if "int" in dtype:
            return self.step, 0.0
        own = next((name for name in _FLOATS if dtype.startswith(name)), "*")
        return self.bounds.get(own, self.bounds.get("*", ANYTHING))

    def share(self, dtype: str) -> float:
        """Share of values that may lie outside the bound."""
        own = next((name for name in _FLOATS if dtype.startswith(name)), dtype)
        return self.shares.get(own, self.shares.get("*", 0.0))

    def excess(self, metrics: Metrics, logits: LogitMetrics | None) -> list[tuple[str, float, float]]:
        """Every number that is limited, as (name, value, limit)."""
        dtype = metrics.dtype_expected
        outside = metrics.mismatched / max(metrics.count, 1)
        found = [("share of values outside the bound", outside, self.share(dtype))]
        for limit in self.limits:
            source = logits if limit.metric.startswith("kl_") else metrics
            if source is not None:
                found.append((limit.of or limit.metric, _value(source, limit.metric), limit.most))
        return found


def _value(source: Metrics | LogitMetrics, name: str) -> float:
    """A number of a record by name, or one that follows from several."""
    derived = _DERIVED.get(name)
    return float(derived(source) if derived else getattr(source, name))


def _norms_apart(metrics: Metrics) -> float:
    """Relative difference of both sides' norms."""
    if metrics.rms_expected == 0.0:
        return math.inf if metrics.rms_actual else 0.0
    return abs(metrics.rms_actual / metrics.rms_expected - 1.0)


_DERIVED = {"angle": lambda metrics: 1.0 - metrics.cosine, "norms_apart": _norms_apart}


def _single(error: float) -> dict[str, tuple[float, float]]:
    return {"*": (error, error)}


def _similar(cosine: float, euclid: float) -> tuple[Limit, ...]:
    return Limit("angle", 1.0 - cosine, "1 - cosine"), Limit("rel_l2", 1.0 - euclid, "1 - euclid")


_ATB = "every |a - e| <= {0} * (1 + |e|), where the standard has max(1, |e|); its bias test is left out"
_OLD = "|a - e| <= {0} * (1 + |e|) for all but a share of {0} of the values, where the rule has max(1, |e|)"
_NPZ = (
    "cosine >= {0}, euclidean similarity 1 - ||a - e|| / ||e|| >= {1} (the tool divides by the mean's norm)"
)

VENDORS: dict[str, Vendor] = {
    "atb-fp32": Vendor(_ATB.format("2^-11"), _single(2.0**-11)),
    "atb-fp16": Vendor(_ATB.format("2^-8"), _single(2.0**-8)),
    "atb-bf16": Vendor(_ATB.format("2^-7"), _single(2.0**-7)),
    "atb-old-fp16": Vendor(_OLD.format("1/1000"), _single(1e-3), {"*": 1e-3}),
    "atb-old-bf16": Vendor(_OLD.format("5/1000"), _single(5e-3), {"*": 5e-3}),
    "msit-opcheck": Vendor(
        "relative error < 2^-20 for 99.99 % of fp32 values; 99.9 %: fp16 < 2^-10, bf16 < 2^-8",
        {"float64": (0, 1e-4), "float32": (0, 2.0**-20), "float16": (0, 2.0**-10), "bfloat16": (0, 2.0**-8)},
        {"float64": 1e-4, "float32": 1e-4, "*": 1e-3, "int8": 1e-3, "uint8": 1e-2},
    ),
    "msprobe": Vendor(
        "cosine > 0.99 and largest error < 0.001",
        limits=(Limit("angle", 0.01, "1 - cosine"), Limit("max_abs", 1e-3, "largest error")),
    ),
    "msit-logits": Vendor(
        "logits: cosine > 0.999, KL < 1e-4, norms within 1 % (its L1, which is signed)",
        limits=(
            Limit("angle", 1e-3, "1 - cosine"),
            Limit("kl_max", 1e-4, "KL"),
            Limit("norms_apart", 0.01, "difference of the norms"),
        ),
        logits=True,
    ),
    "modeltest-kl": Vendor(
        "logits: KL <= 1e-3 for every token, 1e-4 on the mean (the rule: for 99.5 % of tokens)",
        limits=(Limit("kl_max", 1e-3, "largest KL"), Limit("kl_mean", 1e-4, "mean KL")),
        logits=True,
    ),
    "npz-tool": Vendor(_NPZ.format(0.99, 0.99), limits=_similar(0.99, 0.99)),
    "tpu-mlir-f32": Vendor(_NPZ.format(0.99, 0.99), limits=_similar(0.99, 0.99)),
    "tpu-mlir-f16": Vendor(_NPZ.format(0.99, 0.90), limits=_similar(0.99, 0.90)),
    "tpu-mlir-bf16": Vendor(_NPZ.format(0.99, 0.90), limits=_similar(0.99, 0.90)),
    "tpu-mlir-int8": Vendor(_NPZ.format(0.90, 0.80), limits=_similar(0.90, 0.80)),
    "torch-testing": Vendor(
        "|a - e| <= atol + rtol * |e| by format, as torch.testing.assert_close",
        {
            "float64": (1e-7, 1e-7),
            "float32": (1e-5, 1.3e-6),
            "float16": (1e-5, 1e-3),
            "bfloat16": (1e-5, 1.6e-2),
        },
        step=0.0,
    ),
    "llama-cpp-nmse": Vendor(
        "logits: ||a - e||^2 / ||e||^2 < 1e-2, the band that is called good",
        limits=(Limit("rel_l2", 0.1, "root of the normalized squared error"),),
        logits=True,
    ),
}
"""Profile -> rule. Numbers of Ascend's ATB, msit, msprobe and modeltest, of TPU-MLIR, torch, llama.cpp."""


def describe() -> str:
    """The rules, one line each."""
    rows = [f"| {name} | {vendor.rule} |" for name, vendor in VENDORS.items()]
    return "\n".join(["| published rule | what is checked, per record |", "|---|---|", *rows])
