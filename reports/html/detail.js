// The sheet with everything known of one record.
class Sheet {
  constructor(dialog) {
    this.dialog = dialog;
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => history.replaceState(null, "", "#c" + this.candidate.index));
    dialog.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.target.matches("select, input")) return;
    const tap = { ArrowUp: -1, ArrowDown: 1 }[event.key] || 0, step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0;
    if (!tap && !step) return;
    event.preventDefault();
    this.move(tap, step);
  }

  move(tap, step) {
    const { candidate } = this, rows = candidate.taps[candidate.tap(this.row)].rows;
    if (step) {
      const next = rows[rows.indexOf(this.row) + step];
      if (next !== undefined) this.open(candidate, next);
      return;
    }
    const other = candidate.taps[candidate.tap(this.row) + tap];
    if (!other) return;
    const same = other.rows.find((row) => candidate.step(row) === candidate.step(this.row));
    this.open(candidate, same === undefined ? other.worst : same);
  }

  open(candidate, row) {
    Object.assign(this, { candidate, row });
    const tap = candidate.taps[candidate.tap(row)];
    const inside = element("div", { class: "inside" }, this.statement(), this.steps(tap), ...this.measured(), ...this.facts());
    const focus = this.dialog.contains(document.activeElement) && document.activeElement.dataset ? document.activeElement.dataset.act : null;
    this.dialog.replaceChildren(this.header(tap), inside);
    if (!this.dialog.open) this.dialog.showModal();
    const again = focus ? this.dialog.querySelector(`[data-act="${focus}"]:not(:disabled)`) : null;
    (again || this.dialog.querySelector('[data-act="close"]')).focus();
    this.dialog.scrollTop = 0;
    history.replaceState(null, "", `#c${candidate.index}&tap=${encodeURIComponent(tap.name)}&step=${candidate.step(row)}`);
  }

  header(tap) {
    const act = (name, title, label, off, go) => element("button", { type: "button", "data-act": name, "aria-label": label, disabled: off ? "" : null, on: { click: go } }, title);
    const last = this.candidate.taps.length - 1;
    return element("header", {},
      element("h2", { id: "sheet-title" }, tap.name),
      act("previous", "↑ previous", "previous tap", tap.i === 0, () => this.move(-1, 0)),
      act("next", "↓ next", "next tap", tap.i === last, () => this.move(1, 0)),
      act("close", "close", "close the detail", false, () => this.dialog.close()));
  }

  statement() {
    const { candidate, row } = this, status = candidate.status(row), slice = candidate.slice(row);
    const tone = candidate.failing(row) ? "divergence" : status === "skipped" || status === "extra" ? "inconclusive" : "parity";
    const reason = candidate.info(row).reason;
    const where = [candidate.place(row), slice].filter(Boolean).join(", ");
    return element("p", { class: "say " + tone }, element("b", {}, status), where + (reason ? ": " + reason : ""));
  }

  steps(tap) {
    if (tap.rows.length < 2) return null;
    const { candidate } = this;
    const choose = element("select", { "aria-label": "step", "data-act": "step", on: { change: () => this.open(candidate, Number(choose.value)) } },
      ...tap.rows.map((row) => element("option", { value: row, selected: row === this.row ? "" : null }, `${candidate.place(row)}: ${candidate.status(row)} ${multiple(candidate.ratio(row))}`)));
    return element("div", {}, element("h3", {}, "Over steps ", element("span", { class: "muted" }, "inherited error as a multiple of the tolerance, on a log scale")), overSteps(candidate, tap.rows, this.row, (row) => this.open(candidate, row)), choose);
  }

  measured() {
    const { candidate, row } = this, found = candidate.packed.details[row];
    const local = candidate.local(row) === null ? (candidate.info(row).local_reason ? `n/a (${candidate.info(row).local_reason})` : "") : `${number(candidate.local(row))} (${multiple(candidate.localRatio(row))} the tolerance)`;
    const errors = list([
      ["inherited error", candidate.error(row) === null ? "" : `${number(candidate.error(row))} (${multiple(candidate.ratio(row))} the tolerance)`],
      ["local error", local],
      ["noise floor", number(candidate.floor(row))],
      ...(found ? found.facts : []),
    ]);
    const blocks = [element("h3", {}, "Error"), errors];
    if (!found) {
      const worst = candidate.taps[candidate.tap(row)].worst;
      if (candidate.packed.details[worst]) blocks.push(element("p", { class: "muted" }, "Histogram and profiles are kept for the worst records. "), element("button", { type: "button", "data-act": "worst", on: { click: () => this.open(candidate, worst) } }, "worst step of this tap"));
      return blocks;
    }
    if (found.logits.length) blocks.push(element("h3", {}, "Logits"), list(found.logits));
    if (found.worst.length) blocks.push(element("h3", {}, "Worst elements"), worstTable(found.worst));
    if (found.histogram) blocks.push(element("h3", {}, "Absolute errors ", element("span", { class: "muted" }, "by power of two, counts on a log scale")), histogram(found.histogram));
    for (const part of found.profiles) blocks.push(element("h3", {}, `By ${part.name} `, element("span", { class: "muted" }, part.unit)), profile(part));
    return blocks;
  }

  facts() {
    const info = this.candidate.info(this.row);
    return [element("h3", {}, "Record"), list([
      ["segment", info.segment],
      ["shape", info.shape.length ? info.shape.join(" × ") : "scalar"],
      ["axes", info.axes],
      ["candidate dtype", info.dtype],
      ["reference dtype", info.expected_dtype],
      ["aligned by", info.rule],
      ["hidden values", info.hidden ? info.hidden.toLocaleString("en-US") : ""],
    ])];
  }
}

function list(pairs) {
  return element("dl", {}, ...pairs.filter(([, text]) => text !== "" && text !== null && text !== undefined).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
}

function worstTable(rows) {
  const head = ["by", "at", "got", "want", "error"].map((name, i) => element("th", { scope: "col", class: i > 1 ? "n" : null }, name));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((text, i) => element("td", { class: i > 1 ? "n" : null }, text))));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}
