// Small plots as SVG: bars with a text for each, and the clock of both sides.

function bars(values, options) {
  const width = 600, height = options.height || 90, left = 44, bottom = 16, top = 6;
  const high = Math.max(...values.map((bar) => bar.value), 0) || 1;
  const step = (width - left) / values.length;
  const plot = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
  plot.append(shape("line", { class: "axis", x1: left, x2: width, y1: height - bottom, y2: height - bottom }));
  plot.append(shape("text", { x: left - 6, y: top + 9, "text-anchor": "end" }, options.top(high)));
  values.forEach((bar, i) => {
    const tall = (bar.value / high) * (height - bottom - top);
    const box = { x: left + i * step + (step > 4 ? 0.5 : 0), width: Math.max(step - (step > 4 ? 1 : 0), 0.5) };
    plot.append(shape("rect", { class: bar.bad ? "bad" : "plain", ...box, y: height - bottom - tall, height: tall }));
    plot.append(shape("rect", { class: "hit", ...box, y: 0, height, on: bar.act ? { click: bar.act } : {} }, shape("title", {}, bar.title)));
  });
  const every = Math.max(1, Math.ceil(values.length / (options.marks || 12)));
  values.forEach((bar, i) => {
    if (i % every && !bar.here) return;
    plot.append(shape("text", { x: left + (i + 0.5) * step, y: height - 4, "text-anchor": "middle", class: bar.here ? "here" : null }, bar.mark));
  });
  if (options.limit && options.limit.value < high) {
    const y = height - bottom - (options.limit.value / high) * (height - bottom - top);
    plot.append(shape("line", { class: "limit", x1: left, x2: width, y1: y, y2: y }));
    plot.append(shape("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, options.limit.mark));
  }
  return plot;
}

function histogram(found) {
  const [low, counts] = found;
  const total = counts.reduce((sum, count) => sum + count, 0);
  const values = counts.map((count, i) => ({
    value: Math.log10(1 + count),
    mark: "2^" + (low + i),
    title: `${plural(count, "value")} with 2^${low + i} <= |error| < 2^${low + i + 1}`,
  }));
  return bars(values, {
    label: `Histogram of absolute errors of ${plural(total, "value")}, counts on a log scale`,
    top: (high) => number(Math.round(10 ** high - 1)),
    marks: 10,
  });
}

function profile(found) {
  const values = found.values.map((value, i) => ({
    value,
    bad: found.bad[i] > 0,
    mark: String(i * found.stride),
    title: `${found.name} ${found.stride > 1 ? `${i * found.stride}..${Math.min(found.size, (i + 1) * found.stride) - 1}` : i}: ${number(value)}${found.bad[i] ? `, ${plural(found.bad[i], "value")} mismatched` : ""}`,
  }));
  return bars(values, { label: `Error by ${found.name}`, top: number, height: 80 });
}

// Multiples of the tolerance over the steps of a tap, from a thousandth up; a bar opens its step.
function overSteps(candidate, rows, current, open) {
  const values = rows.map((row) => ({
    value: Math.max(0, Math.log10(Math.max(finite(candidate.ratio(row)), 1e-3)) + 3),
    bad: candidate.failing(row),
    here: row === current,
    mark: String(candidate.step(row)),
    title: `${candidate.place(row)}: ${candidate.status(row)} ${multiple(candidate.ratio(row))}`,
    act: () => open(row),
  }));
  return bars(values, {
    label: "Multiple of the tolerance over steps, on a log scale",
    top: (high) => number(10 ** (high - 3)) + "×",
    limit: { value: 3, mark: "1×" },
    height: 80,
  });
}

function finite(value) {
  return typeof value === "number" ? value : value === null ? 0 : 1e6;
}

// Seconds per step of both sides on a log scale: a prefill takes many times what a token takes.
function clock(candidate) {
  const sides = candidate.packed.seconds;
  const steps = Math.max(sides[0].length, sides[1].length);
  const times = sides.flat().filter((time) => time > 0);
  const low = Math.min(...times), high = Math.max(...times, low * 1.01);
  const width = 600, height = 120, left = 58, bottom = 18, top = 10;
  const x = (i) => left + ((i + 0.5) * (width - left)) / steps;
  const y = (time) => height - bottom - 4 - (Math.log(Math.max(time, low) / low) / Math.log(high / low)) * (height - bottom - top - 4);
  const plot = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Seconds per step of both sides, on a log scale" });
  if (!times.length) return plot;
  plot.append(shape("line", { class: "axis", x1: left, x2: width, y1: height - bottom, y2: height - bottom }));
  for (const time of [high, low]) plot.append(shape("text", { x: left - 8, y: y(time) + 4, "text-anchor": "end" }, seconds(time)));
  sides.forEach((spent, side) => {
    const points = spent.map((time, i) => `${x(i)},${y(time)}`).join(" ");
    if (spent.length) plot.append(shape("polyline", { class: "line" + side, points }));
  });
  const every = Math.max(1, Math.ceil(steps / 12));
  for (let i = 0; i < steps; i += every) plot.append(shape("text", { x: x(i), y: height - 4, "text-anchor": "middle" }, String(i)));
  return plot;
}

function seconds(value) {
  return value >= 1 ? number(value) + " s" : value >= 1e-3 ? number(value * 1e3) + " ms" : number(value * 1e6) + " µs";
}
