"""Every mistake in norms, MLPs, sums and embeddings is named by what it is, computed here in torch."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
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
W, P = CASE.w, lab.PROMPT
BLOCK = "body.blocks.0."
GAIN, SHIFT = W[BLOCK + "ln2.weight"], W[BLOCK + "ln2.bias"]
MID = CASE.p("layer0.mid")
EPS = 1e-5


def low(x: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(kind).float()


def ln(x=MID, gain=GAIN, shift=SHIFT, *, eps: float = EPS) -> Tensor:
    return F.layer_norm(x, (32,), gain, shift, eps)


def rms(x=MID, gain=GAIN, shift: Tensor | float = SHIFT) -> Tensor:
    return F.rms_norm(x, (32,), gain, EPS) + shift


CENTRED = MID - MID.mean(-1, keepdim=True)
VARIANCE = CENTRED.square().mean(-1, keepdim=True)
NORM = {
    "other eps": [lambda: ln(eps=1e-3), lambda: ln(eps=1e-2)],
    "the other norm": [lambda: rms(), lambda: rms(shift=0.0)],
    "bias dropped": [lambda: ln(shift=None)],
    "bias twice": [lambda: ln(shift=2 * SHIFT)],
    "weight dropped": [lambda: ln(gain=None)],
    "weight and bias dropped": [lambda: ln(gain=None, shift=None)],
    "weight off by one": [lambda: ln(gain=GAIN + 1), lambda: ln(gain=GAIN - 1)],
    "weight and bias swapped": [lambda: ln(gain=SHIFT, shift=GAIN)],
    "unbiased variance": [
        lambda: CENTRED / (MID.var(-1, keepdim=True, correction=1) + EPS).sqrt() * GAIN + SHIFT
    ],
    "no square root": [lambda: CENTRED / (VARIANCE + EPS) * GAIN + SHIFT],
    "sum of squares": [lambda: F.normalize(CENTRED, dim=-1) * GAIN + SHIFT],
    "mean not taken off": [lambda: MID / (VARIANCE + EPS).sqrt() * GAIN + SHIFT],
    "norm missing": [lambda: MID],
    "norm twice": [lambda: ln(ln())],
    "norm before the residual": [lambda: ln(CASE.p("layer0.residual")), lambda: ln(CASE.p("layer0.o"))],
    "norm of another layer": [
        lambda: ln(gain=W["body.blocks.1.ln2.weight"], shift=W["body.blocks.1.ln2.bias"])
    ],
    "norm over tokens": [lambda: F.layer_norm(MID.mT, (P,)).mT * GAIN + SHIFT],
    "norm in low precision": [
        lambda: F.layer_norm(MID.bfloat16(), (32,), GAIN.bfloat16(), SHIFT.bfloat16()).float(),
        lambda: ln(low(MID)),
        lambda: ln(low(MID, torch.float16)),
    ],
}

X = CASE.p("layer0.norm2")
UP, UP_B = W[BLOCK + "mlp.up_proj.weight"], W[BLOCK + "mlp.up_proj.bias"]
GATE, GATE_B = W[BLOCK + "mlp.gate_proj.weight"], W[BLOCK + "mlp.gate_proj.bias"]
A, B = F.linear(X, UP, UP_B), F.linear(X, GATE, GATE_B)
BOTH = torch.cat((A, B), -1)
MLP = {
    "other activation": [
        lambda: F.gelu(A) * B,
        lambda: F.gelu(A, approximate="tanh") * B,
        lambda: F.relu(A) * B,
        lambda: A.sigmoid() * B,
        lambda: F.hardswish(A) * B,
    ],
    "activation missing": [lambda: A * B],
    "activation twice": [lambda: F.silu(F.silu(A)) * B],
    "activation in low precision": [lambda: F.silu(A.bfloat16()).float() * B],
    "activation on the other branch": [lambda: A * F.silu(B)],
    "activation on both branches": [lambda: F.silu(A) * F.silu(B)],
    "activation after the product": [lambda: F.silu(A * B)],
    "gate missing": [lambda: F.silu(A), lambda: B],
    "branches added": [lambda: F.silu(A) + B],
    "branch used twice": [lambda: F.silu(A) * A, lambda: F.silu(B) * B],
    "branch bias dropped": [
        lambda: F.silu(X @ UP.T) * B,
        lambda: F.silu(A) * (X @ GATE.T),
        lambda: F.silu(X @ UP.T) * (X @ GATE.T),
    ],
    "branches packed otherwise": [lambda: F.silu(BOTH[..., ::2]) * BOTH[..., 1::2]],
    "branch weights in low precision": [
        lambda: F.silu(F.linear(X, low(UP), low(UP_B))) * F.linear(X, low(GATE), low(GATE_B))
    ],
    "branches of another layer": [
        lambda: (
            F.silu(F.linear(X, W["body.blocks.1.mlp.up_proj.weight"], W["body.blocks.1.mlp.up_proj.bias"]))
            * F.linear(X, W["body.blocks.1.mlp.gate_proj.weight"], W["body.blocks.1.mlp.gate_proj.bias"])
        )
    ],
}

R, OUT = CASE.p("layer0.residual"), CASE.p("layer0.o")
ADD = {
    "summand missing": [lambda: OUT, lambda: R],
    "summand twice": [lambda: R + 2 * OUT, lambda: 2 * R + OUT],
    "summand subtracted": [lambda: R - OUT],
    "summand normalised": [lambda: F.layer_norm(R, (32,)) + OUT, lambda: R + F.rms_norm(OUT, (32,))],
    "summand from elsewhere": [lambda: CASE.p("layer0.norm1") + OUT, lambda: R + CASE.p("layer1.o")],
    "summand of another token": [
        lambda: torch.cat((CASE.p("layer0.mid")[:, :1], R[:, :-1] + OUT[:, 1:]), 1),
    ],
    "sum scaled": [lambda: (R + OUT) / 2, lambda: (R + OUT) / math.sqrt(2)],
    "multiplied": [lambda: R * OUT],
    "summand in low precision": [lambda: low(R) + OUT, lambda: (R.bfloat16() + OUT.bfloat16()).float()],
}

IDS, TABLE = CASE.p("ids"), W["embedding.word_embeddings.weight"]
EMBED = {
    "row off by one": [lambda: TABLE[IDS - 1], lambda: TABLE[(IDS + 1) % 320]],
    "ids clipped": [lambda: TABLE[IDS.clamp(max=128)], lambda: TABLE[IDS.clamp(max=255)]],
    "ids wrapped": [lambda: TABLE[IDS % 256], lambda: TABLE[IDS % 128]],
    "unknown ids": [lambda: TABLE[torch.where(IDS >= 128, 0, IDS)], lambda: TABLE[IDS * 0]],
    "ids read in halves": [lambda: TABLE[IDS.contiguous().view(torch.int32)[:, :P].long()]],
    "embedding scaled": [lambda: TABLE[IDS] * math.sqrt(32)],
    "embedding of another token": [lambda: torch.cat((TABLE[IDS[:, :1]], TABLE[IDS[:, :-1]]), 1)],
    "table in low precision": [
        lambda: low(TABLE)[IDS],
        lambda: ((TABLE / (TABLE.abs().max() / 127)).round() * (TABLE.abs().max() / 127))[IDS],
    ],
    "table read transposed": [lambda: TABLE.T.reshape(320, 32)[IDS]],
}
TAPS = {"layer0.norm2": NORM, "layer0.act": MLP, "layer0.mid": ADD, "embed": EMBED}
CASES = [
    pytest.param(tap, name, bug, id=f"{tap} {name} {at}")
    for tap, bugs in TAPS.items()
    for name, made in bugs.items()
    for at, bug in enumerate(made)
]


@pytest.mark.parametrize(("tap", "name", "bug"), CASES)
def test_a_mistake_is_named(tap, name, bug):
    found = lab.explained(CASE, tap, bug())
    assert found.kinds == (name,)
    assert (
        found.cause.residual < 1e-3 < found.cause.next_best
        or found.cause.next_best > 20 * found.cause.residual
    )


def lone(role: str, output, inputs, weights=None, numbers=None):
    made = lab.Lone(role, inputs, weights or {}, numbers or {})
    return made.case(output)


X3 = torch.randn(1, 14, 32, generator=torch.Generator().manual_seed(1))


def test_eps_beside_the_root_is_named():
    """Where eps is of the size of the values themselves."""
    small = X3 * 0.01
    weights = {"w": GAIN, "b": SHIFT}
    case = lone("layernorm", ln(small), {"x": small}, weights, {"eps": EPS})
    centred = small[:, :P] - small[:, :P].mean(-1, keepdim=True)
    wrong = centred / (centred.square().mean(-1, keepdim=True).sqrt() + EPS) * GAIN + SHIFT
    assert lab.kinds(case, "out", wrong) == ("eps outside the root",)


def test_a_layer_norm_in_place_of_an_rms_norm_is_named():
    case = lone("rmsnorm", rms(X3, shift=0.0), {"x": X3}, {"w": GAIN}, {"eps": EPS})
    assert lab.kinds(case, "out", ln(X3[:, :P], shift=None)) == ("the other norm",)


def test_transposed_square_branches_are_named():
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(32, 32, generator=generator) / 5 for _ in range(2))
    case = lone("gated_silu", F.silu(X3 @ first.T) * (X3 @ second.T), {"x": X3}, {"f": first, "s": second})
    x = X3[:, :P]
    assert lab.kinds(case, "out", F.silu(x @ first) * (x @ second)) == ("branch weights transposed",)


def test_a_plain_activation_is_told_without_weights():
    case = lone("gelu", F.gelu(X3), {"x": X3})
    assert lab.kinds(case, "out", F.gelu(X3[:, :P], approximate="tanh"), weights=False) == (
        "other activation",
    )
    assert lab.kinds(case, "out", X3[:, :P], weights=False) == ("activation missing",)


def test_another_table_of_the_same_shape_is_named():
    """Logits of a head of its own, looked up in place of the embedding."""
    case = lab.made()
    case.w["lm_head.lm_head.weight"] = torch.randn(320, 32, generator=torch.Generator().manual_seed(3))
    case.v["logits"] = case.v["final"] @ case.w["lm_head.lm_head.weight"].T
    assert lab.kinds(case, "embed", case.w["lm_head.lm_head.weight"][IDS]) == ("other table",)


def test_every_hypothesis_of_these_families_has_a_test():
    elsewhere = {"eps outside the root", "branch weights transposed", "other table"}
    families = ("norm", "mlp", "residual", "embedding")
    assert {*NORM, *MLP, *ADD, *EMBED, *elsewhere} == {h.name for h in CATALOGUE if h.family in families}
