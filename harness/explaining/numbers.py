"""Number formats: what a tensor looks like that was kept, cast or read in the wrong one."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from .maths import cut, rounded, whole
from .op import Op, Values, Variant, hypothesis


@hypothesis("numbers", rank=1)
def cut_to_bfloat16(op: Op) -> Iterator[Variant]:
    yield Variant("an output cut off to bfloat16 instead of rounded", cut(op.expected))


@hypothesis("numbers", rank=1)
def output_rounded(op: Op) -> Iterator[Variant]:
    for name in ("bfloat16", "float16"):
        yield Variant(f"an output rounded to {name}", rounded(op.expected, name))


@hypothesis("numbers", rank=1)
def output_in_float8(op: Op) -> Iterator[Variant]:
    for name in ("float8_e4m3fn", "float8_e5m2"):
        low = op.expected.astype(np.float32).astype(getattr(ml_dtypes, name)).astype(np.float64)
        yield Variant(f"an output rounded to {name}", low)


@hypothesis("numbers", rank=1)
def cut_to_whole_numbers(op: Op) -> Iterator[Variant]:
    yield Variant("an output cut off to whole numbers", np.trunc(op.expected))
    yield Variant("an output rounded to whole numbers", np.rint(op.expected))


def _scaled(op: Op) -> tuple[Values, float]:
    scale = float(np.float32(np.abs(op.expected).max()) / np.float32(127)) or 1.0
    return op.expected.astype(np.float32) / np.float32(scale), scale


@hypothesis("numbers", rank=1)
def cut_to_int8(op: Op) -> Iterator[Variant]:
    codes, scale = _scaled(op)
    yield Variant("an output in int8 by truncation", np.trunc(codes) * scale)
    yield Variant("an output in int8, rounded down", np.floor(codes) * scale)
    most = np.abs(op.expected).max(-1, keepdims=True)
    yield Variant(
        "an output in int8 by truncation, a scale for each row", whole(op.expected, most, by=np.trunc)
    )


@hypothesis("numbers", rank=1)
def rounded_to_int8(op: Op) -> Iterator[Variant]:
    codes, scale = _scaled(op)
    yield Variant("an output in int8, one scale", np.rint(codes) * scale)
    most = np.abs(op.expected).max(-1, keepdims=True)
    yield Variant("an output in int8, a scale for each row", whole(op.expected, most))


@hypothesis("numbers", rank=1)
def saturated(op: Op) -> Iterator[Variant]:
    """Clipped at a bound: a format's, or that of a scale that was too small."""
    most = float(np.abs(op.expected).max())
    for bound in (127.0, 128.0, 255.0, 448.0, 1.0, 6.0):
        if most > bound:
            yield Variant(f"values saturated at {bound:g}", np.clip(op.expected, -bound, bound))
    bound = float(np.abs(op.seen).max())
    if 0.0 < bound < 0.95 * most:
        yield Variant(f"values saturated at {bound:.4g}", np.clip(op.expected, -bound, bound))


@hypothesis("numbers", rank=2)
def wrapped(op: Op) -> Iterator[Variant]:
    """8-bit codes without a clamp: 128 becomes -128; in whole numbers, or on a scale that is too fine."""
    if np.abs(op.expected).max() > 127:
        yield Variant("whole numbers wrapped at 127", _wrap(np.rint(op.expected)))
    codes, scale = _scaled(op)
    gap = np.abs(op.seen - op.expected)
    period = float(np.median(gap[gap > 0.5 * gap.max()])) if gap.any() else 0.0
    if period > 0.0:
        turned = op.expected - period * np.rint(op.expected / period)
        yield Variant(f"values wrapped round at {period / 2:.4g}", turned)
        yield Variant(
            f"8-bit codes wrapped round at {period / 2:.4g}", np.rint(turned * 256 / period) * period / 256
        )
    for share in (2, 4):
        yield Variant("8-bit codes wrapped at 127", _wrap(np.rint(codes * share)) * scale / share)


def _wrap(codes: Values) -> Values:
    return (codes + 128.0) % 256.0 - 128.0


@hypothesis("numbers", rank=1)
def sixteen_bits_misread(op: Op) -> Iterator[Variant]:
    """fp16 bits taken for bf16, the reverse, or the bits taken for whole numbers."""
    single = op.expected.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        half, brain = single.astype(np.float16), single.astype(ml_dtypes.bfloat16)
        seen = {
            "fp16 bits read as bf16": half.view(ml_dtypes.bfloat16),
            "bf16 bits read as fp16": brain.view(np.float16),
            "fp16 bits read as whole numbers": half.view(np.uint16),
            "bf16 bits read as whole numbers": brain.view(np.uint16),
        }
        for words, values in seen.items():
            wide = values.astype(np.float64)
            if np.isfinite(wide).all():
                yield Variant(words, wide)


@hypothesis("numbers", rank=1)
def small_values_flushed(op: Op) -> Iterator[Variant]:
    """What lies under a format's smallest number becomes 0."""
    for words, least in (("float16's smallest normal", 2.0**-14), ("float16's smallest", 2.0**-24)):
        if (np.abs(op.expected) < least).any():
            yield Variant(
                f"values under {words} flushed to 0", np.where(np.abs(op.expected) < least, 0.0, op.expected)
            )
