"""A chip's candidate and the device's own dump behind it, as the stages of one chain."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from parity.harness.progress import Once, Silent
from parity.harness.rows import Rules
from parity.harness.stages import INSTRUMENTATION
from parity.harness.target import parse_spec
from parity.harness.tolerance import load_tolerance
from parity.stagewise import HARDWARE, Planned, with_stages


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
CHAIN = (
    Planned(parse_spec("cvi"), "code generation", own=True),
    Planned(parse_spec("dump:board"), HARDWARE, own=False),
)


def warnings(chip: dict[str, str], dump: dict[str, str]) -> list[list[str]]:
    """Warnings of the comparison of the chip and of the dump, whose artefacts are these."""
    reference = factory.simple("torch")
    runs = {
        name: factory.simple(name, details={"artefacts": made} if made else {})
        for name, made in (("cvi", chip), ("board", dump))
    }
    found = [factory.compared(reference, run) for run in runs.values()]

    def run_of(comparison):
        return runs[comparison.candidate.run], None

    def rules(run):
        return Rules(load_tolerance("fp32"), {})

    done = with_stages(CHAIN, found, reference, run_of, rules, Silent())
    assert done[0].stages
    return [[said.text for said in one.findings if said.level == "warning"] for one in done]


def test_a_dump_of_other_artefacts_is_warned_of():
    chip, dump = warnings({"seg_0": "a" * 64, "seg_1": "b"}, {"seg_0": "c" * 64, "seg_1": "b", "seg_2": "d"})
    assert not chip
    (text,) = dump
    assert "made from other artefacts than" in text
    assert "seg_0 is cccccccccccc, not aaaaaaaaaaaa; seg_2 is d, not there" in text


@pytest.mark.parametrize("dump", [{"seg_0": "a"}, {}])
def test_a_dump_of_the_same_artefacts_or_of_unsaid_ones_is_not(dump):
    assert warnings({"seg_0": "a", "seg_1": "b"}, dump) == [[], []]


def test_an_instrumented_build_that_computes_something_else_is_warned_of_and_one_that_does_not_is_not():
    reference = factory.simple("torch")
    tapped = Planned(parse_spec("cvi/tapped=cvi:tapped"), INSTRUMENTATION, own=False)
    told = {}
    for name, changes in (("same", {}), ("other", {("b", 1): lambda values: values + 1})):
        runs = {"cvi": factory.simple("cvi"), "cvi/tapped": factory.simple("cvi/tapped", changes=changes)}
        found = [factory.compared(reference, run) for run in runs.values()]
        fp32 = Rules(load_tolerance("fp32"), {})
        done = with_stages(
            (CHAIN[0], tapped),
            found,
            reference,
            lambda one, runs=runs: (runs[one.candidate.run], None),
            lambda run, fp32=fp32: fp32,
            Silent(),
        )
        assert [stage.name for stage in done[0].stages] == ["code generation", INSTRUMENTATION]
        told[name] = [said.text for said in done[0].findings if said.level == "warning"]
    assert told["same"] == []
    (text,) = told["other"]
    assert "first at b, step 1" in text


@pytest.mark.parametrize(("how", "named"), [("failure", ["code generation"]), ("refused", [])])
def test_what_the_user_must_mend_is_no_stages_fault(how, named):
    reference = factory.simple("torch")
    compared = factory.compared(reference, factory.simple("cvi"))
    found = replace(compared, **{how: "input 'x' is float64"})
    rules = Rules(load_tolerance("fp32"), {})
    (done,) = with_stages(
        CHAIN[:1], [found], reference, lambda one: (reference, None), lambda run: rules, Silent()
    )
    assert [cause.name for cause in done.causes] == named
    assert done.stages


def test_a_sentence_that_every_level_finds_is_said_once():
    said: list[str] = []

    class Listening(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    once = Once(Listening())
    for line in ("wrong: k", "wrong: v", "wrong: k"):
        once.say(line)
    assert said == ["wrong: k", "wrong: v"]


def test_a_chip_that_does_not_say_its_artefacts_proves_nothing():
    assert warnings({}, {"seg_0": "a"}) == [[], []]
