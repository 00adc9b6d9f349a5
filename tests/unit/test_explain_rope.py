"""Every mistake with rotary positions is named by what it is, computed here in torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from parity.harness.explaining import CATALOGUE


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    import sys

    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lab = _load("explain_case")
CASE = lab.made()
WINDOWED = lab.made(policy="window(6)")
P, WIDTH, HEADS = lab.PROMPT, 8, {"q": 4, "k": 2}


def before(name: str, case=CASE, *, bias: bool = True, start: int = 0, stop: int = P) -> Tensor:
    """A projection `[1, heads, T, 8]` before its rotation."""
    at = f"body.blocks.0.attention.{name}_proj."
    x = case.cut("layer0.norm1", start, stop) @ case.w[at + "weight"].T
    x = x + case.w[at + "bias"] if bias else x
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def angles(positions, base: float = 1e4, exponent: float = WIDTH) -> Tensor:
    return torch.as_tensor(positions).float()[:, None] / base ** (torch.arange(0, WIDTH, 2) / exponent)


def by_halves(x: Tensor, angle: Tensor) -> Tensor:
    """Channels i and i + D/2 turn together."""
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def by_pairs(x: Tensor, angle: Tensor) -> Tensor:
    """Channels 2i and 2i + 1 turn together."""
    both = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(both * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def planes(start: int = 0, stop: int = P, case=CASE) -> Tensor:
    return case.cut("rope", start, stop)[:, 0]


def with_planes(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = WIDTH // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


AT = torch.arange(P)
TABLE = torch.stack((angles(AT).cos().repeat(1, 2), angles(AT).sin().repeat(1, 2)))[:, None]


def table(positions, **numbers) -> Tensor:
    angle = angles(positions, **numbers).repeat(1, 2)
    return torch.stack((angle.cos(), angle.sin()))[:, None]


def low(x: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(kind).float()


BUGS = {
    "the other partners": [
        ("q", lambda: by_pairs(before("q"), angles(AT))),
        ("k", lambda: by_pairs(before("k"), angles(AT))),
        (
            "q",
            lambda: (
                lambda x, t: x * t[0] + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * t[1]
            )(before("q"), planes()),
        ),
    ],
    "sign of rotation": [("q", lambda: by_halves(before("q"), -angles(AT))), ("rope", lambda: table(-AT))],
    "cosine and sine swapped": [
        ("k", lambda: with_planes(before("k"), planes()[1], planes()[0])),
        ("rope", lambda: CASE.p("rope").flip(0)),
    ],
    "position off": [
        ("q", lambda: by_halves(before("q"), angles(AT + 1))),
        ("k", lambda: by_halves(before("k"), angles(AT + 3))),
        ("rope", lambda: table(AT + 2)),
        ("rope", lambda: table(AT - 1)),
    ],
    "position scaled": [
        ("q", lambda: by_halves(before("q"), angles(AT * 0.5))),
        ("rope", lambda: table(AT * 0.25)),
    ],
    "position fixed": [("q", lambda: by_halves(before("q"), angles(AT * 0 + 9)))],
    "other base": [
        ("q", lambda: by_halves(before("q"), angles(AT, base=5e5))),
        ("rope", lambda: table(AT, base=1e6)),
    ],
    "other exponent": [
        ("q", lambda: by_halves(before("q"), angles(AT, exponent=32))),
        ("rope", lambda: table(AT, exponent=4)),
    ],
    "table rounded": [
        ("q", lambda: with_planes(before("q"), *low(planes()))),
        ("rope", lambda: low(CASE.p("rope"))),
        ("rope", lambda: low(CASE.p("rope"), torch.float16)),
        (
            "rope",
            lambda: torch.stack((low(angles(AT)).cos(), low(angles(AT)).sin())).repeat(1, 1, 2)[:, None],
        ),
    ],
    "table of the other layout": [
        ("rope", lambda: torch.stack((angles(AT).cos(), angles(AT).sin())).repeat_interleave(2, -1)[:, None]),
        ("q", lambda: with_planes(before("q"), *(p[..., :4].repeat_interleave(2, -1) for p in planes()))),
    ],
    "partial rotation": [
        (
            "q",
            lambda: (lambda x: torch.cat((by_halves(x[..., :4], angles(AT)[:, :2]), x[..., 4:]), -1))(
                before("q")
            ),
        ),
        (
            "k",
            lambda: (
                lambda x: torch.cat(
                    (by_halves(x[..., :4], AT[:, None] / 1e4 ** (torch.arange(0, 4, 2) / 4)), x[..., 4:]), -1
                )
            )(before("k")),
        ),
    ],
    "no rotation": [("q", lambda: before("q")), ("k", lambda: before("k"))],
    "rotated twice": [("q", lambda: by_halves(CASE.p("layer0.q"), angles(AT)))],
    "sine term missing": [("q", lambda: before("q") * planes()[0])],
    "one head only": [("q", lambda: torch.cat((CASE.p("layer0.q")[:, :1], before("q")[:, 1:]), 1))],
    "rotated though it should not be": [("v", lambda: by_halves(CASE.p("layer0.v"), angles(AT)))],
    "rotated in low precision": [
        (
            "q",
            lambda: low(
                low(low(before("q")) * low(planes()[0]))
                + low(
                    torch.cat((-low(before("q"))[..., 4:], low(before("q"))[..., :4]), -1) * low(planes()[1])
                )
            ),
        ),
    ],
}
CASES = [
    pytest.param(name, tap, bug, id=f"{name} {tap} {at}")
    for name, bugs in BUGS.items()
    for at, (tap, bug) in enumerate(bugs)
]


@pytest.mark.parametrize(("name", "tap", "bug"), CASES)
def test_a_mistake_of_rotation_is_named(name, tap, bug):
    tap = tap if tap == "rope" else f"layer0.{tap}"
    found = lab.explained(CASE, tap, bug())
    assert found.kinds == (name,)
    assert found.cause.residual < 1e-4 < found.cause.next_best


@pytest.mark.parametrize("name", [name for name in BUGS if name != "rotated though it should not be"])
def test_rotations_are_explained_without_weights(name):
    """What was rotated follows from the reference's output."""
    for tap, bug in BUGS[name]:
        if tap != "rope":
            assert name in lab.kinds(CASE, f"layer0.{tap}", bug(), weights=False)


