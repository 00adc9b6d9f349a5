"""The report on a terminal: one line per candidate, then why, then the taps that matter."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from parity.harness.comparison import Comparison, Culprit, Finding, Result, Row
from parity.harness.slices import EVERYWHERE

from . import words
from .said import Said
from .taps import Fold, TapView, fold, tap_views
from .words import visible

VERDICT_STYLE = {
    "parity": "bold green",
    "divergence": "bold red",
    "inconclusive": "bold yellow",
    "failed": "bold magenta",
    "refused": "bold magenta",
}
LEVEL_STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
DEVIATES = "bold red"
#: Below this width the floor column goes and `where` moves under its row.
NARROW = 110
#: For terminals that cannot print the left character; one for one, so that styles stay in place.
PLAIN = str.maketrans({"×": "x", "…": "~", "▸": ">"})


def print_result(result: Result, console: Console, *, limit: int = 24, verbose: bool = False) -> None:
    """Print a finished result.

    `limit` bounds the lines of each table, `verbose` lifts it. Colour is the console's affair: it is off
    with NO_COLOR and when the output is no terminal; every colour only repeats a word.
    """
    page = _Page(console, Said(result))
    for comparison in result:
        page.verdict(comparison)
    for comparison in result:
        page.comparison(comparison, limit=10**9 if verbose else limit, alone=len(result) == 1)
    if not len(result):
        page.line(Text("INCONCLUSIVE  no candidate was compared", VERDICT_STYLE["inconclusive"]))
    page.files(result)


class _Page:
    """Lines of text on one console; wraps by itself so that continuation lines hang."""

    def __init__(self, console: Console, said: Said) -> None:
        self.console = console
        self.said = said
        self.width = max(console.width, 40)
        self.empty = True

    def gap(self) -> None:
        """One empty line, never two."""
        if not self.empty:
            self.console.print()
        self.empty = True

    def line(self, text: Text) -> None:
        encoding = self.console.encoding or "ascii"
        try:
            text.plain.encode(encoding)
        except UnicodeEncodeError:
            text.plain = text.plain.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        self.console.print(text, soft_wrap=True, highlight=False)
        self.empty = False

    def hang(self, head: Text, body: str, style: str = "", *, indent: int | None = None) -> None:
        """`head`, then `body` wrapped beside it."""
        column = cell_len(head.plain) if indent is None else indent
        pieces = Text(visible(body), style).wrap(self.console, max(self.width - column, 20))
        for i, piece in enumerate(pieces):
            piece.rstrip()
            self.line((head if i == 0 else Text(" " * column)) + piece)

    def verdict(self, comparison: Comparison) -> None:
        """The one line of a candidate."""
        verdict = comparison.verdict
        head = Text.assemble((f"{verdict.upper():<12}", VERDICT_STYLE[verdict]), "  ")
        if first := self.said.elsewhere(comparison):
            self.hang(head, f"{comparison.label}: as {first}, see above")
        else:
            self.hang(head, "  |  ".join(_summary(comparison)))

    def comparison(self, comparison: Comparison, *, limit: int, alone: bool) -> None:
        """Why, what must be known, the table, the tokens, what next."""
        self.gap()
        if not alone:
            self.line(
                Text(visible(f"{comparison.label} against {comparison.reference.label}"), "bold underline")
            )
        self.why(comparison)
        self.causes(comparison)
        self.findings(comparison)
        if comparison.records:
            self.entry("coverage", words.coverage_sentence(comparison))
            if said := words.parts_sentence(comparison):
                self.entry("parts", said)
            self.table(tap_views(comparison), limit)
        self.tokens(comparison)
        if comparison.verdict != "parity":
            self.entry("next", words.next_step(comparison), "bold")

    def entry(self, name: str, body: str, style: str = "") -> None:
        """A named paragraph."""
        self.hang(Text(f"{name:<10}", "dim"), body, style, indent=10)

    def why(self, comparison: Comparison) -> None:
        """First divergence with its evidence, the culprits, the named causes."""
        row = words.first_row(comparison) if comparison.verdict == "divergence" else None
        if row is None:
            return
        self.entry("first", words.first_place(comparison), "bold")
        for said in words.evidence(row):
            self.entry("", said)
        if comparison.first is not None:
            if comparison.first.before:
                self.entry("before", f"{comparison.first.before} was still right")
            self.entry("claim", comparison.first.claim)
        if comparison.onset is not None:
            self.entry("since", words.onset_sentence(comparison.onset))
        for i, culprit in enumerate(comparison.culprits[:8]):
            self.entry("culprits" if i == 0 else "", _culprit(culprit))
        if len(comparison.culprits) > 8:
            self.entry("", f"and {len(comparison.culprits) - 8} more")

    def causes(self, comparison: Comparison) -> None:
        """Every stage held against the one before, and named causes; reasons that stand above are short."""
        for at, stage in enumerate(comparison.stages):
            style = "bold red" if stage.verdict in ("divergence", "failed") else ""
            self.entry("" if at else "stages", self.said.stage(stage), style)
        for cause in comparison.causes[:3]:
            self.entry("why", self.said.cause(comparison, cause), "bold")

    def findings(self, comparison: Comparison) -> None:
        """Errors and warnings; notes are left to the page."""
        loud = [finding for finding in words.findings(comparison) if finding.level != "note"]
        for finding in loud[:12]:
            self.finding(finding)
        if len(loud) > 12:
            self.entry("", f"and {len(loud) - 12} more findings in the report")

    def finding(self, finding: Finding) -> None:
        style = LEVEL_STYLE.get(finding.level, "")
        self.hang(Text(f"{finding.level:<10}", style), finding.text, indent=10)

    def table(self, views: list[TapView], limit: int) -> None:
        """Taps in execution order; inherited and local error side by side."""
        shown = fold(views, limit)
        table = _Table([line for line in shown if isinstance(line, TapView)], self.width)
        self.gap()
        self.line(table.header())
        for line in shown:
            for text in table.folded(line) if isinstance(line, Fold) else table.row(line):
                self.line(text)
        self.gap()

    def tokens(self, comparison: Comparison) -> None:
        """Both texts, how many tokens agree, and where they part."""
        said = words.agreement(comparison)
        if not said:
            return
        tokens = comparison.tokens
        self.entry("tokens", said)
        batch = len(tokens.expected_text) > 1
        if tokens.flips:
            self.entry("", "first flip at " + words.flip_sentence(tokens.flips[0], batch=batch))
        pairs = list(enumerate(zip(tokens.expected_text, tokens.actual_text, strict=False)))
        parted = [(i, pair) for i, pair in pairs if pair[0] != pair[1]]
        for i, (expected, actual) in (parted or pairs)[: 3 if parted else 1]:
            self.texts(comparison, expected, actual, suffix=f" {i}" if batch else "")

    def texts(self, comparison: Comparison, expected: str, actual: str, *, suffix: str) -> None:
        """Two texts, one above the other, cut around the place where they part."""
        expected, actual = visible(expected), visible(actual)
        same = words.common_prefix(expected, actual)
        names = [visible(side.label) + suffix for side in (comparison.reference, comparison.candidate)]
        column = 12 + max(cell_len(name) for name in names)
        room = self.width - column
        start = 0 if expected == actual else max(0, same - room // 2)
        for name, text in zip(names, (expected, actual), strict=True):
            head = Text(set_cell_size(f"{'':<10}{name}", column), "dim")
            body = Text(("…" if start else "") + text[start:same])
            body.append(text[same:], DEVIATES if text is actual else "bold")
            body.truncate(room, overflow="ellipsis")
            self.line(head + body)

    def files(self, result: Result) -> None:
        """Where the rest is."""
        order = sorted(result.files.items(), key=lambda item: item[0] != "html")
        for kind, path in order:
            self.line(
                Text.assemble((f"{kind:<10}", "dim"), (visible(str(path)), "bold" if kind == "html" else ""))
            )


def _summary(comparison: Comparison) -> Iterator[str]:
    label = comparison.label
    if comparison.verdict in ("failed", "refused"):
        yield f"{label}: {comparison.failure or comparison.refused}"
        return
    if comparison.verdict == "divergence":
        yield f"{label}: first at {words.first_place(comparison)}"
    elif comparison.verdict == "inconclusive":
        yield f"{label}: {words.doubt(comparison)}"
    else:
        yield f"{label}: agrees with {comparison.reference.label}"
    worst = comparison.worst
    if worst is not None:
        yield f"worst {words.row_place(worst, where=False)}: {words.multiple(worst.ratio)}"
    yield words.counts(comparison.counts) or "no records"
    yield f"{words.percent(comparison.coverage.share)} checked"


def _culprit(culprit: Culprit) -> str:
    ratio = f", {words.multiple(culprit.ratio)}" if culprit.ratio is not None else ""
    inside = f" in {culprit.segment}" if culprit.segment else ""
    return f"{culprit.tap}{inside}, step {culprit.step}{ratio}: {culprit.evidence}"


class _Table:
    """Column widths of one table, and its lines."""

    def __init__(self, views: list[TapView], width: int) -> None:
        self.wide = width >= NARROW
        self.width = width
        self.tap = min(max([cell_len(visible(view.tap)) for view in views] + [3]), 36 if self.wide else 26)
        self.step = max([len(_step(view.worst)) for view in views] + [4])
        self.status = max([len(_status(view)) for view in views] + [6])

    def header(self) -> Text:
        """Names of the columns."""
        cells = ["tap", "step", "status", "inherited", "local", "floor", "where"]
        left = f"  {cells[0]:<{self.tap}}  {cells[1]:>{self.step}}  {cells[2]:<{self.status}}"
        right = f"  {cells[3]:>15}  {cells[4]:>15}" + (f"  {cells[5]:>7}  {cells[6]}" if self.wide else "")
        return Text(left + right, "bold")

    def row(self, view: TapView) -> Iterator[Text]:
        """One tap; in a narrow terminal what is said of a deviating tap follows on a line of its own."""
        row = view.worst
        bad = view.failing > 0
        text = Text.assemble(
            ("▸ " if view.culprit else "  ", DEVIATES if view.culprit else ""),
            (_fit(visible(view.tap), self.tap), DEVIATES if view.culprit else ""),
            f"  {_step(row):>{self.step}}  ",
            (f"{_status(view):<{self.status}}", _status_style(view)),
            *_error(row.error, row.ratio, over=bad and (row.ratio or 0) > 1),
            *_local(view),
        )
        where = visible(row.slice or (row.reason if row.status not in ("pass", "equal") else ""))
        if self.wide:
            text.append(f"  {words.number(row.floor):>7}", "dim")
            text.append(f"  {where}")
            text.truncate(self.width, overflow="ellipsis")
        yield text
        if where not in ("", EVERYWHERE) and not self.wide and view.deviates:
            yield Text(_fit(f"    {where}", self.width).rstrip(), "dim")

    def folded(self, line: Fold) -> Iterator[Text]:
        """Many taps as one line: how many, and the worst of them."""
        failing = sum(view.failing > 0 for view in line.views)
        worst = max(line.views, key=lambda view: view.worst.ratio or 0.0)
        said = f"  {visible(line.label)}: {words.plural(len(line.views), 'tap')} {_fold_state(line, failing)}"
        if worst.worst.ratio:
            said += f", worst {words.multiple(worst.worst.ratio)}"
            where = f" at {visible(worst.tap)}"
            said += where if cell_len(said + where) <= self.width else ""
        yield Text(_fit(said, self.width).rstrip(), "red" if failing else "dim")


def _fold_state(line: Fold, failing: int) -> str:
    found: dict[str, int] = {}
    for view in line.views:
        found[view.worst.status] = found.get(view.worst.status, 0) + 1
    inherited = ", inherited" if all(view.casualty for view in line.views if view.failing) else ""
    if set(found) == {"fail"}:
        return f"fail{inherited}"
    if failing:
        return f"({words.counts(found)}{inherited})"
    calm = {"pass", "equal"} & set(found)
    rest = {status: count for status, count in found.items() if status not in calm}
    said = "equal" if calm == {"equal"} else "within tolerance" if calm else ""
    return ", ".join(filter(None, [said, words.counts(rest)]))


def _step(row: Row) -> str:
    return f"{row.step} call {row.call}" if row.call else str(row.step)


def _status(view: TapView) -> str:
    if not view.failing:
        return view.worst.status
    kind = "" if view.worst.kind in ("", "bug") else f" {view.worst.kind}"
    return f"{view.worst.status} {view.failing}/{view.records}{kind}"


def _status_style(view: TapView) -> str:
    if view.failing:
        return DEVIATES
    return "dim" if view.worst.status == "skipped" else ""


def _error(error: float | None, ratio: float | None, *, over: bool) -> Iterator[tuple[str, str]]:
    style = DEVIATES if over else ""
    yield f"  {words.number(error):>7} {words.multiple(ratio):>7}", style


def _local(view: TapView) -> Iterator[tuple[str, str]]:
    if view.local is not None:
        yield from _error(view.local.local, view.local.local_ratio, over=(view.local.local_ratio or 0) > 1)
    else:
        yield f"  {'n/a' if view.worst.local_reason else '':>15}", "dim"


def _fit(text: str, cells: int) -> str:
    """Exactly `cells` wide; what was cut is marked."""
    return set_cell_size(text, cells) if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"
