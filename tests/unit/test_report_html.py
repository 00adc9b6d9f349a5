"""The page: what it says, that it is one file, and that nothing in a model's names can act on it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parity.harness.comparison import Cause, Comparison, Finding, Result, Stage
from parity.reports.html import render, write_html
from parity.reports.json_report import read_json, write_json


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("report_factory")

ATTACK = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u2028{{7*7}}"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def data_of(page: str) -> Any:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    return json.loads(text.group(1))


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (factory.passing, "segmented agrees with torch in every compared record"),
        (
            factory.diverging,
            "onnx departs from torch first at layer2.q_rot, step 3, head 0: 40× the tolerance.",
        ),
        (
            factory.inconclusive,
            "Nothing is proven about prefilled: no record of the reference has a counterpart",
        ),
        (factory.failed, "cvi failed to run: compiler: tpuc-opt is not installed here"),
    ],
    ids=["parity", "divergence", "inconclusive", "failed"],
)
def test_the_verdict_is_one_sentence_at_the_top(made: Callable[[], Comparison], sentence: str) -> None:
    page = render(factory.result([made()]))
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert heading.group(1).startswith(sentence)


def test_a_divergence_shows_where_why_and_what_next_without_the_script() -> None:
    page = re.sub(r"<script.*?</script>", "", render(factory.result([factory.diverging()])), flags=re.DOTALL)
    for said in (
        "first among 138 of 150 checked values",
        "earliest blind spot: layer0.scores",
        "relative error=8.0e-5, but should be at most 2.0e-6 (40×)",
        "values mismatched",
        "was still right just before",
        "rotation of interleaved pairs instead of halves",
        "override layer9.* matched no tap",
        "onnxruntime",
        "cache rows by absolute position",
        "4 of 6 tokens agree (free replay)",
        "step 5: token 116 became 114; margin 0.012 in the reference, 1.4 in the candidate: a tie",
    ):
        assert said in page, said


def test_a_result_without_candidates_says_so() -> None:
    assert "No candidate was compared." in render(factory.result([]))


def test_the_page_is_one_file_that_asks_for_nothing() -> None:
    page = render(factory.result([factory.diverging(), factory.passing()]))
    elements = Elements(page).found
    assert not [
        tag for tag, _ in elements if tag in {"link", "img", "iframe", "object", "embed", "base", "form"}
    ]
    assert not [attrs for _, attrs in elements if attrs.keys() & {"src", "srcset", "action", "background"}]
    assert all((attrs["href"] or "").startswith("#") for _, attrs in elements if "href" in attrs)
    assert not re.search(r"@import|url\(|@font-face|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)
    assert set(re.findall(r"https?://[^\"' ]*", page)) == {"http://www.w3.org/2000/svg"}


def test_the_pages_own_policy_allows_its_one_script_and_no_request() -> None:
    page = render(factory.result([factory.passing()]))
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def hostile() -> Result:
    """Every text of a result that comes from outside is an attack."""
    made = factory.diverging(wrong="layer2.q_rot", label=ATTACK)
    records = tuple(
        replace(row, tap=ATTACK, slice=ATTACK, reason=ATTACK, rule=ATTACK, segment=ATTACK, axes=ATTACK)
        for row in made.records[:3]
    )
    assert made.first is not None
    side = replace(
        made.reference, label=ATTACK, run=ATTACK, target=ATTACK, path=ATTACK, provenance={ATTACK: ATTACK}
    )
    made = replace(
        made,
        records=(replace(records[0], status="fail"), *records[1:]),
        reference=side,
        candidate=side,
        first=replace(made.first, tap=ATTACK, slice=ATTACK, claim=ATTACK, before=ATTACK),
        culprits=tuple(replace(item, tap=ATTACK, segment=ATTACK, evidence=ATTACK) for item in made.culprits),
        causes=tuple(replace(item, tap=ATTACK, name=ATTACK, evidence=ATTACK) for item in made.causes),
        findings=(Finding("warning", ATTACK),),
        rules={ATTACK: 3},
        tolerance=ATTACK,
        tokens=replace(made.tokens, expected_text=(ATTACK,), actual_text=("x" + ATTACK,)),
    )
    return replace(
        factory.result([made]), provenance={ATTACK: ATTACK, "model": ATTACK}, files={"html": ATTACK}
    )


def test_names_and_texts_are_only_ever_text() -> None:
    page = render(hostile())
    elements = Elements(page).found
    assert sum(tag == "script" for tag, _ in elements) == 2
    assert not [tag for tag, _ in elements if tag == "img"]
    assert "onerror=alert(1)>" not in page
    assert "\u2028" not in page
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page, re.DOTALL)[0]
    assert data_of(page)["candidates"][0]["taps"][0].startswith("<img src=x onerror=alert(1)></script>")


def test_control_characters_and_lone_surrogates_are_shown_as_escapes(tmp_path: Path) -> None:
    odd = "a\u202eb\x1b[31m\udc80c"
    made = factory.passing(records=(factory.row(0, odd, 0, 0.5),), findings=(Finding("note", odd),))
    page = write_html(factory.result([made]), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a\\u202eb\\x1b[31m\\udc80c" in page
    assert not {"\u202e", "\x1b", "\udc80"} & set(page)


def test_provenance_is_cut_but_a_difference_beyond_the_cut_still_shows() -> None:
    sides = [factory.side(label, wiring="x" * 900 + label) for label in ("torch", "onnx")]
    page = render(factory.result([factory.passing(reference=sides[0], candidate=sides[1])]))
    row = re.search(r'<tr class="differs"><th scope="row">wiring</th><td>(.*?)</td>', page)
    assert row is not None
    assert len(row.group(1)) < 300


def test_the_data_holds_every_record_and_detail_of_the_worst_only() -> None:
    made = factory.diverging()
    packed = data_of(render(factory.result([made])))["candidates"][0]
    assert {len(column) for column in packed["records"].values() if column} == {len(made.records)}
    assert packed["taps"] == made.taps()
    assert len(packed["details"]) == 200
    assert packed["taps"][packed["culprits"][0]] == "layer2.q_rot"
    first = packed["details"][str(packed["first"])]
    assert first["worst"][0][0] == "absolute error"
    assert [profile["name"] for profile in first["profiles"]] == ["head", "token", "channel"]
    heads = first["profiles"][0]["values"]
    assert heads[0] == max(heads)
    assert sum(first["histogram"][1]) <= 384


def test_a_stored_report_renders_the_same_verdict(tmp_path: Path) -> None:
    result = factory.result([factory.diverging(), factory.failed()])
    again = render(read_json(write_json(result, tmp_path / "report.json")))
    assert re.findall("<h1>.*</h1>", again) == re.findall("<h1>.*</h1>", render(result))
    details = data_of(again)["candidates"][0]["details"].values()
    assert any(detail["histogram"] for detail in details)


def test_inf_and_nan_reach_the_page_as_texts() -> None:
    row = factory.row(0, "embed", 0, 3.0, ratio=float("inf"), floor=float("nan"))
    packed = data_of(render(factory.result([factory.passing(records=(row,))])))["candidates"][0]
    assert packed["records"]["ratio"] == ["inf"]
    assert packed["records"]["floor"] == ["nan"]


@pytest.mark.slow
def test_two_thousand_taps_at_64_steps_stay_a_page_that_can_be_mailed() -> None:
    model = factory.row(0, "x", 0, 0.5)
    names = [f"layer{i // 20}.tap{i % 20}" for i in range(2000)]
    records = tuple(
        replace(model, order=i, tap=names[i % 2000], step=i // 2000, error=i * 1e-12, ratio=(i % 997) / 1000)
        for i in range(2000 * 64)
    )
    start = time.perf_counter()
    page = render(factory.result([factory.passing(records=records)]))
    assert time.perf_counter() - start < 30
    assert len(page) < 8_000_000


def test_why_candidates_of_one_compiler_failed_is_said_once() -> None:
    """Neither each level of a staged run nor its stages repeat it; the cause still names the stage."""
    why = "net: the compiler failed in lowering at Sin s; the whole log: /cache/{}/log.txt"
    text = why.format("one")
    stages = (
        Stage("quantization", "cvi/top", "cvi/tpu", "failed", reason=text),
        Stage("code generation", "cvi/top", "cvi", "failed", reason=text),
    )
    cause = Cause("", "quantization", f"{text}; before it, conversion changed no more than allowed")
    made = [replace(factory.failed(), label=label, failure=text) for label in ("cvi/tpu", "cvi")]
    made[1] = replace(made[1], stages=stages, causes=(cause,))
    made.append(replace(factory.failed(), label="cvi/tapped", failure=why.format("two")))
    page = render(factory.result(made))
    assert page.count("lowering at Sin s") == 1
    assert "cvi failed to run, for the same reason as cvi/tpu." in page
    assert "cvi/tapped failed to run, for the same reason as cvi/tpu." in page
    assert "quantization (cvi/top to cvi/tpu): failed as said above" in page
    assert "quantization: failed as said above; before it, conversion changed" in page


def test_what_quantization_and_the_implementation_do_is_told_beside_the_verdict() -> None:
    made = factory.diverging()
    assert "of its error is" not in render(factory.result([made]))
    made.records[0].quantization, made.records[0].implementation = 0.3, 0.4
    rounded = render(factory.result([made]))
    assert "36 % of its error is rounding: worst 0.3 at" in rounded
    side = replace(made.candidate, provenance={**made.candidate.provenance, "dtype": "w8a8"})
    page = render(factory.result([replace(made, candidate=side)]))
    assert "36 % of its error is quantization: worst 0.3 at" in page
    assert "; implementation: worst 0.4 at" in page


def test_both_parts_of_a_records_error_are_among_what_was_measured_of_it() -> None:
    made = factory.diverging()
    number, row = next((i, row) for i, row in enumerate(made.records) if row.failing)
    row.quantization, row.implementation, row.kind = 0.3, 0.04, "quantization"
    facts = data_of(render(factory.result([made])))["candidates"][0]["details"][str(number)]["facts"]
    assert facts[:3] == [
        ["kind", "quantization"],
        ["of the arithmetic", "0.3"],
        ["of the implementation", "0.04"],
    ]
