"""The page in a real browser: it can be searched, sorted, walked and opened, and no name in it runs.

Needs playwright and Debian's Chromium; skips with the reason where one is absent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity.harness.comparison import Finding, Result
from parity.reports.html import write_html

CHROMIUM = Path("/usr/bin/chromium")
ATTACK = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("report_factory")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield browser
        browser.close()


class Page:
    """A report opened in a page that notes every dialog, error and request."""

    def __init__(self, browser: Any, result: Result, path: Path, *, mark: str = "", **options: Any) -> None:
        self.alarms: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("dialog", lambda dialog: (self.alarms.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.alarms.append(str(error)))
        self.page.on("console", lambda said: self.alarms.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(write_html(result, path).as_uri() + mark)

    def taps(self) -> list[str]:
        """Names in the visible table, top to bottom."""
        names: list[str] = self.page.locator("section.candidate:visible tbody button.tap").all_inner_texts()
        return names

    def done(self) -> None:
        """Nothing may have gone wrong, and nothing been asked for, but the page itself."""
        assert self.alarms == []
        assert [url for url in self.requests if not url.startswith("file:")] == []
        assert len(self.requests) == 1
        self.context.close()


@pytest.fixture(scope="module")
def diverging() -> Result:
    result: Result = factory.result([factory.diverging()])
    return result


def test_the_page_opens_without_error_and_asks_for_nothing(
    browser: Any, diverging: Result, tmp_path: Path
) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    assert shown.taps() == diverging.comparisons[0].taps()
    assert shown.page.title() == "DIVERGENCE onnx · parity"
    shown.done()


def test_search_takes_text_and_globs(browser: Any, diverging: Result, tmp_path: Path) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("layer*.q")
    assert shown.taps() == [f"layer{i}.q" for i in range(4)]
    shown.page.locator("input[type=search]").fill("Q_ROT")
    assert shown.taps() == [f"layer{i}.q_rot" for i in range(4)]
    shown.page.locator("input[type=search]").fill("nothing like it")
    assert shown.taps() == []
    assert shown.page.locator(".empty").inner_text() == "No tap matches."
    shown.page.locator("input[type=search]").fill("layer[2")
    assert shown.taps() == []
    shown.done()


def test_the_status_filter_shows_what_deviates(browser: Any, diverging: Result, tmp_path: Path) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    shown.page.get_by_role("button", name="deviating 20").click()
    assert len(shown.taps()) == 20
    assert shown.taps()[0] == "layer2.q_rot"
    shown.page.get_by_role("button", name="skipped 4").click()
    assert shown.taps() == [f"layer{i}.scores" for i in range(4)]
    shown.done()


def test_columns_sort_and_the_third_click_is_execution_order_again(
    browser: Any, diverging: Result, tmp_path: Path
) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    inherited = shown.page.locator("th button[data-sort=error]")
    inherited.click()
    assert shown.page.locator("th[aria-sort=descending]").count() == 1
    assert shown.taps()[0] == "layer2.q_rot"
    inherited.click()
    assert shown.taps()[-1] == "layer2.q_rot"
    inherited.click()
    assert shown.taps() == diverging.comparisons[0].taps()
    assert shown.page.locator("th[aria-sort]").count() == 0
    shown.done()


def test_the_culprit_and_the_first_divergence_are_marked(
    browser: Any, diverging: Result, tmp_path: Path
) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    marked = shown.page.locator("tbody tr:has(.tag)")
    assert marked.count() == 1
    assert marked.locator(".tag").all_inner_texts() == ["first", "culprit"]
    assert marked.locator("td.over").count() == 5
    casualty = shown.page.locator("tbody tr:has(button.tap:text-is('layer2.k_rot'))")
    assert casualty.locator("td.over").count() == 3
    shown.done()


def test_a_cell_of_the_heatmap_opens_its_record(browser: Any, diverging: Result, tmp_path: Path) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    canvas = shown.page.locator("canvas")
    box = canvas.bounding_box()
    wide = box["width"] / 51
    place = {"x": (diverging.comparisons[0].taps().index("layer2.q_rot") + 0.5) * wide, "y": 22 + 3.5 * 18}
    canvas.hover(position=place)
    readout = shown.page.locator(".readout").inner_text()
    assert readout.startswith("layer2.q_rot, step 3, fail: inherited 8.0e-5 (40×), local 8.0e-5 (40×)")
    canvas.click(position=place)
    assert shown.page.locator("dialog h2").inner_text() == "layer2.q_rot"
    assert "step 3, head 0" in shown.page.locator("dialog .say").inner_text()
    assert shown.page.locator("dialog svg").count() == 5
    shown.done()


def test_the_heatmap_shows_layers_and_local_errors_too(
    browser: Any, diverging: Result, tmp_path: Path
) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    shown.page.get_by_role("button", name="layers").click()
    place = {"x": 3.5 * 30, "y": 22 + 3.5 * 18}
    shown.page.locator("canvas").click(position=place)
    assert shown.page.locator("dialog h2").inner_text() == "layer2.q_rot"
    shown.page.keyboard.press("Escape")
    colour = """([x, y]) => {
    const canvas = document.querySelector("canvas"), scale = canvas.width / canvas.clientWidth;
    return [...canvas.getContext("2d").getImageData(x * scale, y * scale, 1, 1).data].slice(0, 3); }"""
    red, _, blue = shown.page.evaluate(colour, [4.5 * 30, 22 + 3.5 * 18])
    assert red > blue
    shown.page.locator("[data-measure=local_ratio]").click()
    red, _, blue = shown.page.evaluate(colour, [4.5 * 30, 22 + 3.5 * 18])
    assert red < blue
    shown.done()


def test_everything_can_be_reached_with_the_keyboard(browser: Any, diverging: Result, tmp_path: Path) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html")
    shown.page.locator("canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        shown.page.keyboard.press(key)
    assert shown.page.locator(".readout").inner_text().startswith("layer0.q, step 1, pass")
    shown.page.keyboard.press("Enter")
    assert shown.page.locator("dialog h2").inner_text() == "layer0.q"
    shown.page.keyboard.press("ArrowDown")
    assert shown.page.locator("dialog h2").inner_text() == "layer0.k"
    shown.page.keyboard.press("ArrowRight")
    assert "step 2" in shown.page.locator("dialog .say").inner_text()
    shown.page.keyboard.press("Escape")
    assert not shown.page.locator("dialog").is_visible()
    shown.page.locator("button.tap").first.focus()
    shown.page.keyboard.press("Enter")
    assert shown.page.locator("dialog h2").inner_text() == "embed"
    shown.done()


def test_a_link_opens_the_record_that_it_names(browser: Any, tmp_path: Path) -> None:
    result = factory.result([factory.passing(), factory.diverging()])
    shown = Page(browser, result, tmp_path / "report.html", mark="#c1&tap=layer2.attn&step=4")
    assert shown.page.locator("dialog h2").inner_text() == "layer2.attn"
    assert "step 4" in shown.page.locator("dialog .say").inner_text()
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_function("location.hash === '#c1'")
    shown.done()


def test_candidates_are_chosen_by_tabs(browser: Any, tmp_path: Path) -> None:
    made = [factory.diverging(), factory.passing(), factory.inconclusive(), factory.failed()]
    shown = Page(browser, factory.result(made), tmp_path / "report.html")
    assert shown.page.locator("article.verdict").count() == 4
    tabs = shown.page.locator(".tabs button")
    assert tabs.all_inner_texts() == ["onnx", "segmented", "prefilled", "cvi"]
    for i in range(4):
        tabs.nth(i).click()
        assert shown.page.locator("section.candidate:visible").count() == 1
        assert len(shown.taps()) == len(made[i].taps())
    shown.page.get_by_role("link", name="details of onnx").click()
    assert len(shown.taps()) == 51
    shown.done()


def test_a_hostile_name_is_shown_and_does_not_run(browser: Any, tmp_path: Path) -> None:
    made = factory.diverging(label=ATTACK, findings=(Finding("error", ATTACK),))
    names = {tap: f"{ATTACK}{tap}" for tap in made.taps()}
    records = tuple(
        replace(row, tap=names[row.tap], slice=ATTACK, reason=ATTACK, rule=ATTACK, segment=ATTACK)
        for row in made.records
    )
    assert made.first is not None
    first = replace(made.first, tap=names[made.first.tap], slice=ATTACK, claim=ATTACK)
    tokens = replace(made.tokens, expected_text=(ATTACK,), actual_text=("x" + ATTACK,))
    made = replace(made, records=records, first=first, tokens=tokens)
    shown = Page(browser, factory.result([made]), tmp_path / "report.html")
    assert shown.taps()[0] == ATTACK + "embed"
    for name in ("canvas", "button.tap >> nth=3"):
        shown.page.locator(name).click()
        assert ATTACK in shown.page.locator("dialog").inner_text()
        shown.page.keyboard.press("Escape")
    shown.page.locator("input[type=search]").fill(ATTACK)
    shown.page.wait_for_timeout(100)
    assert shown.page.locator("img").count() == 0
    shown.done()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_sticks_out_sideways(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    made = [factory.diverging(batch=3), factory.failed()]
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    shown = Page(browser, factory.result(made), tmp_path / "report.html", **options)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    shown.page.locator(".to-first").click()
    assert shown.page.evaluate("document.querySelector('dialog').scrollWidth") <= width
    shown.done()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    browser: Any, diverging: Result, tmp_path: Path, scheme: str
) -> None:
    shown = Page(browser, diverging, tmp_path / "report.html", color_scheme=scheme)
    contrasts = shown.page.evaluate(CONTRAST)
    assert {text: ratio for text, ratio in contrasts.items() if ratio < 4.5} == {}
    assert len(contrasts) > 20
    shown.done()


#: WCAG contrast of every element that holds text of its own, against the nearest ground that is painted.
CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, .hidden-label")) continue;
    const a = light(parse(getComputedStyle(node).color)), b = light(ground(node));
    const name = node.tagName + "." + node.className + " " + node.textContent.trim().slice(0, 30);
    found[name] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""


def test_two_thousand_taps_at_64_steps_stay_usable(browser: Any, tmp_path: Path) -> None:
    model = factory.row(0, "x", 0, 0.5)
    names = [f"layer{i // 20}.tap{i % 20}" for i in range(2000)]
    records = tuple(
        replace(model, order=i, tap=names[i % 2000], step=i // 2000, ratio=(i % 997) / 1000)
        for i in range(2000 * 64)
    )
    shown = Page(browser, factory.result([factory.passing(records=records)]), tmp_path / "report.html")
    assert len(shown.taps()) == 400
    spent = shown.page.evaluate(
        """() => { const start = performance.now(), box = document.querySelector("input[type=search]");
        box.value = "layer7?.tap3"; box.dispatchEvent(new Event("input"));
        return performance.now() - start; }"""
    )
    assert len(shown.taps()) == 10
    assert spent < 1000
    shown.done()
