
// ---- the curves

const WIDE = 760, TALL = 440, LEFT = 74, RIGHT = 16, TOP = 12, BOTTOM = 48;
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const choices = $("#choices");
const chart = $("#chart");
let curves = []; // of the column shown: {label, look, points}
let hidden = new Set();
let current = null; // [curve, point] that is read off

const baseline = (line) => line.category === "Foundations";

function lookOf(at) {
  const alike = data.lines.map((line, i) => i).filter((i) => baseline(data.lines[i]) === baseline(data.lines[at]));
  const i = alike.indexOf(at), grey = baseline(data.lines[at]) && alike.length < data.lines.length;
  const colours = grey ? ["#8A8A8A"] : COLOURS;
  return { colour: colours[i % colours.length], dash: DASHES[Math.floor(i / colours.length) % DASHES.length],
    marker: (i + Math.floor(i / colours.length)) % 5 };
}

function marker({ colour, marker }, x, y, size = 4.5) {
  const corners = [null, [[-1, -1], [1, -1], [1, 1], [-1, 1]], [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    [[0, -1.4], [1.2, 0], [0, 1.4], [-1.2, 0]], [[0, 1.2], [1.1, -0.9], [-1.1, -0.9]]][marker];
  const style = { fill: colour, stroke: "var(--paper)", "stroke-width": 1 };
  if (!corners) return make("circle", { cx: x, cy: y, r: size, ...style });
  return make("polygon", { points: corners.map(([a, b]) => `${x + size * a},${y + size * b}`).join(" "), ...style });
}

function scaleOf(values) {
  const lowest = Math.min(...values), highest = Math.max(...values);
  const sizes = values.map(Math.abs).sort((a, b) => a - b), usual = sizes[sizes.length >> 1] || 1;
  const asked = choices.scale.value;
  if (lowest > 0 && (asked === "log" || (asked === "auto" && highest > 4 * lowest))) {
    return { name: "log", to: Math.log10, ticks: (a, b) => decades(10 ** a, 10 ** b) };
  }
  if (asked === "log" || (asked === "auto" && highest - lowest > 40 * usual)) {
    const middle = 10 ** Math.ceil(Math.log10(usual));
    const tens = [0, 1, 2, 3, 4, 5, 6].map((k) => middle * 10 ** k);
    return { name: "symmetric log", to: (v) => Math.asinh(v / middle),
      ticks: () => [...tens.map((v) => -v).reverse(), 0, ...tens] };
  }
  return { name: "linear", to: (v) => v, ticks: evenly };
}

function decades(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const marks = last - first > 3 ? [1] : [1, 2, 5], found = [];
  for (let k = first; k <= last; k++) found.push(...marks.map((m) => m * 10 ** k));
  return found;
}

function evenly(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough), found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) found.push(+v.toPrecision(12));
  return found;
}

function pick() {
  const place = Number(choices.curve.value);
  const found = new Map();
  for (const r of records.filter((r) => r.place === place && r.nfe > 0)) {
    if (!found.has(r.at)) found.set(r.at, { at: r.at, line: r.line, look: lookOf(r.at), points: [] });
    found.get(r.at).points.push(r);
  }
  curves = [...found.values()];
  curves.forEach((curve) => curve.points.sort((a, b) => a.nfe - b.nfe));
  show(curves.length > 12 ? "best" : "all");
}

function show(which) {
  const { better, floor } = data.columns[Number(choices.curve.value)] ?? {};
  const rank = { "less is better": (v) => v, "more is better": (v) => -v }[better] ?? ((v) => Math.abs(v - (floor ?? 1)));
  const last = (curve) => rank(curve.points[curve.points.length - 1].value);
  const best = new Set([...curves].sort((a, b) => last(a) - last(b)).slice(0, 8).map((curve) => curve.at));
  hidden = new Set(which === "all" ? [] : curves.filter((c) => which === "none" || !best.has(c.at)).map((c) => c.at));
  current = null;
  drawLegend();
  drawChart();
}

