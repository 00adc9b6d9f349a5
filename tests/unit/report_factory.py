"""Results as a comparison would leave them, small and with real metrics, for the tests of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parity.harness.comparison import (
    Cause,
    Comparison,
    Coverage,
    Culprit,
    Finding,
    First,
    Onset,
    Result,
    Row,
    Side,
    Stage,
    Tokens,
    TokenStep,
)
from parity.harness.metrics import measure, measure_logits

BOUND = 2e-6
TAPS = ("ln1", "q", "k", "v", "q_rot", "k_rot", "scores", "attn", "proj", "ln2", "mlp_up", "mlp")


def tap_names(layers: int = 4) -> list[str]:
    """Canonical names in execution order, as of a small language model."""
    return ["embed", *[f"layer{i}.{tap}" for i in range(layers) for tap in TAPS], "norm", "logits"]


def side(label: str, *, steps: int = 0, **provenance: Any) -> Side:
    """One side with some provenance and a time for every step."""
    known = {
        "model": "klm-tiny",
        "weights": "sha256:3f0c9a51",
        "cache policy": "window(63)",
        "scenario": "default",
        "dtype": "float32",
        "seed": 0,
        "versions": {"torch": "2.13.0", "numpy": "2.4.1"},
    }
    generator = np.random.default_rng(len(label))
    seconds = tuple(float(s) for s in 0.002 + 0.001 * generator.random(steps))
    seconds = (0.021, *seconds[1:]) if steps else ()
    return Side(label, label, label, f"out/{label}.h5", {**known, **provenance}, seconds)


def row(
    order: int, tap: str, step: int, level: float, *, batch: int = 1, seed: int = 0, **changes: Any
) -> Row:
    """A compared record whose relative error is `level` times BOUND; fails above 1."""
    generator = np.random.default_rng(seed + order)
    shape, axes = ((batch, 4, 6, 16), "b h t d") if "logits" not in tap else ((batch, 1, 96), "b t v")
    expected = generator.standard_normal(shape).astype(np.float32)
    noise = generator.standard_normal(shape)
    if level > 1 and len(shape) == 4:
        noise[:, :1] *= 6
    noise *= np.linalg.norm(expected) / np.linalg.norm(noise) * level * BOUND
    actual = (expected + noise).astype(np.float32)
    metrics = measure(actual, expected, axes=axes, atol=1e-6, rtol=1e-6)
    fields: dict[str, Any] = {
        "status": "fail" if level > 1 else "equal" if level == 0 else "pass",
        "error": level * BOUND,
        "ratio": level,
        "local": min(level, 0.3) * BOUND,
        "local_ratio": min(level, 0.3),
        "floor": BOUND / 4,
        "segment": tap.split(".")[0].replace("layer", "seg_") if "." in tap else "head",
        "slice": "head 0" if level > 1 and len(shape) == 4 else "",
        "axes": axes,
        "shape": shape,
        "dtype": "float32",
        "expected_dtype": "float32",
        "rule": "same tap, step and call",
        "metrics": metrics,
        "logits": measure_logits(actual, expected) if "logits" in tap else None,
    }
    return Row(order=order, tap=tap, step=step, call=0, **{**fields, **changes})


def rows(
    steps: int = 6, layers: int = 4, *, wrong: str = "", since: int = 3, batch: int = 1, factor: float = 40.0
) -> list[Row]:
    """Every tap at every step; from `since` on `wrong` is born wrong and everything after inherits it."""
    made: list[Row] = []
    names = tap_names(layers)
    for step in range(steps):
        for place, tap in enumerate(names):
            seed = len(made)
            ratio = 0.0 if place == 0 else 0.05 + 0.4 * place / len(names) + 0.05 * ((seed * 7) % 5) / 5
            changes: dict[str, Any] = {}
            if wrong and step >= since and place >= names.index(wrong):
                ratio = factor * 1.6 ** (step - since) / (1 + 0.05 * (place - names.index(wrong)))
                if tap == wrong:
                    changes = {"local": ratio * BOUND, "local_ratio": ratio}
            if tap.endswith("scores"):
                changes |= {
                    "status": "skipped",
                    "reason": "fused",
                    "error": None,
                    "ratio": None,
                    "metrics": None,
                }
                changes |= {"local": None, "local_ratio": None, "local_reason": "fused", "slice": ""}
            made.append(row(seed, tap, step, ratio, batch=batch, **changes))
    return made


def passing(label: str = "segmented", **changes: Any) -> Comparison:
    """A candidate that agrees."""
    records = tuple(rows())
    made = Comparison(
        label=label,
        reference=side("torch", steps=6),
        candidate=side(label, steps=6, layout="window"),
        records=records,
        coverage=Coverage(expected=148_224, checked=148_224 - 9_216, hidden=512, skipped={"fused": 9_216}),
        tokens=tokens(),
        rules={"same tap, step and call": len(records)},
        tolerance="auto: 4 x the measured floor of float32",
    )
    return replace(made, **changes)


def diverging(
    label: str = "onnx", *, batch: int = 1, wrong: str = "layer2.q_rot", **changes: Any
) -> Comparison:
    """A candidate with one fault, born at `wrong`, step 3."""
    records = tuple(rows(wrong=wrong, batch=batch))
    skipped = sum(found.status == "skipped" for found in records)
    made = Comparison(
        label=label,
        reference=side("torch", steps=6),
        candidate=side(
            label, steps=6, exporter="dynamo", versions={"torch": "2.13.0", "onnxruntime": "1.31.0"}
        ),
        records=records,
        first=First(
            wrong,
            3,
            "head 0",
            "first among 138 of 150 checked values; 12 fused ones before it could hide an earlier fault",
            before="layer2.v",
        ),
        culprits=(Culprit(wrong, 3, "seg_2", "its inputs agree and its output does not", 40.0),),
        coverage=Coverage(148_224, 139_008, 512, {"fused": 1_536 * skipped}, "layer0.scores"),
        tokens=tokens(flipped=True, batch=batch),
        findings=(
            Finding("warning", "override layer9.* matched no tap"),
            Finding("note", "the candidate ran with 2 threads, the reference with 1"),
        ),
        causes=(
            Cause(
                wrong,
                "rotation of interleaved pairs instead of halves",
                "reproduces the candidate, residual 0",
            ),
        ),
        onset=Onset(3, 14, 14, "cache", wrong, "head 0", "rows that were not appended"),
        stages=(
            Stage("export", "torch", "cvi/onnx", "parity", wrong, 1, "", 0.1, 1e-7, 150),
            Stage("code generation", "cvi/tpu", "cvi", "divergence", wrong, 3, "head 0", 40.0, 0.4, 150),
        ),
        rules={"same tap, step and call": len(records) - 24, "cache rows by absolute position": 24},
        tolerance="auto: 4 x the measured floor of float32",
    )
    return replace(made, **changes)


def inconclusive(label: str = "prefilled") -> Comparison:
    """Nothing was compared."""
    nothing: dict[str, Any] = dict.fromkeys(("error", "ratio", "metrics", "local", "local_ratio", "logits"))
    unseen = {"status": "skipped", "reason": "unobservable", "local_reason": "unobservable"}
    missing = [row(i, tap, 0, 0.0, **nothing, **unseen) for i, tap in enumerate(tap_names(1))]
    return Comparison(
        label=label,
        reference=side("torch"),
        candidate=side(label),
        records=tuple(missing),
        inconclusive="no record of the reference has a counterpart: the candidate recorded 0 of 15 taps",
        coverage=Coverage(expected=5_760, checked=0, skipped={"unobservable": 5_760}, blind_spot="embed"),
        findings=(
            Finding(
                "error", "weights digest sha256:3f0c9a51 in the reference, sha256:77aa01be in the candidate"
            ),
        ),
    )


def failed(label: str = "cvi") -> Comparison:
    """A candidate that did not run."""
    return Comparison(
        label=label,
        reference=side("torch"),
        candidate=side(label),
        failure="compiler: tpuc-opt is not installed here; run `parity doctor`, or compare a stored dump",
    )


def tokens(*, flipped: bool = False, batch: int = 1) -> Tokens:
    """What both sides said."""
    expected = "The statement is executed when the first argument is a mapping object."
    actual = "The statement is executed when the firrrrrr rrrr rrrr" if flipped else expected
    both = (TokenStep(4, 0, 115, 114, 3.21, 0.84), TokenStep(5, 0, 116, 114, 0.012, 1.4, 0.02))
    flips = both if flipped else ()
    return Tokens(6 * batch, 6 * batch - len(flips), flips, (expected,) * batch, (actual,) * batch, free=True)


def result(comparisons: Iterable[Comparison], *, files: Mapping[str, str] | None = None) -> Result:
    """A whole run."""
    listed = {"trace": "out/trace.h5", "html": "out/report.html", "json": "out/report.json"}
    provenance = {
        "model": "klm-tiny",
        "scenario": "default",
        "created": "2025-11-20 18:25",
        "parity": "0.1.0",
    }
    return Result(tuple(comparisons), provenance, files if files is not None else listed)
