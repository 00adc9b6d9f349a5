// Error growth: taps, or layers, across in execution order, steps down; a canvas, so that 2,000 taps x 64 steps
// stay quick. A layer's cell is the worst of its taps.
const PALETTE = {
  light: { calm: ["#edf1f5", "#a3b7cb"], over: ["#f5b971", "#e8743b", "#b42318", "#5c0d08"], none: "#7a4fc0", skipped: "#9aa3ad", page: "#ffffff", ink: "#1b1f24", muted: "#5d656f" },
  dark: { calm: ["#1f252b", "#4d6278"], over: ["#a8641c", "#e8743b", "#ff5a47", "#ffc2b8"], none: "#a98bf0", skipped: "#626b75", page: "#121417", ink: "#e5e8eb", muted: "#9aa2ab" },
};
const BANDS = 22;
const NARROWEST = 4;

function palette() {
  const dark = !palette.printing && matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? PALETTE.dark : PALETTE.light;
}

function mix(colours, share) {
  const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const i = Math.min(Math.floor(place), colours.length - 2), part = place - i;
  const channel = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  const blend = [1, 3, 5].map((at) => Math.round(channel(colours[i], at) * (1 - part) + channel(colours[i + 1], at) * part));
  return `rgb(${blend.join(",")})`;
}

// Within the tolerance calm, over three decades; beyond it hot, over three decades.
function colourOf(colours, ratio) {
  const decades = Math.log10(Math.max(finite(ratio), 1e-9));
  return finite(ratio) <= 1 ? mix(colours.calm, (decades + 3) / 3) : mix(colours.over, decades / 3);
}

class Heatmap {
  constructor(candidate, place, open) {
    Object.assign(this, { candidate, open, name: "ratio", cursor: null });
    this.steps = [...new Set(Array.from({ length: candidate.count }, (_, row) => candidate.step(row)))].sort((a, b) => a - b);
    const layers = spans(candidate.taps);
    this.choices = { tap: candidate.taps.map((_, i) => ({ from: i, to: i + 1 })), layer: layers };
    const room = Math.max(place.clientWidth - 44, 200);
    this.by(candidate.taps.length * NARROWEST > room && layers.length * 2 < candidate.taps.length ? "layer" : "tap", false);
    this.canvas = element("canvas", {
      tabindex: 0, role: "application", "aria-label": "Error growth: arrow keys move over taps and steps, Enter opens the detail",
      on: {
        mousemove: (event) => this.say(this.at(event)),
        mouseleave: () => this.say(this.cursor),
        click: (event) => this.choose(this.at(event)),
        keydown: (event) => this.key(event),
        blur: () => this.draw(),
      },
    });
    this.gutter = element("div", { class: "gutter", "aria-hidden": "true" });
    this.readout = element("span", { class: "readout", role: "status" });
    this.pane = element("div", { class: "pane" }, this.canvas);
    this.legend = element("span", { class: "key" });
    place.append(this.gutter, this.pane, element("div", { class: "foot" }, this.readout, this.legend));
    this.draw();
    this.reveal();
  }

  // One column per tap or per layer.
  by(unit, draw = true) {
    const { candidate } = this, line = new Map(this.steps.map((step, i) => [step, i]));
    Object.assign(this, { unit, columns: this.choices[unit], cursor: null });
    const home = new Array(candidate.taps.length);
    this.columns.forEach(({ from, to }, column) => home.fill(column, from, to));
    this.cells = this.columns.map(() => new Map());
    for (let row = 0; row < candidate.count; row++) {
      const cells = this.cells[home[candidate.tap(row)]], at = line.get(candidate.step(row));
      if (!cells.has(at) || graver(candidate, row, cells.get(at))) cells.set(at, row);
    }
    if (draw) {
      this.draw();
      this.reveal();
    }
  }

  // Scrolls to the first divergence when not all columns fit.
  reveal() {
    const first = this.candidate.packed.first;
    if (first === null) return;
    const tap = this.candidate.tap(first), column = this.columns.findIndex(({ from, to }) => from <= tap && tap < to);
    this.pane.scrollLeft = Math.max(0, column * this.wide - this.pane.clientWidth / 3);
  }

  row(cell) {
    return cell ? this.cells[cell[0]].get(cell[1]) : undefined;
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const tap = Math.floor((event.clientX - box.left) / this.wide), step = Math.floor((event.clientY - box.top - BANDS) / this.tall);
    return tap >= 0 && tap < this.cells.length && step >= 0 && step < this.steps.length ? [tap, step] : null;
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") this.choose(this.cursor);
    else if (!move) return;
    else {
      const [tap, step] = this.cursor || [0, 0];
      this.cursor = [clamp(tap + move[0], this.cells.length), clamp(step + move[1], this.steps.length)];
      this.say(this.cursor);
      this.draw();
      this.pane.scrollLeft = Math.max(0, this.cursor[0] * this.wide - this.pane.clientWidth / 2);
    }
    event.preventDefault();
  }

  choose(cell) {
    const row = this.row(cell);
    if (row === undefined) return;
    this.cursor = cell;
    this.open(row);
  }

