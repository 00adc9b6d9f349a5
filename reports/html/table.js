// The table of taps: search, status filter, sort. Default order is execution order.
const PAGE = 400;
const STATUSES = ["fail", "nonfinite", "shape", "missing", "extra", "skipped", "pass", "equal"];
const COLUMNS = [
  { name: "tap", title: "tap", value: (c, tap) => tap.name },
  { name: "step", title: "step", number: true, value: (c, tap) => c.step(tap.worst) },
  { name: "status", title: "status", value: (c, tap) => tap.status },
  { name: "failing", title: "failing", number: true, value: (c, tap) => tap.failing },
  { name: "error", title: "inherited", number: true, value: (c, tap) => rank(c.error(tap.worst)) },
  { name: "ratio", title: "×", label: "inherited error as a multiple of the tolerance", number: true, value: (c, tap) => rank(c.ratio(tap.worst)) },
  { name: "local", title: "local", number: true, value: (c, tap) => (tap.local === null ? -1 : rank(c.local(tap.local))) },
  { name: "local_ratio", title: "×", label: "local error as a multiple of the tolerance", number: true, value: (c, tap) => (tap.local === null ? -1 : rank(c.localRatio(tap.local))) },
  { name: "floor", title: "floor", number: true, value: (c, tap) => rank(c.floor(tap.worst)) },
  { name: "where", title: "where", value: (c, tap) => c.slice(tap.worst) },
];

class TapTable {
  constructor(candidate, section, open) {
    Object.assign(this, { candidate, open, order: null, down: true, filter: "all", limit: PAGE });
    this.search = section.querySelector("input");
    this.place = section.querySelector(".scroll");
    this.search.addEventListener("input", () => this.draw());
    this.chips(section.querySelector(".chips"));
    this.draw();
  }

  chips(place) {
    const taps = this.candidate.taps;
    const choices = [["all", "all", () => true], ["deviating", "deviating", (tap) => tap.deviates]];
    const found = new Set(taps.map((tap) => tap.status));
    for (const status of [...STATUSES.filter((known) => found.delete(known)), ...found]) choices.push([status, status, (tap) => tap.status === status]);
    this.filters = new Map(choices.map(([key, , keep]) => [key, keep]));
    for (const [key, title, keep] of choices) {
      const chip = element("button", { type: "button", "data-filter": key, "aria-pressed": String(key === this.filter) }, `${title} ${taps.filter(keep).length.toLocaleString("en-US")}`);
      chip.addEventListener("click", () => {
        this.filter = key;
        for (const other of place.children) other.setAttribute("aria-pressed", String(other === chip));
        this.draw();
      });
      place.append(chip);
    }
  }

  chosen() {
    const matches = matcher(this.search.value), keep = this.filters.get(this.filter);
    const taps = this.candidate.taps.filter((tap) => keep(tap) && matches(tap.name));
    if (this.order === null) return taps;
    const sign = this.down ? -1 : 1, value = (tap) => this.order.value(this.candidate, tap);
    return taps.sort((a, b) => {
      const x = value(a), y = value(b);
      return sign * (x < y ? -1 : x > y ? 1 : 0) || a.i - b.i;
    });
  }

  // A number column starts with its largest, a text with its first; the third click is execution order again.
  sort(column) {
    const start = Boolean(column.number);
    if (this.order !== column) Object.assign(this, { order: column, down: start });
    else if (this.down === start) this.down = !start;
    else this.order = null;
    this.draw();
    this.place.querySelector(`button[data-sort="${column.name}"]`).focus();
  }

  draw() {
    const taps = this.chosen();
    const head = element("tr", {}, ...COLUMNS.map((column) => this.head(column)));
    const body = element("tbody", {}, ...taps.slice(0, this.limit).map((tap) => this.row(tap)));
    const table = element("table", {}, element("thead", {}, head), body);
    const rest = taps.length - this.limit;
    const more = element("button", { type: "button", class: "more", on: { click: () => { this.limit = Infinity; this.draw(); } } }, `show ${plural(rest, "more tap")}`);
    this.place.replaceChildren(table, ...(rest > 0 ? [more] : []), ...(taps.length ? [] : [element("p", { class: "empty" }, "No tap matches.")]));
  }

  head(column) {
    const sorted = this.order === column ? (this.down ? "descending" : "ascending") : null;
    const arrow = sorted ? (this.down ? " ↓" : " ↑") : "";
    const button = element("button", { type: "button", "data-sort": column.name, "aria-label": column.label, title: column.label, on: { click: () => this.sort(column) } }, column.title + arrow);
    return element("th", { scope: "col", class: column.number ? "n" : null, "aria-sort": sorted }, button);
  }

  row(tap) {
    const { candidate } = this, worst = tap.worst, local = tap.local;
    const info = candidate.info(worst), ratio = candidate.ratio(worst);
    const localRatio = local === null ? null : candidate.localRatio(local);
    const over = tap.failing && (ratio === null || rank(ratio) > 1) ? " over" : "", localOver = rank(localRatio) > 1 ? " over" : "";
    const name = element("button", { type: "button", class: "tap" }, tap.name);
    const cell = (kind, ...children) => element("td", { class: kind }, ...children);
    const healthy = tap.status === "pass" || tap.status === "equal";
    return element("tr", { "data-tap": tap.i, on: { click: () => this.open(worst) } },
      element("th", { scope: "row" }, name, tap.first ? element("span", { class: "tag first" }, "first") : null, tap.culprit ? element("span", { class: "tag" }, "culprit") : null),
      cell("n", String(candidate.step(worst)) + (candidate.call(worst) ? " call " + candidate.call(worst) : "")),
      cell(tap.failing ? "over" : tap.status === "skipped" ? "quiet" : "", tap.status),
      cell("n" + (tap.failing ? "" : " quiet"), tap.failing ? `${tap.failing}/${tap.rows.length}` : `0/${tap.rows.length}`),
      cell("n" + over, number(candidate.error(worst))),
      cell("n pair" + over, multiple(ratio)),
      cell("n" + localOver, local === null ? (info.local_reason ? "n/a" : "") : number(candidate.local(local))),
      cell("n pair" + localOver, multiple(localRatio)),
      cell("n quiet", number(candidate.floor(worst))),
      cell("wide" + (tap.deviates ? "" : " quiet"), candidate.slice(worst) || (healthy ? "" : info.reason)));
  }
}
