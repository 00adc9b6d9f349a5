// Data, words and elements. Everything shown goes through textContent: names and texts are never parsed as HTML.
const FAILING = new Set(["fail", "missing", "shape", "nonfinite"]);
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  return filled(made, attributes, children);
}

function shape(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Same digits as reports/words.py.
function number(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 0.01 && size < 100) return String(Number(value.toPrecision(2)));
  if (size >= 100 && size < 1e4) return Math.round(value).toLocaleString("en-US");
  return value.toExponential(1).replace("e+", "e");
}

function multiple(ratio) {
  if (ratio === null || ratio === undefined) return "";
  return ratio === "inf" || ratio > 1e6 ? "> 1e6×" : number(ratio) + "×";
}

// Packed numbers may be the texts inf and nan; for ranking NaN is above everything, nothing below.
function rank(value) {
  if (value === null || value === undefined) return -1;
  if (typeof value === "string") return value === "-inf" ? -1 : Infinity;
  return value;
}

function plural(count, noun) {
  return count.toLocaleString("en-US") + " " + noun + (count === 1 ? "" : "s");
}

// One candidate: columns are reached as row numbers; taps gather their rows.
function candidateOf(packed, index) {
  const columns = packed.records;
  const count = columns.tap.length;
  const column = (name) => (row) => (columns[name].length ? columns[name][row] : null);
  const get = {};
  for (const name of Object.keys(columns)) get[name] = column(name);
  const candidate = {
    index, packed, count,
    tap: (row) => columns.tap[row],
    step: (row) => columns.step[row],
    call: (row) => get.call(row) || 0,
    status: (row) => packed.statuses[columns.status[row]],
    slice: (row) => packed.slices[columns.slice[row]],
    info: (row) => packed.infos[columns.info[row]],
    error: get.error, ratio: get.ratio, local: get.local, localRatio: get.local_ratio, floor: get.floor,
    measure: (name, row) => get[name](row),
    failing: (row) => FAILING.has(packed.statuses[columns.status[row]]),
    culprits: new Set(packed.culprits),
  };
  candidate.place = (row) =>
    "step " + candidate.step(row) + (candidate.call(row) ? ", call " + candidate.call(row) : "");
  candidate.taps = tapsOf(candidate);
  return candidate;
}

function tapsOf(candidate) {
  const taps = candidate.packed.taps.map((name, i) => ({ i, name, rows: [] }));
  for (let row = 0; row < candidate.count; row++) taps[candidate.tap(row)].rows.push(row);
  for (const tap of taps) {
    tap.worst = tap.rows.reduce((best, row) => (graver(candidate, row, best) ? row : best));
    tap.local = worstLocal(candidate, tap.rows);
    tap.failing = tap.rows.filter(candidate.failing).length;
    tap.status = candidate.status(tap.worst);
    tap.culprit = candidate.culprits.has(tap.i);
    tap.first = candidate.packed.first !== null && candidate.tap(candidate.packed.first) === tap.i;
    tap.deviates = tap.failing > 0 || tap.culprit || (tap.local !== null && rank(candidate.localRatio(tap.local)) > 1);
  }
  return taps;
}

function gravity(candidate, row) {
  const failing = candidate.failing(row);
  return [failing ? 1 : 0, failing && candidate.ratio(row) === null ? 1 : 0, rank(candidate.ratio(row)), rank(candidate.error(row))];
}

function graver(candidate, row, best) {
  const a = gravity(candidate, row), b = gravity(candidate, best);
  const differs = a.findIndex((value, i) => value !== b[i]);
  return differs >= 0 && a[differs] > b[differs];
}

function worstLocal(candidate, rows) {
  let best = null;
  for (const row of rows) {
    if (candidate.local(row) === null) continue;
    if (best === null || rank(candidate.localRatio(row)) > rank(candidate.localRatio(best))) best = row;
  }
  return best;
}

function group(name) {
  return name.split(".", 1)[0];
}

// A pattern with * ? or [ is a glob over the whole name, anything else a substring; case does not matter.
function matcher(pattern) {
  const wanted = pattern.trim().toLowerCase();
  if (!/[*?[]/.test(wanted)) return (name) => name.toLowerCase().includes(wanted);
  const source = wanted.replace(/[.+^${}()|\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".").replace(/\[!/g, "[^");
  try {
    const glob = new RegExp("^" + source + "$", "s");
    return (name) => glob.test(name.toLowerCase());
  } catch {
    return (name) => name.toLowerCase().includes(wanted);
  }
}