function drawLegend() {
  $("#legend").replaceChildren(make("legend", {}, "Methods"), ...curves.map((curve) => {
    const box = make("input", { type: "checkbox" });
    box.checked = !hidden.has(curve.at);
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](curve.at);
      drawChart();
    });
    const swatch = make("svg", { width: 36, height: 14, "aria-hidden": "true", class: "black" },
      make("path", { d: "M1 7H35", stroke: curve.look.colour, "stroke-width": 2, "stroke-dasharray": curve.look.dash }),
      marker(curve.look, 18, 7));
    return make("label", {}, box, swatch, curve.line.label);
  }));
}

function drawChart() {
  const column = data.columns[Number(choices.curve.value)];
  const seen = curves.filter((curve) => !hidden.has(curve.at));
  chart.replaceChildren();
  if (!column) return;
  const title = column.title[0].toUpperCase() + column.title.slice(1);
  $("#chart-title").textContent = `${title}: ${column.name}${column.unit ? " in " + column.unit : ""} on `
    + `${column.data} against measured NFE (${column.better}). ${column.notes[0] || ""}`;
  if (!seen.length) return;
  const points = seen.flatMap((curve) => curve.points);
  const values = [...points.map((p) => p.value), ...(column.floor === null ? [] : [column.floor])];
  const y = scaleOf(values), nfe = points.map((p) => Math.log10(p.nfe));
  const [x0, x1] = [Math.min(...nfe) - 0.04, Math.max(...nfe) + 0.04];
  const shown = values.map(y.to), margin = 0.04 * (Math.max(...shown) - Math.min(...shown)) || 0.5;
  const [y0, y1] = [Math.min(...shown) - margin, Math.max(...shown) + margin];
  const px = (value) => LEFT + (WIDE - LEFT - RIGHT) * (Math.log10(value) - x0) / (x1 - x0);
  const inside = (value) => Math.min(Math.max(value, y0), y1);
  const py = (value) => TOP + (TALL - TOP - BOTTOM) * (1 - (inside(Number.isNaN(y.to(value)) ? y0 : y.to(value)) - y0) / (y1 - y0));
  axes(column, y, points, px, py, [y0, y1]);
  for (const curve of seen) {
    curve.points.forEach((p) => { p.x = px(p.nfe); p.y = py(p.value); });
    const there = curve.points.map((p) => `${p.x},${py(p.high)}`), back = curve.points.map((p) => `${p.x},${py(p.low)}`);
    const g = make("g", { class: "black" });
    g.append(make("polygon", { points: [...there, ...back.reverse()].join(" "), fill: curve.look.colour, opacity: 0.14 }));
    g.append(make("path", { d: "M" + curve.points.map((p) => `${p.x},${p.y}`).join("L"), fill: "none",
      stroke: curve.look.colour, "stroke-width": 2, "stroke-dasharray": curve.look.dash }));
    g.append(...curve.points.map((p) => marker(curve.look, p.x, p.y)));
    chart.append(g);
  }
  if ($("#floor")) chart.append($("#floor")); // above the curves
  chart.append(make("circle", { id: "ring", r: 9, fill: "none", stroke: "var(--focus)", "stroke-width": 2.5, visibility: "hidden" }));
}

