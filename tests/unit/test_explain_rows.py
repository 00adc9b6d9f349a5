"""Mistakes of caches, of places and of number formats are named by what they are; noise has no name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.harness.explaining import CATALOGUE


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lab = _load("explain_case")
CASE, BATCH = lab.made(), lab.made(batch=2)
P = lab.PROMPT
KS, VS = CASE.p("layer0.ks"), CASE.p("layer0.vs")
PLANES = CASE.p("rope")[:, 0]


def low(x: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(kind).float()


def turned(x: Tensor, sign: float) -> Tensor:
    """Rotated by the angles of its positions, forwards or back."""
    return x * PLANES[0] + sign * torch.cat((-x[..., 4:], x[..., :4]), -1) * PLANES[1]


def placed(order: list[int]) -> Tensor:
    return KS[:, :, order]


def zeroed(rows, heads=slice(None)) -> Tensor:
    x = KS.clone()
    x[:, heads, rows] = 0
    return x


def int8(x: Tensor, axis) -> Tensor:
    scale = x.abs().amax(axis, keepdim=True) / 127
    return (x / scale).round() * scale


CACHES = {
    "rows shifted": [
        lambda: torch.cat((KS[:, :, :1], KS[:, :, :-1]), 2),
        lambda: torch.cat((KS[:, :, 2:], KS[:, :, -2:]), 2),
    ],
    "rows rotated": [lambda: KS.roll(1, 2), lambda: KS.roll(-2, 2)],
    "rows reversed": [lambda: KS.flip(2)],
    "newest row stale": [lambda: zeroed([P - 1]), lambda: placed([*range(P - 1), P - 2])],
    "one row wrong": [
        lambda: zeroed([4]),
        lambda: placed([0, 1, 2, 2, 4, *range(5, P)]),
        lambda: placed([0, 1, 3, 2, *range(4, P)]),
    ],
    "row missing": [lambda: placed([0, 0, 1, 2, 3, 4, *range(6, P)])],
    "rows of another cache": [lambda: VS, lambda: CASE.p("layer1.ks")],
    "keys stored unrotated": [lambda: turned(KS, -1), lambda: turned(KS, 1)],
    "rows zero": [lambda: KS * 0, lambda: zeroed(list(range(P - 1))), lambda: placed([P - 1] * P)],
    "cache heads moved": [lambda: KS.flip(1), lambda: KS[:, :1].expand(-1, 2, -1, -1)],
    "one cache head lost": [lambda: zeroed(slice(None), heads=1)],
    "cache in low precision": [
        lambda: low(KS),
        lambda: low(KS, torch.float16),
        lambda: int8(KS, -1),
        lambda: int8(KS, (1, 3)),
    ],
}
CACHE_CASES = [
    pytest.param(name, bug, id=f"{name} {at}") for name, bugs in CACHES.items() for at, bug in enumerate(bugs)
]


@pytest.mark.parametrize(("name", "bug"), CACHE_CASES)
def test_a_mistake_of_a_cache_is_named(name, bug):
    assert name in lab.kinds(CASE, "layer0.ks", bug(), weights=False)
    assert lab.kinds(CASE, "layer0.ks", bug())[0] == name or len(lab.kinds(CASE, "layer0.ks", bug())) > 1


def test_a_cache_of_another_sequence_is_named():
    assert lab.kinds(BATCH, "layer0.vs", BATCH.p("layer0.vs").flip(0)) == ("cache of another sequence",)


LOUD = lab.made()
LOUD.provenance["roles"] = []
for _tap in ("layer0.q", "layer1.q"):
    LOUD.v[_tap] = LOUD.v[_tap] * (60 / LOUD.v["layer0.q"].std())
OUT = LOUD.p("layer0.q")
MOST = OUT.abs().max()
CODES = OUT / (MOST / 127)
NUMBERS = {
    "cut to bfloat16": [lambda: (OUT.contiguous().view(torch.int32) & -65536).view(torch.float32)],
    "output rounded": [lambda: low(OUT), lambda: low(OUT, torch.float16)],
    "output in float8": [lambda: low(OUT, torch.float8_e4m3fn), lambda: low(OUT, torch.float8_e5m2)],
    "cut to whole numbers": [lambda: OUT.trunc(), lambda: OUT.round()],
    "cut to int8": [lambda: CODES.trunc() * (MOST / 127), lambda: CODES.floor() * (MOST / 127)],
    "rounded to int8": [lambda: CODES.round() * (MOST / 127), lambda: int8(OUT, -1)],
    "saturated": [lambda: OUT.clamp(-127, 127), lambda: OUT.clamp(-MOST / 3, MOST / 3)],
    "wrapped": [
        lambda: OUT.round().to(torch.int16).to(torch.int8).float(),
        lambda: (OUT + 77) % 154 - 77,
        lambda: (CODES * 2).round().to(torch.int16).to(torch.int8).float() * (MOST / 254),
    ],
    "sixteen bits misread": [
        lambda: OUT.half().view(torch.bfloat16).float(),
        lambda: OUT.bfloat16().view(torch.float16).float(),
    ],
    "of another token": [lambda: torch.cat((OUT[:, :, :1], OUT[:, :, :-1]), 2)],
    "of another tap": [lambda: LOUD.p("layer1.q")],
}
NUMBER_CASES = [
    pytest.param(name, bug, id=f"{name} {at}")
    for name, bugs in NUMBERS.items()
    for at, bug in enumerate(bugs)
]


@pytest.mark.parametrize(("name", "bug"), NUMBER_CASES)
def test_an_output_in_the_wrong_format_or_place_is_named_whatever_the_op(name, bug):
    assert lab.kinds(LOUD, "layer0.q", bug(), weights=False) == (name,)


def test_small_values_flushed_to_zero_are_named():
    case = lab.made()
    case.v["layer0.v"] = case.v["layer0.v"] * 1e-4
    case.provenance["roles"] = []
    x = case.p("layer0.v")
    found = lab.explained(case, "layer0.v", torch.where(x.abs() < 2**-14, 0.0, x), tol="exact")
    assert found.kinds == ("small values flushed",)


def test_rows_of_another_sequence_are_named():
    case = lab.made(batch=2)
    case.provenance["roles"] = []
    assert lab.kinds(case, "layer0.v", case.p("layer0.v").flip(0)) == ("of another sequence",)


def test_an_input_that_goes_through_is_named():
    found = lab.explained(CASE, "layer0.attn", CASE.p("layer0.q").transpose(1, 2))
    assert found.kinds == ("input goes through",)
    assert found.cause.name == "layer0.q unchanged"


def test_a_stale_record_without_positions_is_named():
    run = {
        name: lab.MemoryRun(
            name, provenance={"weights": "w", "scenario_digest": "s", "policy": "none"}, complete=True
        )
        for name in ("torch", "cand")
    }
    for step in range(3):
        for name, made in run.items():
            stale = name == "cand" and step == 2
            values = np.random.default_rng(1 if stale else step).standard_normal((4, 6)).astype(np.float32)
            made.record("out", values, step=step, axes="")
    sides = tuple(lab.Side(name, name, name, "") for name in run)
    found = lab.compare_runs(*run.values(), rules=lab.Rules(lab.load_tolerance("fp32"), {}), sides=sides)
    assert [cause.name for cause in found.causes] == ["what belongs to a step before"]


NOISES = {
    "float32 rounding": lambda x: (
        x * (1 + 6e-8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    ),
    "bfloat16": low,
    "float16": lambda x: low(x, torch.float16),
    "gaussian": lambda x: (
        x + 0.01 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ),
    "loud gaussian": lambda x: x + x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)),
}
TAPS = [tap for tap in CASE.v if tap != "ids" and "1" not in tap]


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("noise", ["gaussian", "loud gaussian"])
def test_noise_has_no_name(tap, noise):
    assert lab.explained(CASE, tap, NOISES[noise](CASE.p(tap))).cause is None


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize(
    ("noise", "tol"), [("float32 rounding", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")]
)
def test_a_healthy_candidate_is_not_explained(tap, noise, tol):
    """Each within the tolerance of its format: there is no culprit, and nothing is searched."""
    found, made = lab.compared(CASE, tap, NOISES[noise](CASE.p(tap)), tol=tol)
    assert (found.verdict, found.causes, made) == ("parity", (), [])


@pytest.mark.parametrize("tap", TAPS)
def test_the_catalogue_is_silent_on_rounding(tap):
    """Even where rounding is searched, because a tolerance of zero flags it."""
    reordered = (CASE.p(tap).double() * (1 + 1e-7)).float()
    found, made = lab.compared(CASE, tap, reordered, tol="exact")
    assert found.verdict == "divergence"
    assert all(explanation.cause is None for explanation in made)


def test_every_hypothesis_about_places_and_formats_has_a_test():
    elsewhere = {
        "cache of another sequence",
        "small values flushed",
        "of another sequence",
        "of an earlier step",
        "input goes through",
    }
    families = ("cache", "numbers", "rows")
    assert {*CACHES, *NUMBERS, *elsewhere} == {h.name for h in CATALOGUE if h.family in families}
