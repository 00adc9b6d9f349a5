"""The terminal report: the answer first, culprits and not casualties, legible at 80 columns."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from parity import registry
from parity.harness.comparison import (
    Cause,
    Comparison,
    Culprit,
    Finding,
    Result,
    Stage,
    Tokens,
    TokenStep,
)
from parity.harness.errors import UserError
from parity.reports import words
from parity.reports.console import print_result
from parity.stages import write_reports


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("report_factory")


def printed(*comparisons: Comparison, width: int = 140, colour: bool = False, **options: Any) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_result(factory.result(comparisons), console, **options)
    return out.getvalue()


def test_the_first_lines_are_one_verdict_per_candidate() -> None:
    made = (factory.diverging(), factory.passing(), factory.inconclusive(), factory.failed())
    lines = printed(*made, width=200).splitlines()[:4]
    assert [line.split()[0] for line in lines] == ["DIVERGENCE", "PARITY", "INCONCLUSIVE", "FAILED"]
    assert "first at layer2.q_rot, step 3, head 0" in lines[0]
    assert "worst layer2.q_rot, step 5: 102×" in lines[0]
    assert "60 fail, 24 skipped, 216 pass, 6 equal" in lines[0]
    assert "93.8 % checked" in lines[0]


def test_a_divergence_is_told_in_the_failure_grammar() -> None:
    text = printed(factory.diverging())
    for said in (
        "relative error=8.0e-5, but should be at most 2.0e-6 (40×) [layer2.q_rot, step 3]",
        "of 384 values mismatched (95.3 %)",
        "got 1.658868, want 1.658393",
        "layer2.v was still right",
        "first among 138 of 150 checked values; 12 fused ones before it could hide an earlier fault",
        "layer2.q_rot in seg_2, step 3, 40×: its inputs agree and its output does not",
        "rotation of interleaved pairs instead of halves at layer2.q_rot",
        "warning   override layer9.* matched no tap",
        "out/report.html",
    ):
        assert said in text, said
    assert "2 threads" not in text


def test_casualties_are_folded_and_the_culprit_keeps_its_line() -> None:
    lines = printed(factory.diverging()).splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("  tap")) :]
    culprit = next(line for line in table if line.startswith("▸"))
    assert culprit.split()[1:4] == ["layer2.q_rot", "5", "fail"]
    assert any(
        "layer2.mlp .. norm: 14 taps (13 fail, 1 skipped, inherited), worst 76×" in line for line in table
    )
    assert any("embed .. layer2.k: 28 taps within tolerance, 2 skipped" in line for line in table)
    assert any(line.split()[:1] == ["layer2.v"] for line in table)


def test_verbose_shows_every_tap() -> None:
    text = printed(factory.diverging(), verbose=True)
    assert all(
        any(line.split()[:1] == [tap] for line in text.splitlines())
        for tap in factory.tap_names()
        if tap != "layer2.q_rot"
    )


def test_five_hundred_culprits_are_a_small_set_and_the_table_keeps_its_budget() -> None:
    names = [f"layer{i}.q" for i in range(500)]
    records = tuple(factory.row(0, name, 0, 5.0, local_ratio=5.0) for i, name in enumerate(names))
    culprits = tuple(Culprit(name, 0, "seg", "its inputs agree", 5.0) for name in names)
    lines = printed(factory.diverging(records=records, culprits=culprits, first=None)).splitlines()
    assert len(lines) < 70
    assert any("and 492 more" in line for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    made = (factory.diverging(batch=3), factory.passing(), factory.inconclusive(), factory.failed())
    widest = max(printed(*made, width=width).splitlines(), key=cell_len)
    assert cell_len(widest) <= max(width, 66), widest


def test_in_a_narrow_terminal_where_moves_below_its_row() -> None:
    lines = printed(factory.diverging(), width=80).splitlines()
    below = next(i for i, line in enumerate(lines) if line.startswith("▸")) + 1
    assert lines[below] == "    head 0"


def test_only_deviating_cells_are_coloured() -> None:
    lines = printed(factory.diverging(), colour=True).splitlines()
    casualty = next(line for line in lines if "layer2.k_rot" in line)
    assert casualty.count("\x1b[1;31m") == 2
    healthy = next(line for line in lines if "layer2.v  " in line)
    assert "\x1b[1;31m" not in healthy


def test_colour_is_off_where_the_console_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in printed(factory.diverging())
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    print_result(factory.result([factory.diverging()]), Console(file=out, force_terminal=True, width=120))
    assert "\x1b[1;31m" not in out.getvalue()
    assert "31m" not in out.getvalue()


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    made = factory.diverging(findings=(Finding("warning", "größer"),))
    print_result(factory.result([made]), Console(file=out, width=120))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "> layer2.q_rot" in text
    assert "40x" in text


def test_names_and_texts_cannot_drive_the_terminal_or_its_markup() -> None:
    evil = "\x1b[2J[bold red]x[/]\u202e\r\n"
    made = factory.passing(
        records=(factory.row(0, evil, 0, 3.0, slice=evil, reason=evil),),
        findings=(Finding("error", evil),),
        tokens=Tokens(2, 1, (), (evil,), ("x" + evil,)),
    )
    text = printed(made)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J[bold red]x[/]" in text


def test_tokens_say_where_they_part_and_what_is_a_tie() -> None:
    flips = (TokenStep(4, 1, 10, 11, 0.01, 3.0),)
    tokens = Tokens(12, 11, flips, ("same", "the cat"), ("same", "the dog"))
    text = printed(factory.passing(tokens=tokens))
    assert "11 of 12 tokens agree (forced replay)" in text
    assert "first flip at step 4, sequence 1: token 10 became 11" in text
    assert "margin 0.01 in the reference, 3 in the candidate: a tie" in text
    assert "the cat" in text
    assert "same" not in text


def test_texts_that_part_late_are_cut_around_that_place() -> None:
    tokens = Tokens(2, 1, (), ("a" * 500 + "cat",), ("a" * 500 + "dog",))
    lines = [line for line in printed(factory.passing(tokens=tokens), width=80).splitlines() if "aaa" in line]
    assert lines[0].endswith("acat")
    assert lines[1].endswith("adog")
    assert all(cell_len(line) <= 80 for line in lines)


def test_an_unsound_reference_convicts_nobody() -> None:
    text = printed(factory.diverging(unsound="the reference differs from itself between two runs"))
    assert text.startswith("INCONCLUSIVE  onnx: the reference differs from itself")
    assert "culprits" not in text
    assert "▸" not in text


def test_what_qualifies_a_divergence_is_said_as_a_warning() -> None:
    assert "warning   only 3 % was compared" in printed(
        factory.diverging(inconclusive="only 3 % was compared")
    )


def test_nothing_at_all_is_inconclusive() -> None:
    assert printed().startswith("INCONCLUSIVE  no candidate was compared")


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (lambda: factory.passing(), "Nothing to do."),
        (lambda: factory.failed(), "Make the candidate run"),
        (lambda: factory.inconclusive(), "this is not a pass"),
        (lambda: factory.diverging(), "Look at layer2.q_rot for: rotation of interleaved pairs"),
        (lambda: factory.diverging(causes=()), "Look inside seg_2 at layer2.q_rot, step 3"),
        (lambda: factory.diverging(causes=(), culprits=()), "Look between layer2.v and layer2.q_rot"),
        (lambda: unanswered("missing"), "Make the candidate record embed"),
        (lambda: unanswered("shape"), "Declare the layout of embed"),
    ],
    ids=["parity", "failed", "inconclusive", "cause", "culprit", "first", "missing", "shape"],
)
def test_every_verdict_says_what_to_do_next(comparison: Callable[[], Comparison], said: str) -> None:
    assert said in words.next_step(comparison())


def unanswered(status: str) -> Comparison:
    """One record without a usable counterpart."""
    row = factory.row(
        0, "embed", 0, 0.0, status=status, reason=f"{status}!", error=None, ratio=None, metrics=None
    )
    made: Comparison = factory.passing(records=(row,))
    return made


def test_a_missing_tap_is_a_divergence_that_names_its_reason() -> None:
    text = printed(unanswered("missing"), width=200)
    assert text.startswith("DIVERGENCE    segmented: first at embed, step 0")
    assert "missing!" in text


def test_not_finite_values_are_counted_on_each_side() -> None:
    import numpy as np

    from parity.harness.metrics import measure

    actual, expected = np.array([1.0, np.nan, np.inf]), np.array([1.0, 2.0, -np.inf])
    row = replace(factory.row(0, "x", 0, 3.0), status="nonfinite", metrics=measure(actual, expected))
    said = " ".join(words.evidence(row))
    assert "NaN: 1 in the candidate, 0 in the reference" in said
    assert "-Inf: 0 in the candidate, 1 in the reference" in said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (3.2e-7, "3.2e-7"),
        (0.4133, "0.41"),
        (41.3, "41"),
        (412.3, "412"),
        (8123.0, "8,123"),
        (812345.0, "8.1e5"),
        (99.99, "100"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.0, "0 %"), (0.982, "98.2 %"), (0.99996, "99.996 %"), (1e-9, "< 0.0001 %")],
)
def test_all_and_nothing_are_never_rounded_to(share: float, text: str) -> None:
    assert words.percent(share) == text


def test_report_kinds_load_lazily_and_an_unknown_one_is_refused() -> None:
    assert all(callable(registry.report(kind)) for kind in registry.reports())
    with pytest.raises(UserError, match="Did you mean"):
        registry.report("htlm")


def test_another_package_adds_a_kind_of_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_report.py").write_text(
        "def write(result, path):\n    path.write_text(f'{len(result)} candidates')\n"
    )
    point = EntryPoint("plain", "their_report:write", "parity.reports")
    found = {"parity.reports": [point]}
    monkeypatch.setattr(registry, "entry_points", lambda group: found.get(group, []))
    monkeypatch.syspath_prepend(tmp_path)
    written = write_reports(factory.result([factory.diverging()]), {"plain": tmp_path / "page.txt"})
    assert (tmp_path / "page.txt").read_text() == "1 candidates"
    assert written.files["plain"] == str(tmp_path / "page.txt")


def test_a_result_of_stored_runs_prints_like_the_live_one(tmp_path: Path) -> None:
    from parity.reports.json_report import read_json, write_json

    result: Result = factory.result([factory.diverging()])
    stored = read_json(write_json(result, tmp_path / "report.json"))
    out = [io.StringIO(), io.StringIO()]
    for file, shown in zip(out, (result, stored), strict=True):
        print_result(shown, Console(file=file, width=120))
    assert out[0].getvalue() == out[1].getvalue()


def test_why_candidates_of_one_compiler_failed_is_printed_once() -> None:
    """The build with taps failed alike: only the path of its log differs."""
    why = "net: the compiler failed in lowering at Sin s; the whole log: /cache/{}/log.txt"
    text = why.format("one")
    stages = (
        Stage("conversion", "cvi/onnx", "cvi/top", "parity", tap="s", ratio=0.1, compared=2),
        Stage("quantization", "cvi/top", "cvi/tpu", "failed", reason=text),
        Stage("code generation", "cvi/top", "cvi", "failed", reason=text),
    )
    cause = Cause("", "quantization", f"{text}; before it, conversion changed no more than allowed")
    made = [replace(factory.failed(), label=label, failure=text) for label in ("cvi/tpu", "cvi")]
    made[1] = replace(made[1], stages=stages, causes=(cause,))
    made.append(replace(factory.failed(), label="cvi/tapped", failure=why.format("two")))
    lines = printed(*made, width=200).splitlines()
    assert sum("lowering at Sin s" in line for line in lines) == 1
    assert lines[0].split(maxsplit=1) == ["FAILED", f"cvi/tpu: {text}"]
    assert lines[1].endswith("cvi: as cvi/tpu, see above")
    assert lines[2].endswith("cvi/tapped: as cvi/tpu, see above")
    told = "\n".join(lines)
    assert "quantization (cvi/top to cvi/tpu): failed as said above" in told
    assert "why       quantization: failed as said above; before it, conversion changed" in told


def test_both_parts_of_a_quantized_candidates_error_are_one_paragraph() -> None:
    made = factory.diverging()
    assert "parts  " not in printed(made)
    row = next(row for row in made.records if (row.tap, row.step) == (made.first.tap, made.first.step))
    row.quantization, row.implementation = 0.4, 0.0
    side = replace(made.candidate, provenance={**made.candidate.provenance, "dtype": "w8a8"})
    told = printed(replace(made, candidate=side))
    assert f"parts     100 % of its error is quantization: worst 0.4 at {row.tap}, step {row.step};" in told
    assert "implementation: none" in told
    assert "error of the arithmetic itself=0.4, of the implementation besides=0" in told


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(None, ""), (412.3, "412×"), (9e5, "9.0e5×"), (1.5e44, "> 1e6×"), (float("inf"), "> 1e6×")],
)
def test_a_multiple_is_no_longer_than_it_says_something(ratio: float | None, said: str) -> None:
    assert words.multiple(ratio) == said
