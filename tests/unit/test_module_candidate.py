"""A port of a module: its weights are looked at first, and the first wrong module is the guilty one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import ModuleCase, Step
from parity.harness.errors import CandidateError, UserError
from parity.harness.mapping import TapMap
from parity.harness.progress import Silent
from parity.harness.target import Facts, Options
from parity.harness.tracer import recording
from parity.harness.tracer.memory import MemoryRun
from parity.reference.module import ModuleReference
from parity.targets.module import ModuleTarget

NOTHING = np.zeros((0, 0), np.int64)


class Block(nn.Module):
    """A pre-norm feed-forward block, with the knobs that ports get wrong."""

    def __init__(self, *, eps: float = 1e-5, approximate: str = "none") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, eps=eps)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(approximate), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] -> [B, 8]."""
        return x + self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    """Three blocks and a head; `knobs` go to the middle block."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(**knobs), Block()])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] -> [B, 4]."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def reference() -> Net:
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], nn.Module]], str]:
    """Make a factory importable; gives its spec."""

    def put(factory: Callable[[], nn.Module]) -> str:
        module = ModuleType("their_port")
        module.build = factory  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "their_port", module)
        return "their_port:build"

    return put


def recorded(target: Any, case: ModuleCase, arg: str = "", **options: Any) -> tuple[MemoryRun, Facts]:
    session = target.prepare(
        case, arg=arg, options=Options(**options), reference=None, workdir=Path(), progress=Silent()
    )
    run = MemoryRun("run")
    with recording(run):
        session.step(Step(0, "call", ((),), None), NOTHING, NOTHING, None)
    return run, session.facts


def case_of(module: nn.Module) -> ModuleCase:
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * 0.02
    return ModuleCase("theirs:build", module, {"x": x}, "digest")


def first_wrong(case: ModuleCase, spec: str, **options: Any) -> tuple[str | None, Facts]:
    """The first tap, in the reference's order, whose values are not those of the reference."""
    expected, _ = recorded(ModuleReference(), case)
    actual, facts = recorded(ModuleTarget(), case, spec, **options)
    assert actual.taps == expected.taps
    for want, got in zip(expected.records(), actual.records(), strict=True):
        if not np.allclose(got.read(), want.read(), rtol=1e-6, atol=1e-7):
            return want.tap, facts
    return None, facts


def with_weights(module: nn.Module, change: Callable[[nn.Module], None] = lambda module: None) -> nn.Module:
    module.load_state_dict(reference().state_dict())
    with torch.no_grad():
        change(module)
    return module


def test_the_same_module_again_is_right_everywhere(offer: Callable[..., str]) -> None:
    spec = offer(lambda: with_weights(Net()))
    wrong, facts = first_wrong(case_of(reference()), spec)
    assert wrong is None
    assert facts.details["weights"] == "all 20 tensors of the same name are equal"


def swap(module: Any) -> None:
    """Exchange two weights of the middle block."""
    up, down = module.blocks[1].up.weight, module.blocks[1].down.weight
    kept = up.clone()
    up.copy_(down.T)
    down.copy_(kept.T)


@pytest.mark.parametrize(
    ("build", "guilty"),
    [
        (lambda: with_weights(Net(eps=1e-3)), "module:blocks.1.norm"),
        (lambda: with_weights(Net(approximate="tanh")), "module:blocks.1.act"),
        (lambda: with_weights(Net(), swap), "module:blocks.1.up"),
        (lambda: with_weights(Net(), lambda net: net.head.bias.neg_()), "module:head"),
    ],
    ids=["epsilon", "approximated activation", "swapped weights", "sign of a bias"],
)
def test_a_planted_bug_shows_first_in_the_module_that_has_it(
    offer: Callable[..., str], build: Callable[[], nn.Module], guilty: str
) -> None:
    case = case_of(reference())
    case.inputs["x"][:] *= 50 if guilty == "module:blocks.1.act" else 1
    assert first_wrong(case, offer(build))[0] == guilty


def test_weights_that_differ_are_counted_and_named(offer: Callable[..., str]) -> None:
    facts = first_wrong(case_of(reference()), offer(lambda: with_weights(Net(), swap)))[1]
    assert facts.details["weights"] == (
        "2 of 20 tensors differ from the reference's: blocks.1.up.weight, blocks.1.down.weight"
    )