def test_positions_within_the_window_are_named():
    """Position 11 is the sixth row of a window of six."""
    wrong = {
        step: by_halves(before("q", WINDOWED, start=a, stop=b), angles([min(at, 5) for at in range(a, b)]))
        for step, (a, b) in enumerate(WINDOWED.steps())
    }
    assert lab.kinds(WINDOWED, "layer0.q", wrong) == ("position relative",)


def test_positions_that_start_again_in_each_step_are_named():
    wrong = {
        step: by_halves(before("q", start=a, stop=b), angles(range(b - a)))
        for step, (a, b) in enumerate(CASE.steps())
    }
    found = lab.explained(CASE, "layer0.q", wrong)
    assert "position relative" in found.kinds


def test_positions_counted_from_the_padding_are_named():
    """The shorter of two prompts is padded on the left, and its first real token is not at 0."""
    case = lab.made(batch=2)
    turned = angles(AT + 3).repeat(1, 2)
    wrong = case.p("rope").clone()
    wrong[:, 1, 3:] = torch.stack((turned.cos(), turned.sin()))[:, : P - 3]
    places = torch.arange(lab.LENGTH).expand(2, -1).clone()
    places[1] -= 3
    case.shown = places
    case.v["rope"][:, 1, 3:] = case.v["rope"][:, 1, : lab.LENGTH - 3].clone()
    assert lab.kinds(case, "rope", wrong) == ("position relative",)


def test_a_table_computed_anew_where_the_checkpoint_is_rounded_is_named():
    rounded = lab.made()
    rounded.v["rope"] = low(rounded.v["rope"])
    assert lab.kinds(rounded, "rope", TABLE) == ("table not rounded",)


def test_a_mistake_that_begins_late_is_named():
    """A sign that is wrong from the last token on."""
    late = {4: by_halves(before("q", start=13, stop=14), -angles([13]))}
    assert "sign of rotation" in lab.kinds(CASE, "layer0.q", late)


def test_the_sentence_names_convention_and_base():
    found = lab.explained(CASE, "layer0.q", by_pairs(before("q"), angles(AT)))
    assert found.cause.evidence.startswith(
        "candidate = reference with interleaved RoPE, base 1e4 (residual 0; next best 0."
    )


def test_every_hypothesis_about_rotation_has_a_test():
    elsewhere = {"position relative", "table not rounded"}
    assert {*BUGS, *elsewhere} == {h.name for h in CATALOGUE if h.family == "rope"}