  say(cell) {
    const { candidate } = this, row = this.row(cell);
    if (!cell) this.readout.textContent = "";
    else if (row === undefined) this.readout.textContent = `${candidate.taps[this.columns[cell[0]].from].name}, step ${this.steps[cell[1]]}: no record`;
    else {
      const local = candidate.local(row) === null ? "" : `, local ${number(candidate.local(row))} (${multiple(candidate.localRatio(row))})`;
      const inherited = candidate.error(row) === null ? "" : `: inherited ${number(candidate.error(row))} (${multiple(candidate.ratio(row))})`;
      this.readout.textContent = `${candidate.taps[candidate.tap(row)].name}, ${candidate.place(row)}, ${candidate.status(row)}${inherited}${local}`;
    }
  }

  show(name) {
    this.name = name;
    this.draw();
  }

  size() {
    const room = Math.max(this.pane.clientWidth, 200);
    this.wide = Math.min(Math.max(room / this.cells.length, NARROWEST), 30);
    this.tall = this.steps.length <= 3 ? 28 : this.steps.length <= 24 ? 18 : this.steps.length <= 80 ? 8 : 4;
    const width = Math.ceil(this.wide * this.cells.length), height = BANDS + this.tall * this.steps.length;
    const scale = Math.min(devicePixelRatio || 1, 16000 / width);
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.width = width + "px";
    this.canvas.style.height = height + "px";
    return scale;
  }

  draw() {
    const scale = this.size(), colours = palette(), pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.bands(pen, colours);
    const gap = this.wide >= 6 ? 1 : 0, gapDown = this.tall >= 6 ? 1 : 0;
    this.cells.forEach((cells, tap) => {
      for (const [step, row] of cells) {
        this.cell(pen, colours, row, tap * this.wide, BANDS + step * this.tall, this.wide - gap, this.tall - gapDown);
      }
    });
    if (this.cursor && document.activeElement === this.canvas) {
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 2;
      pen.strokeRect(this.cursor[0] * this.wide, BANDS + this.cursor[1] * this.tall, this.wide - gap, this.tall - gapDown);
    }
    this.marks();
    this.explain(colours);
  }

  // A measured cell is filled; one that has no number but fails too; any other is only a dash.
  cell(pen, colours, row, x, y, wide, tall) {
    const value = this.candidate.measure(this.name, row);
    const fails = value === null && this.name === "ratio" && this.candidate.failing(row);
    pen.fillStyle = value !== null ? colourOf(colours, value) : fails ? colours.none : colours.skipped;
    if (value !== null || fails) pen.fillRect(x, y, wide, tall);
    else pen.fillRect(x + wide * 0.25, y + tall / 2 - 0.5, wide * 0.5, 1.5);
  }

  bands(pen, colours) {
    pen.font = "11px " + getComputedStyle(document.body).fontFamily;
    pen.textBaseline = "middle";
    pen.fillStyle = colours.muted;
    let free = 0;
    for (const { name, from, to } of this.choices.layer) {
      const start = this.columns.findIndex((column) => column.from >= from) * this.wide;
      const room = this.unit === "tap" ? (to - from) * this.wide - 6 : Infinity;
      const label = start < free ? "" : fitted(pen, name, room);
      if (this.unit === "tap" || label) pen.fillRect(start, 4, 1, BANDS - 6);
      if (label) pen.fillText(label, start + 4, BANDS / 2 - 1);
      if (label) free = start + pen.measureText(label).width + 10;
    }
  }

  marks() {
    const every = Math.max(1, Math.ceil(14 / this.tall));
    this.gutter.replaceChildren(...this.steps.filter((_, i) => i % every === 0).map((step, i) => {
      const mark = element("span", {}, (i === 0 ? "step " : "") + step);
      mark.style.top = BANDS + (i * every + 0.5) * this.tall + "px";
      return mark;
    }));
  }

  explain(colours) {
    const swatch = (colour) => { const made = element("i"); made.style.background = colour; return made; };
    const dash = (colour) => { const made = swatch(colour); made.className = "dash"; return made; };
    const ramp = element("span", { class: "ramp" }, ...[1e-3, 1e-2, 1e-1, 0.9].map((ratio) => swatch(colourOf(colours, ratio))));
    const hot = element("span", { class: "ramp" }, ...[1.5, 10, 100, 1000].map((ratio) => swatch(colourOf(colours, ratio))));
    this.legend.replaceChildren("0.001×", ramp, "1×", hot, "1000×", swatch(colours.none), "not measured, fails", dash(colours.skipped), this.name === "ratio" ? "skipped" : "no local error");
  }
}

// Neighbouring taps of one outermost scope.
function spans(taps) {
  const found = [];
  taps.forEach((tap, i) => {
    const name = group(tap.name), last = found[found.length - 1];
    if (last && last.name === name) last.to = i + 1;
    else found.push({ name, from: i, to: i + 1 });
  });
  return found;
}

function clamp(value, count) {
  return Math.min(Math.max(value, 0), count - 1);
}

function fitted(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  for (let cut = text.length - 1; cut > 2; cut--) if (pen.measureText(text.slice(0, cut) + "…").width <= room) return text.slice(0, cut) + "…";
  return "";
}
