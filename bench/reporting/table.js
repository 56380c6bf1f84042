"use strict";
// The report's table and curves. Everything is written as text nodes and attributes, never as HTML.

const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const records = data.numbers.map((number) => {
  const record = Object.fromEntries(data.fields.map((name, i) => [name, number[i]]));
  return { ...record, at: record.line, line: data.lines[record.line], column: data.columns[record.column],
    place: record.column };
});
const SHOWN = 400; // rows of the table before one asks for more

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect", "polygon", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function format(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : String(+value.toPrecision(4));
}

// ---- what is looked at lives in the address, so that a view can be kept and sent on

const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function keep(name, value) {
  if (value) state.set(name, value);
  else state.delete(name);
  history.replaceState(null, "", "#" + state.toString());
}

// ---- the table

const HEADS = [
  ["method", "Method", (r) => r.line.label],
  ["leaf", "Leaf", (r) => r.line.leaf],
  ["data", "Data", (r) => r.column.data],
  ["metric", "Metric", (r) => r.column.name],
  ["nfe", "NFE", (r) => r.budget],
  ["measured", "Measured", (r) => r.nfe],
  ["value", "Value", (r) => r.value],
  ["seconds", "s for 1,000", (r) => r.seconds],
  ["samples", "Samples", (r) => r.samples],
];
const NUMERIC = new Set(["nfe", "measured", "value", "seconds", "samples"]);
const FILTERS = {
  category: (r) => r.line.category,
  leaf: (r) => r.line.leaf,
  data: (r) => r.column.data,
  metric: (r) => r.column.name,
  nfe: (r) => String(r.budget),
};
const filters = $("#filters");
let most = SHOWN;

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b));
}

function fillFilters() {
  for (const [name, get] of Object.entries(FILTERS)) {
    const values = [...new Set(records.map(get))];
    if (name === "nfe") values.sort((a, b) => a - b);
    filters[name].append(make("option", { value: "" }, "all"), ...values.map((v) => make("option", { value: v }, v)));
  }
  if (![...state.keys()].length && records.length) { // at first: one data set and its first metric
    state.set("data", records[0].column.data);
    state.set("metric", records[0].column.name);
  }
  for (const name of [...Object.keys(FILTERS), "method"]) filters[name].value = state.get(name) || "";
  for (const name of Object.keys(FILTERS)) if (filters[name].selectedIndex < 0) filters[name].value = "";
  filters.best.checked = state.has("best");
}

function chosen() {
  const word = filters.method.value.trim().toLowerCase();
  const found = records.filter((r) =>
    Object.entries(FILTERS).every(([name, get]) => !filters[name].value || get(r) === filters[name].value)
    && (!word || (r.line.label + " " + r.line.method).toLowerCase().includes(word))
    && (!filters.best.checked || r.mark));
  const by = HEADS.find(([key]) => key === state.get("sort"));
  const way = state.get("dir") === "descending" ? -1 : 1;
  const usual = (a, b) => a.place - b.place || a.budget - b.budget || compare(a.value, b.value);
  return found.sort((a, b) => (by ? way * compare(by[2](a), by[2](b)) : 0) || usual(a, b));
}

function drawTable() {
  const found = chosen();
  $("#table thead tr").replaceChildren(...HEADS.map(([key, title]) => {
    const button = make("button", { type: "button" }, title);
    button.addEventListener("click", () => sortBy(key));
    const way = state.get("sort") === key ? state.get("dir") || "ascending" : "none";
    return make("th", { scope: "col", "aria-sort": way, class: NUMERIC.has(key) ? "number" : null }, button);
  }), make("th", { scope: "col" }, "Command"));
  $("#table tbody").replaceChildren(...found.slice(0, most).map(tableRow));
  $("#count").textContent = `${found.length} of ${records.length} numbers`
    + (found.length > most ? `, ${most} shown` : "");
  $("#more").hidden = found.length <= most;
  $("#more").textContent = `Show all ${found.length}`;
}

function tableRow(r) {
  const cells = HEADS.map(([key, , get]) => {
    if (key === "value") {
      const error = r.error ? ` ± ${r.error}` : "";
      return make("td", { class: "number" }, make("span", { class: r.mark ? "won" : "" }, r.text), error, " ",
        make("span", { class: "mark" }, r.mark));
    }
    if (key === "method") return make("td", {}, make("a", { href: "#method-" + r.line.method }, r.line.label));
    const value = NUMERIC.has(key) ? (key === "samples" ? get(r).toLocaleString("en") : format(get(r))) : get(r);
    return make("td", { class: NUMERIC.has(key) ? "number" : null }, String(value));
  });
  const name = `${r.line.label}, ${r.column.name}, NFE ${r.budget}`;
  const button = make("button", { type: "button", "aria-expanded": "false", "aria-label": `Command behind ${name}` }, "show");
  const row = make("tr", {}, ...cells, make("td", {}, button));
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "show" : "hide";
    if (open) row.nextSibling.remove();
    else row.after(behind(r));
  });
  return row;
}

function behind(r) {
  const copy = make("button", { type: "button" }, "copy");
  copy.addEventListener("click", () => navigator.clipboard?.writeText(data.commands[r.command])
    .then(() => { copy.textContent = "copied"; }, () => { copy.textContent = "select it instead"; }));
  const facts = [`95 % interval ${format(r.low)} to ${format(r.high)}`, `${r.seeds} seed${r.seeds > 1 ? "s" : ""}`];
  if (r.corrected !== null) facts.push(`freed of bias ${r.corrected}`);
  return make("tr", { class: "behind" }, make("td", { colspan: HEADS.length + 1 },
    make("code", {}, data.commands[r.command]), " ", copy, make("br"), facts.join("; ") + "; protocol ",
    make("a", { href: "#protocol-" + r.column.protocol }, r.column.protocol)));
}

function sortBy(key) {
  const again = state.get("sort") === key && state.get("dir") !== "descending";
  keep("sort", key);
  keep("dir", again ? "descending" : "");
  drawTable();
  [...document.querySelectorAll("#table th button")][HEADS.findIndex(([k]) => k === key)].focus();
}

function csv() {
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const heads = [...HEADS.map(([key]) => key), "low", "high", "mark", "protocol", "command"];
  const rows = chosen().map((r) => [...HEADS.map(([, , get]) => get(r)), r.low, r.high, r.mark, r.column.protocol,
    data.commands[r.command]]);
  return [heads, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

function listen() {
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", () => {
    for (const name of [...Object.keys(FILTERS), "method"]) keep(name, filters[name].value);
    keep("best", filters.best.checked ? "1" : "");
    most = SHOWN;
    drawTable();
  });
  filters.addEventListener("reset", () => setTimeout(() => filters.dispatchEvent(new Event("input"))));
  $("#more").addEventListener("click", () => { most = Infinity; drawTable(); });
  $("#download").addEventListener("click", () => {
    const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "taxobench.csv" });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  const unfold = () => {
    const target = location.hash.includes("=") ? null : document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  window.addEventListener("hashchange", unfold);
  unfold();
}
