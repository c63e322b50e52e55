// Filters on any field: what there is to filter by is learned from a sample of the items.

import { json } from "./api.js";
import { $, make, state } from "./page.js";

const fields = new Map(); // name -> {kind: "number" | "text" | "flag", values: Set}
let changed = () => {};
export function onFilter(given) { changed = given; }

export async function learnFields() {
  let items;
  try {
    items = await json("v1/items?sample=100");
  } catch {
    return []; // the page works without
  }
  fields.clear();
  const note = (name, value) => {
    if (value === "" || value === null || value === undefined) return;
    const kind = typeof value === "number" ? "number" : typeof value === "boolean" ? "flag" : "text";
    const known = fields.get(name) ?? { kind, values: new Set() };
    if (known.kind !== kind) known.kind = "text";
    known.values.add(value);
    fields.set(name, known);
  };
  for (const item of items) {
    note("label", item.label);
    note("group", item.group);
    note("task", item.task);
    for (const tag of item.tags) note("tags", tag);
    for (const [name, value] of Object.entries(item.payload)) note(name, value);
  }
  $("filter-field").replaceChildren(...[...fields.keys()].map((name) => make("option", { value: name, textContent: name })));
  showKind();
  return items;
}

const KINDS = {
  text: [["is", "is"], ["not", "is not"], ["gte", "from"], ["lte", "up to"], ["between", "between"]],
  number: [["is", "is"], ["not", "is not"], ["gte", "at least"], ["lte", "at most"], ["between", "between"]],
  flag: [["is", "is"], ["not", "is not"]],
};

function showKind() {
  const known = fields.get($("filter-field").value);
  if (!known) return;
  $("filter-kind").replaceChildren(...KINDS[known.kind].map(([value, textContent]) => make("option", { value, textContent })));
  const values = known.kind === "flag" ? [true, false] : [...known.values].sort((a, b) => (known.kind === "number" ? a - b : String(a).localeCompare(b)));
  $("filter-values").replaceChildren(...(values.length <= 40 ? values : []).map((value) => make("option", { value: String(value) })));
  $("filter-value").value = known.kind === "flag" ? "true" : "";
  const ends = known.kind === "number" && values.length ? `${values[0]} to ${values.at(-1)}` : "";
  $("filter-value").placeholder = ends;
  showEnd();
}

function showEnd() {
  $("filter-to").hidden = $("filter-kind").value !== "between";
}

function valueOf(text, kind, name) {
  if (kind === "flag") return text.trim().toLowerCase() !== "false";
  if (kind !== "number") return text.trim();
  const number = Number(text.replace(",", "."));
  if (text.trim() === "" || Number.isNaN(number)) throw new Error(`${name} is a number; “${text}” is none`);
  return number;
}

function condition() {
  const name = $("filter-field").value, how = $("filter-kind").value, { kind } = fields.get(name);
  const value = valueOf($("filter-value").value, kind, name);
  if (value === "") throw new Error(`Which ${name}?`);
  if (how === "is") return [name, value];
  if (how === "not") return [name, { not: value }];
  if (how === "between") return [name, { gte: value, lte: valueOf($("filter-to").value, kind, name) }];
  return [name, { [how]: value }];
}

const WORDS = { gte: "≥", gt: ">", lte: "≤", lt: "<" };
function told(value) {
  if (Array.isArray(value)) return value.join(" or ");
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([how, limit]) => (how === "not" ? `not ${told(limit)}` : `${WORDS[how] ?? how} ${limit}`)).join(", ");
}

export function showFilters() {
  $("filters").replaceChildren(...Object.entries(state.filter).map(([name, value]) => {
    const button = make("button", { className: "filter", type: "button", textContent: `${name} ${told(value)} ×` });
    button.setAttribute("aria-label", `Remove the filter ${name} ${told(value)}`);
    button.addEventListener("click", () => {
      const { [name]: _, ...left } = state.filter;
      changed(left);
    });
    return button;
  }));
}

$("filter-field").addEventListener("change", showKind);
$("filter-kind").addEventListener("change", showEnd);
$("filter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const problem = $("filter-problem");
  problem.textContent = "";
  try {
    const [name, value] = condition();
    $("filter-box").open = false;
    changed({ ...state.filter, [name]: value });
  } catch (error) {
    problem.textContent = error.message;
    $("filter-value").focus();
  }
});
