"""Which stage is guilty: runs that differ by one stage, faults planted in it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from parity.harness.compare import floors_from
from parity.harness.rows import Rules
from parity.harness.stages import INSTRUMENTATION, Played, guilty, hold_stages
from parity.harness.tolerance import load_tolerance


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
TAPS = ("a", "b", "c")
FP32 = Rules(load_tolerance("fp32"), {})
BF16 = Rules(load_tolerance("bf16"), {})


def nudge(size: float):
    return lambda values: values + np.float32(size)


def moved(size: float, taps=TAPS):
    """Changes for every step of some taps."""
    return {(tap, step): nudge(size) for tap in taps for step in range(3)}


def chain(*, top=None, tpu=None, sim=None, hide=()) -> list[Played]:
    """reference, onnx, top, tpu, sim; the number format moves everything by 1e-3 from tpu on."""

    def run(name, changes, skip=()):
        fused = [{"taps": tap, "reason": "fused", "steps": None} for tap in dict(skip)]
        return factory.simple(name, changes=changes, skip=skip, unobserved=fused)

    tpu = moved(1e-3) if tpu is None else tpu
    hidden = [(tap, step) for tap in hide for step in range(3)]
    return [
        Played("torch", "", run("torch", {})),
        Played("cvi/onnx", "export", run("onnx", {}), rules=FP32),
        Played("cvi/top", "conversion", run("top", top or {}), rules=FP32),
        Played("cvi/tpu", "quantization", run("tpu", tpu), rules=BF16),
        Played("cvi", "code generation", run("sim", tpu if sim is None else sim, hidden), as_moved=True),
    ]


def names(stages):
    return [(stage.name, stage.verdict) for stage in stages]


def test_a_healthy_pipeline_has_no_guilty_stage():
    stages = hold_stages(chain())
    assert [verdict for _, verdict in names(stages)] == ["parity"] * 4
    assert guilty(stages) is None


def test_the_stage_that_departs_is_named_with_its_first_tap():
    for fault, name in (
        ({"top": moved(0.5, ("b",))}, "conversion"),
        ({"tpu": moved(5.0, ("c",))}, "quantization"),
        ({"sim": {**moved(1e-3), ("b", 1): nudge(3.0)}}, "code generation"),
    ):
        cause = guilty(hold_stages(chain(**fault)))
        assert cause is not None
        assert cause.name == name
        assert cause.tap == {"conversion": "b", "quantization": "c", "code generation": "b"}[name]


def test_what_a_stage_passes_on_is_not_charged_to_the_next():
    wrong = moved(5.0, ("b", "c"))
    stages = hold_stages(chain(top=wrong, tpu=wrong, sim=wrong))
    assert names(stages)[1:] == [
        ("conversion", "divergence"), ("quantization", "parity"), ("code generation", "parity")
    ]  # fmt: skip


def test_code_generation_may_move_a_tap_as_much_as_the_format_did_and_no_more():
    assert guilty(hold_stages(chain(sim=moved(2e-3)))) is None
    cause = guilty(hold_stages(chain(sim=moved(0.05))))
    assert cause is not None
    assert cause.name == "code generation"


def test_an_instrumented_build_places_what_the_plain_one_hides():
    wrong = {**moved(1e-3), **moved(3.0, ("b", "c"))}
    played = chain(sim=wrong, hide=("b",))
    assert guilty(hold_stages(played)).tap == "c"
    closer = Played("cvi/tapped", INSTRUMENTATION, factory.simple("tapped", changes=wrong))
    stages = hold_stages([*played[:-1], replace(played[-1], closer=closer)])
    assert guilty(stages).tap == "b"
    assert names(stages)[-1] == (INSTRUMENTATION, "parity")


def instrumented(*, sim, tapped, rules=BF16):
    """Verdict of the instrumentation, where the clean build and the instrumented one move taps so."""
    played = chain(sim=sim)
    closer = Played("cvi/tapped", INSTRUMENTATION, factory.simple("tapped", changes=tapped))
    stages = hold_stages([*played[:-1], replace(played[-1], rules=rules, closer=closer)])
    return stages[-1]


def test_two_builds_that_each_keep_to_what_is_allowed_do_not_depart_from_each_other():
    one, two = moved(1e-3 + 6e-3), moved(1e-3 - 6e-3)
    found = instrumented(sim=one, tapped=two)
    assert (found.name, found.verdict) == (INSTRUMENTATION, "parity")
    assert found.ratio is not None
    assert 0.5 < found.ratio <= 1
    assert instrumented(sim=one, tapped=moved(0.5)).verdict == "divergence"


def test_a_tap_that_the_interpreter_hides_is_judged_by_the_candidates_own_floor():
    """Both builds show `b`, the levels before do not: nobody saw it move, its format still explains it."""
    hidden = [("b", step) for step in range(3)]
    fused = [{"taps": "b", "reason": "fused", "steps": None}]
    floors = floors_from(factory.simple("one"), [factory.simple("two", changes=moved(1e-3))])
    played = chain(sim=moved(1e-3))
    for at, name in ((2, "top"), (3, "tpu")):
        run = factory.simple(name, changes=moved(1e-3 * (at - 2)), skip=hidden, unobserved=fused)
        played[at] = replace(played[at], run=run)
    closer = Played("cvi/tapped", INSTRUMENTATION, factory.simple("tapped", changes=moved(2e-3)))
    auto = Rules(load_tolerance("auto"), floors)
    stages = hold_stages([*played[:-1], replace(played[-1], rules=auto, closer=closer)])
    assert names(stages)[-1] == (INSTRUMENTATION, "parity")
    assert guilty(stages) is None


def stood_in(*, tapped):
    """A wrong clean build behind an interpreter that could only be run for the instrumented one."""
    played = chain(sim={**moved(1e-3), ("b", 1): nudge(3.0)})
    played[3] = replace(played[3], stand_in=True)
    closer = Played("cvi/tapped", INSTRUMENTATION, factory.simple("tapped", changes=tapped))
    return hold_stages([*played[:-1], replace(played[-1], closer=closer)])


def test_a_stand_in_for_the_interpreter_convicts_code_generation_only_of_what_it_leads_to():
    same = guilty(stood_in(tapped={**moved(1e-3), ("a", 1): nudge(3.0)}))
    assert (same.name, same.tap) == ("code generation", "a")
    other = guilty(stood_in(tapped=moved(1e-3)))
    assert (other.name, other.tap) == ("quantization or code generation", "b")


def test_a_stage_that_cannot_be_looked_at_shares_the_blame_with_the_next():
    played = chain(sim=moved(3.0))
    played[3] = Played("cvi/tpu", "quantization", None, failure="the interpreter ended")
    played[4] = replace(played[4], rules=BF16)
    stages = hold_stages(played)
    shared = "quantization or code generation"
    assert names(stages)[2:] == [("quantization", "failed"), (shared, "divergence")]
    assert guilty(stages).name == shared


def test_a_stage_after_which_nothing_runs_is_guilty_in_its_own_words():
    played = chain()
    played[4] = Played("cvi", "code generation", None, failure="it aborts at load")
    cause = guilty(hold_stages(played))
    assert cause.name == "code generation"
    assert "it aborts at load" in cause.evidence
    assert "quantization changed no more than allowed" in cause.evidence