function axes(column, y, points, px, py, [y0, y1]) {
  for (const value of y.ticks(y0, y1).filter((v) => y.to(v) >= y0 && y.to(v) <= y1)) {
    chart.append(make("line", { class: "rule", x1: LEFT, x2: WIDE - RIGHT, y1: py(value), y2: py(value) }),
      make("text", { x: LEFT - 7, y: py(value) + 4, "text-anchor": "end" }, format(value)));
  }
  let last = -99;
  for (const budget of [...new Set(points.map((p) => p.budget))].filter((b) => b > 0).sort((a, b) => a - b)) {
    const x = px(budget);
    if (x < LEFT || x > WIDE - RIGHT + 1 || x - last < 26) continue;
    last = x;
    chart.append(make("line", { class: "rule", x1: x, x2: x, y1: TOP, y2: TALL - BOTTOM }),
      make("text", { x, y: TALL - BOTTOM + 18, "text-anchor": "middle" }, String(budget)));
  }
  chart.append(make("path", { class: "axis", d: `M${LEFT} ${TOP}V${TALL - BOTTOM}H${WIDE - RIGHT}` }),
    make("text", { x: (LEFT + WIDE) / 2, y: TALL - 8, "text-anchor": "middle" }, "measured NFE (log)"),
    make("text", { transform: `translate(14 ${TALL / 2}) rotate(-90)`, "text-anchor": "middle" }, `${column.name} (${y.name})`));
  if (column.floor !== null) {
    chart.append(make("line", { class: "floor", x1: LEFT, x2: WIDE - RIGHT, y1: py(column.floor), y2: py(column.floor) }),
      make("text", { id: "floor", class: "name", x: LEFT + 6, y: py(column.floor) - 4 }, "real data"));
  }
}

function readOff(curve, i) {
  const p = curve.points[i];
  current = [curve, i];
  const ring = $("#ring");
  for (const [key, value] of [["cx", p.x], ["cy", p.y], ["visibility", "visible"]]) ring.setAttribute(key, value);
  $("#readout").textContent = `${curve.line.label}, NFE ${p.budget} (${format(p.nfe)} measured): ${p.text}`
    + `${p.error ? " ± " + p.error : ""}${p.mark ? ", " + p.mark : ""}`
    + `${p.seconds === null ? "" : `; ${format(p.seconds)} s for 1,000`}`;
}

function hover(event) {
  const box = chart.getBoundingClientRect();
  const x = (event.clientX - box.left) * WIDE / box.width, y = (event.clientY - box.top) * TALL / box.height;
  let nearest = null, gap = 40 ** 2;
  for (const curve of curves.filter((c) => !hidden.has(c.at))) {
    curve.points.forEach((p, i) => {
      const away = (p.x - x) ** 2 + (p.y - y) ** 2;
      if (away < gap) [nearest, gap] = [[curve, i], away];
    });
  }
  if (nearest) readOff(...nearest);
}

function walk(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const seen = curves.filter((c) => !hidden.has(c.at));
  if (!step || !seen.length) return;
  event.preventDefault();
  const from = current ? [Math.max(seen.indexOf(current[0]), 0), current[1]] : [0, -step[1]];
  const curve = seen[(from[0] + step[0] + seen.length) % seen.length];
  readOff(curve, Math.min(Math.max(from[1] + step[1], 0), curve.points.length - 1));
}

function start() {
  fillFilters();
  drawTable();
  listen();
  choices.curve.append(...data.columns.map((column, i) =>
    make("option", { value: i }, `${column.data}: ${column.name}${column.alone ? "" : ` (${column.protocol})`}`)));
  const same = data.columns.findIndex((c) => c.data === state.get("data") && c.name === state.get("metric"));
  choices.curve.value = state.get("curve") || Math.max(same, 0);
  if (choices.curve.selectedIndex < 0) choices.curve.selectedIndex = 0;
  choices.scale.value = state.get("scale") || "auto";
  choices.addEventListener("submit", (event) => event.preventDefault());
  choices.curve.addEventListener("input", () => { keep("curve", choices.curve.value); pick(); });
  choices.scale.addEventListener("input", () => { keep("scale", choices.scale.value); drawChart(); });
  choices.querySelectorAll("[data-show]").forEach((b) => b.addEventListener("click", () => show(b.dataset.show)));
  chart.addEventListener("pointermove", hover);
  chart.addEventListener("keydown", walk);
  pick();
}

start();