def test_shared_weights_leave_only_what_the_code_does(offer: Callable[..., str]) -> None:
    case = case_of(reference())
    assert first_wrong(case, offer(Net))[0] == "module:blocks.0.up"
    wrong, facts = first_wrong(case, offer(Net), share_weights=True)
    assert wrong is None
    assert "the reference's weights were loaded into it" in facts.substitutions
    assert facts.details["weights"] == "all 20 tensors of the same name are equal"


def test_sharing_writes_to_a_copy_and_not_to_what_the_factory_keeps(offer: Callable[..., str]) -> None:
    kept = Net()
    before = kept.head.weight.clone()
    first_wrong(case_of(reference()), offer(lambda: kept), share_weights=True)
    assert torch.equal(kept.head.weight, before)


def test_weights_that_cannot_be_shared_are_listed(offer: Callable[..., str]) -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.blocks[2]
            self.tail = nn.Linear(4, 4)
            self.head = nn.Linear(8, 3)

    sentence = (
        r"6 only in the reference \(blocks.2.norm.weight, .*\); 2 only in their_port:build \(tail.weight, "
        r"tail.bias\); 2 of another shape \(head.weight, head.bias\)"
    )
    with pytest.raises(UserError, match=sentence):
        recorded(ModuleTarget(), case_of(reference()), offer(Other), share_weights=True)


def recorded_weights(case: ModuleCase, spec: str) -> str:
    case = ModuleCase(case.spec, case.module, {"input": case.inputs["x"]}, case.weights)
    return str(recorded(ModuleTarget(), case, spec)[1].details["weights"])


def test_what_a_port_does_not_have_is_told_and_its_outputs_stay_promised(
    offer: Callable[..., str], tmp_path: Path
) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = with_weights(Net())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    class Known:
        run = recorded(ModuleReference(), case_of(reference()))[0]

    spec = offer(Flat)
    session = ModuleTarget().prepare(
        case_of(reference()),
        arg=spec,
        options=Options(),
        reference=Known(),
        workdir=tmp_path,
        progress=Silent(),
    )
    taps = [item.taps for item in session.facts.unobserved]
    assert taps == [tap for tap in Known.run.taps if tap.startswith("module:")]
    mapping = TapMap(renames={"module:net.*": "module:*"})
    session = ModuleTarget().prepare(
        case_of(reference()),
        arg=spec,
        options=Options(mapping=mapping),
        reference=Known(),
        workdir=tmp_path,
        progress=Silent(),
    )
    assert session.facts.unobserved == ()


def test_modules_without_a_common_name_say_that_weights_were_not_compared(offer: Callable[..., str]) -> None:
    text = recorded_weights(case_of(reference()), offer(lambda: nn.Sequential(nn.Linear(8, 8))))
    assert text == "no tensor has the same name on both sides, so weights were not compared"


def test_a_port_that_fails_is_a_failed_candidate_and_wrong_names_are_the_users(
    offer: Callable[..., str],
) -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(
        CandidateError, match=r"module=Fails: failed on x=float32\[4, 8\]: ValueError: not today"
    ):
        recorded(ModuleTarget(), case_of(reference()), offer(Fails))
    with pytest.raises(UserError, match=r"'x' is no argument of ReLU\.forward, which takes input"):
        recorded(ModuleTarget(), case_of(reference()), offer(nn.ReLU))
    with pytest.raises(UserError, match="name a factory"):
        ModuleTarget().check("", Options())


def test_the_dtype_of_a_candidate_is_its_own_or_the_one_asked_for(offer: Callable[..., str]) -> None:
    facts = recorded(ModuleTarget(), case_of(reference()), offer(lambda: with_weights(Net())), dtype="bf16")[
        1
    ]
    assert facts.dtype == "bfloat16"
    assert facts.substitutions[-1] == "module and floating inputs cast to bfloat16"
    with pytest.raises(UserError, match="not computed in it"):
        recorded(ModuleTarget(), case_of(reference()), offer(Net), dtype="int3")
