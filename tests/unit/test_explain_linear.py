"""Every mistake in linear layers is named by what it is, computed here in torch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
CASE = lab.made()
W, P = CASE.w, lab.PROMPT
AT = "body.blocks.0.attention."
WEIGHT, BIAS = W[AT + "out_proj.weight"], W[AT + "out_proj.bias"]
X = CASE.p("layer0.attn").flatten(2)
DOWN, DOWN_B = W["body.blocks.0.mlp.down_proj.weight"], W["body.blocks.0.mlp.down_proj.bias"]
ACT, NORM1 = CASE.p("layer0.act"), CASE.p("layer0.norm1")


def low(x: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(kind).float()


def cut(x: Tensor) -> Tensor:
    """bfloat16 by dropping bits."""
    return (x.view(torch.int32) & -65536).view(torch.float32)


def o(weight=WEIGHT, bias=BIAS, x=X) -> Tensor:
    return x @ weight.T + bias


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 8)).transpose(1, 2)


def whole(x: Tensor, scale, low: int = -127, high: int = 127, by=torch.round) -> Tensor:
    return by(x / scale).clamp(low, high) * scale


def groups(x: Tensor, size: int) -> Tensor:
    """int4 by groups of input channels."""
    parts = x.unflatten(1, (-1, size))
    return whole(parts, parts.abs().amax(-1, keepdim=True) / 7, -8, 7).flatten(1)


def asymmetric(x: Tensor):
    """Codes, scales and zero points of unsigned 8-bit weights by row."""
    least, most = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = (most - least) / 255
    zero = (-least / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255), scale, zero


def swapped_neighbours(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def packed():
    """q, k and v of one width, as some checkpoints pack them."""
    names = ("k", "q", "v")
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(16, 32, generator=generator) / 5 for name in names}


def scaled_row() -> Tensor:
    weight = DOWN.clone()
    weight[17] *= 1.2
    return ACT @ weight.T + DOWN_B


def with_element() -> Tensor:
    weight = DOWN.clone()
    weight[5, 7] += 0.3
    return ACT @ weight.T + DOWN_B


def swapped_rows(bias: Tensor = DOWN_B) -> Tensor:
    order = [*range(30), 31, 30]
    return ACT @ DOWN[order].T + bias


def without_channel(at: int) -> Tensor:
    weight = DOWN.clone()
    weight[:, at] = 0
    return ACT @ weight.T + DOWN_B


def rotated(x: Tensor) -> Tensor:
    cos, sin = CASE.p("rope")[:, 0]
    return x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin


CODES, SCALE, ZERO = asymmetric(WEIGHT)
ROW = WEIGHT.abs().amax(1, keepdim=True) / 127
TOKEN = X.abs().amax(-1, keepdim=True) / 127
ATTENDED, MLP, V, Q = "layer0.o", "layer0.mlp", "layer0.v", "layer0.q"
VW, VB = W[AT + "v_proj.weight"], W[AT + "v_proj.bias"]
QW, QB = W[AT + "q_proj.weight"], W[AT + "q_proj.bias"]
TO_PAIRS = torch.arange(32).view(4, 2, 4).mT.flatten()
BUGS = {
    "weight transposed": [
        (ATTENDED, lambda: o(WEIGHT.T)),
        (Q, lambda: rotated(heads(NORM1 @ QW + QB))),
        (MLP, lambda: ACT @ DOWN.T.reshape(32, 48).T + DOWN_B),
    ],
    "weight rows swapped": [(MLP, swapped_rows), (MLP, lambda: swapped_rows(DOWN_B[[*range(30), 31, 30]]))],
    "weight element wrong": [(MLP, with_element)],
    "linear bias dropped": [
        (ATTENDED, lambda: o(bias=0)),
        (V, lambda: heads(NORM1 @ VW.T)),
        (Q, lambda: rotated(heads(NORM1 @ QW.T))),
    ],
    "linear bias twice": [
        (ATTENDED, lambda: o(bias=2 * BIAS)),
        (MLP, lambda: ACT @ DOWN.T + DOWN_B / 2),
        (MLP, lambda: ACT @ DOWN.T - DOWN_B),
    ],
    "bias after rotation": [(Q, lambda: rotated(heads(NORM1 @ QW.T)) + heads(QB.expand(1, P, -1)))],
    "weights of another op": [
        (
            ATTENDED,
            lambda: o(
                W["body.blocks.1.attention.out_proj.weight"], W["body.blocks.1.attention.out_proj.bias"]
            ),
        ),
        (ATTENDED, lambda: o(QW, QB)),
        (V, lambda: heads(NORM1 @ W[AT + "k_proj.weight"].T + W[AT + "k_proj.bias"])),
    ],
    "weight negated": [(ATTENDED, lambda: o(-WEIGHT))],
    "weight axes reversed": [(ATTENDED, lambda: o(WEIGHT.flip(0))), (ATTENDED, lambda: o(WEIGHT.flip(1)))],
    "weight rows moved": [
        (ATTENDED, lambda: o(WEIGHT.roll(1, 0))),
        (MLP, lambda: ACT @ DOWN.roll(-1, 1).T + DOWN_B),
    ],
    "rows permuted as rotary pairs": [
        (Q, lambda: rotated(heads(NORM1 @ QW[TO_PAIRS].T + QB[TO_PAIRS]))),
        (Q, lambda: rotated(heads(NORM1 @ QW[TO_PAIRS].T + QB))),
    ],
    "input channel lost": [
        (MLP, lambda: without_channel(30)),
        (MLP, lambda: without_channel(0)),
        (ATTENDED, lambda: o(WEIGHT[:, :16], x=X[..., :16])),
    ],
    "weight rows scaled": [(MLP, scaled_row)],
    "input channels swapped": [(ATTENDED, lambda: o(swapped_neighbours(WEIGHT)))],
    "weight in low precision": [
        (ATTENDED, lambda: o(low(WEIGHT))),
        (ATTENDED, lambda: o(cut(WEIGHT))),
        (MLP, lambda: ACT @ low(DOWN, torch.float16).T + low(DOWN_B, torch.float16)),
        (Q, lambda: rotated(heads(NORM1 @ low(QW).T + QB))),
    ],
    "linear in low precision": [
        (ATTENDED, lambda: o(x=low(X))),
        (ATTENDED, lambda: o(low(WEIGHT), low(BIAS), low(X))),
        (ATTENDED, lambda: low(o(low(WEIGHT), low(BIAS), low(X)))),
    ],
    "weight in int8": [
        (ATTENDED, lambda: o(whole(WEIGHT, WEIGHT.abs().max() / 127))),
        (ATTENDED, lambda: o(whole(WEIGHT, ROW))),
        (ATTENDED, lambda: o(whole(WEIGHT, WEIGHT.abs().amax(0) / 127))),
        (ATTENDED, lambda: o(whole(WEIGHT, ROW, by=torch.trunc))),
    ],
    "weight in int4": [
        (ATTENDED, lambda: o(groups(WEIGHT, 32))),
        (MLP, lambda: ACT @ groups(DOWN, 48).T + DOWN_B),
    ],
    "zero point sign": [(ATTENDED, lambda: o((CODES + ZERO) * SCALE)), (ATTENDED, lambda: o(CODES * SCALE))],
    "input in int8": [
        (ATTENDED, lambda: o(x=whole(X, TOKEN))),
        (ATTENDED, lambda: o(x=whole(X, X.abs().max() / 127))),
        (ATTENDED, lambda: o(x=whole(X, TOKEN, by=torch.trunc))),
    ],
    "linear missing": [(ATTENDED, lambda: X)],
    "input heads merged otherwise": [(ATTENDED, lambda: o(x=CASE.p("layer0.attn").mT.flatten(2)))],
    "input of another op": [(V, lambda: heads(CASE.p("layer0.residual") @ VW.T + VB))],
    "input of another token": [
        (ATTENDED, lambda: o(x=torch.cat((X[:, :1], X[:, :-1]), 1))),
        (Q, lambda: rotated(heads(torch.cat((NORM1[:, :1], NORM1[:, :-1]), 1) @ QW.T + QB))),
    ],
}
CASES = [
    pytest.param(name, tap, bug, id=f"{name} {at}")
    for name, made in BUGS.items()
    for at, (tap, bug) in enumerate(made)
]


@pytest.mark.parametrize(("name", "tap", "bug"), CASES)
def test_a_mistake_of_a_linear_layer_is_named(name, tap, bug):
    found = lab.explained(CASE, tap, bug())
    assert found.kinds == (name,)
    assert found.cause.residual < 1e-4 < found.cause.next_best


@pytest.mark.parametrize("reading", ["[head, 3, d]", "[3, head, d]"])
def test_packed_rows_that_are_split_otherwise_are_named(reading):
    """Rows packed one way and cut the other: q gets rows of k and v."""
    weights = packed()
    case, x = lab.made(), CASE.v["layer0.norm1"]
    rows = []
    for name, weight in weights.items():
        case.w[name] = weight
        case.v[f"layer0.{name}"] = (x @ weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)
        rows.append(
            {
                "taps": f"layer0.{name}",
                "role": "projection",
                "inputs": ("layer0.norm1",),
                "parameters": {},
                "weights": (name,),
            }
        )
    case.provenance["roles"] = rows
    both = torch.cat(list(weights.values()))
    mine = (
        both.view(2, 3, 8, 32)[:, 1]
        if reading == "[head, 3, d]"
        else both.view(3, 2, 8, 32).transpose(0, 1).reshape(3, 16, 32)[1]
    )
    wrong = (CASE.p("layer0.norm1") @ mine.reshape(16, 32).T).unflatten(-1, (-1, 8)).transpose(1, 2)
    found = lab.explained(case, "layer0.q", wrong)
    assert found.kinds == ("packed heads split otherwise",)
    assert reading in found.cause.name


def test_vocabulary_rows_in_each_others_place_are_named():
    found = lab.explained(CASE, "logits", swapped(0, lab.PROMPT))
    assert found.cause.name == "rows 97 and 98 of its weight swapped"


def swapped(start: int, stop: int) -> Tensor:
    logits = CASE.cut("logits", start, stop).clone()
    logits[..., [97, 98]] = logits[..., [98, 97]]
    return logits


def decoded(change):
    """Changed logits of the decoding steps, of one token each."""
    return {step: change(start, stop) for step, (start, stop) in enumerate(CASE.steps()) if step}


def test_rows_in_each_others_place_are_told_from_scaled_ones_by_other_steps():
    found = lab.explained(CASE, "logits", decoded(swapped))
    assert found.cause.name == "rows 97 and 98 of its weight swapped"


def test_a_row_that_is_scaled_alike_at_every_step_is_named():
    def scaled(start, stop):
        logits = CASE.cut("logits", start, stop).clone()
        logits[..., 97] *= 1.2
        return logits

    found = lab.explained(CASE, "logits", decoded(scaled))
    assert found.cause.name == "rows of its weight scaled: 97 times 1.2"


def test_a_factor_that_another_step_does_not_bear_out_is_no_cause():
    """One weight of a row is wrong: each single token fits some factor of the row, but never the same."""

    def added(start, stop):
        logits = CASE.cut("logits", start, stop).clone()
        logits[..., 5] += 3 * CASE.cut("final", start, stop)[..., 7]
        return logits

    assert lab.explained(CASE, "logits", decoded(added)).cause is None
    assert lab.explained(CASE, "logits", {1: added(10, 11)}).cause is None


def test_a_channel_factor_of_one_token_is_no_cause():
    case = lab.made()
    case.provenance["roles"] = []

    def moved(start, stop):
        values = case.cut("layer0.mlp", start, stop).clone()
        values[..., 7] += case.cut("layer0.act", start, stop)[..., 3]
        return values

    steps = {step: moved(start, stop) for step, (start, stop) in enumerate(case.steps()) if step}
    assert lab.explained(case, "layer0.mlp", steps).cause is None


def test_without_weights_it_is_said_that_they_are_missing():
    found = lab.explained(CASE, ATTENDED, o(WEIGHT.T), weights=False)
    assert found.cause is None
    assert "its weights are not at hand: hypotheses about them are left out" in found.notes


def test_a_role_that_does_not_describe_the_op_is_said_and_not_believed():
    case = lab.made()
    case.v["layer0.o"] = case.v["layer0.o"] * 1.5
    found = lab.explained(case, ATTENDED, -case.p("layer0.o"))
    assert found.cause.name == "the sign is flipped"
    assert any("gives the reference's own output only to" in note for note in found.notes)


def test_a_role_table_that_names_the_wrong_weights_costs_no_verdict():
    case = lab.made()
    row = next(row for row in case.provenance["roles"] if row["taps"] == ATTENDED)
    row["weights"] = ("body.blocks.0.mlp.up_proj.weight", "body.blocks.0.ln1.bias")
    found = lab.explained(case, ATTENDED, -case.p(ATTENDED))
    assert found.cause is None
    assert found.notes[0].startswith("what is said of its op cannot be computed (ValueError")


def test_every_hypothesis_about_linear_layers_has_a_test():
    assert {*BUGS, "packed heads split otherwise"} == {h.name for h in CATALOGUE if h.family == "linear"}
