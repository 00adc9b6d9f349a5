// Puts the parts together, one candidate at a time.
const candidates = data.candidates.map(candidateOf);
const sections = [...document.querySelectorAll("section.candidate")];
const tabs = [...document.querySelectorAll(".tabs button")];
const sheet = new Sheet(document.querySelector("dialog.sheet"));
const drawn = new Map();
let printing = [];

function fill(index) {
  if (drawn.has(index)) return;
  const candidate = candidates[index], section = sections[index], open = (row) => sheet.open(candidate, row);
  const parts = { heat: null };
  if (candidate.count) {
    parts.heat = new Heatmap(candidate, section.querySelector(".heat"), open);
    new TapTable(candidate, section.querySelector(".taps"), open);
    choice(section, "measure", parts.heat.name, (name) => parts.heat.show(name));
    choice(section, "unit", parts.heat.unit, (unit) => parts.heat.by(unit));
  }
  const first = section.querySelector(".to-first");
  if (first) first.addEventListener("click", (event) => { event.preventDefault(); if (candidate.packed.first !== null) open(candidate.packed.first); });
  const place = section.querySelector(".clock");
  if (place) place.append(clock(candidate), clockKey(candidate));
  drawn.set(index, parts);
}

// Buttons of which one is pressed.
function choice(section, name, now, act) {
  const buttons = [...section.querySelectorAll(`[data-${name}]`)];
  const press = (value) => { for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset[name] === value)); };
  for (const button of buttons) button.addEventListener("click", () => { press(button.dataset[name]); act(button.dataset[name]); });
  press(now);
}

function clockKey(candidate) {
  const key = (side, label) => {
    const line = shape("svg", { width: 18, height: 8, "aria-hidden": "true" }, shape("line", { class: "line" + side, x1: 0, x2: 18, y1: 4, y2: 4 }));
    return element("span", { class: "key" }, line, label);
  };
  return element("p", { class: "muted legend" }, key(0, candidate.packed.reference), " ", key(1, candidate.packed.label));
}

function select(index) {
  sections.forEach((section, i) => { section.hidden = i !== index; });
  tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === index)));
  fill(index);
}

// #c1 selects a candidate, #c1&tap=layer3.q&step=5 opens a record: a link that can be sent.
function follow() {
  const [name, ...pairs] = location.hash.slice(1).split("&");
  const index = /^c\d+$/.test(name) ? Number(name.slice(1)) : 0;
  if (!candidates[index]) return;
  select(index);
  const wanted = new URLSearchParams(pairs.join("&"));
  const tap = candidates[index].taps.find((other) => other.name === wanted.get("tap"));
  if (!tap) return;
  const row = tap.rows.find((other) => String(candidates[index].step(other)) === wanted.get("step"));
  sheet.open(candidates[index], row === undefined ? tap.worst : row);
}

function redraw() {
  for (const { heat } of drawn.values()) if (heat) heat.draw();
}

tabs.forEach((tab, i) => tab.addEventListener("click", () => { history.replaceState(null, "", "#c" + i); select(i); }));
addEventListener("hashchange", follow);
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  printing = sections.map((section) => section.hidden);
  palette.printing = true;
  sections.forEach((section, i) => { section.hidden = false; fill(i); });
  redraw();
});
addEventListener("afterprint", () => {
  palette.printing = false;
  sections.forEach((section, i) => { section.hidden = printing[i]; });
  redraw();
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, select") || sheet.dialog.open) return;
  const search = sections.find((section) => !section.hidden)?.querySelector(".taps input");
  if (search) { event.preventDefault(); search.focus(); }
});
follow();
