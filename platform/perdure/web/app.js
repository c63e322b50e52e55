// The search page. No build step, no library, no request to anywhere but this server.

import { ask, setPicture } from "./api.js";
import { learnFields, onFilter, showFilters } from "./filters.js";
import { $, hideNotice, make, notice, showProblem, state } from "./page.js";
import { closeReleases, onServing, openReleases, refresh } from "./releases.js";
import { onResults, showColumns, showHits } from "./results.js";

let running = null;
let shown = { cursor: null, count: 0 };

// -- searching -----------------------------------------------------------------------------------------------------------

function showQuery(query) {
  $("text").value = query.text ?? "";
  $("query-picture").hidden = !(query.file || query.id);
  if (query.file) $("query-image").src = URL.createObjectURL(query.file);
  if (query.id) setPicture($("query-image"), query.id);
  $("text").placeholder = query.file ? "Searching by a picture" : query.id ? `Similar to ${query.id}` : "Describe what you are looking for…";
}

async function search(query, { remember = true, cursor = null } = {}) {
  state.query = query;
  if (!cursor) showQuery(query);
  if (remember && !query.file) {
    const address = new URLSearchParams(query.id ? { id: query.id } : { q: query.text });
    history.pushState({ query }, "", `?${address}`);
  }
  running?.abort();
  const mine = (running = new AbortController());
  busy(true);
  showFilters();
  document.body.classList.add("searched");
  const started = performance.now();
  try {
    const serving = state.view?.serving;
    const asked = state.other && serving ? [{ release: serving }, { release: state.other }] : [cursor ? { cursor } : {}];
    const answers = await Promise.all(asked.map((more) => answerTo(query, more, mine.signal)));
    if (running !== mine) return;
    hideNotice();
    const tookMs = performance.now() - started;
    if (answers.length > 1) showColumns(query, answers, tookMs);
    else showHits(query, answers[0], tookMs, cursor ? shown.count : 0);
    shown = { cursor: answers[0].next ?? null, count: (cursor ? shown.count : 0) + answers[0].hits.length };
    if (answers.some((answer) => answer.partial)) notice("Incomplete", "A part of the index did not answer; what it holds is missing from this list.", "warn");
  } catch (error) {
    if (error.name === "AbortError" || running !== mine) return;
    if (!cursor) {
      $("grid").replaceChildren();
      $("columns").hidden = $("more").hidden = true;
      $("summary").hidden = !Object.keys(state.filter).length && !state.other; // a filter or a comparison that fails can be taken back
      if (!$("summary").hidden) { $("summary-title").textContent = "No results"; $("summary-detail").textContent = ""; }
    }
    showProblem(error);
  } finally {
    if (running === mine) busy(false);
  }
}

function busy(is) {
  $("grid").setAttribute("aria-busy", String(is));
  $("columns").setAttribute("aria-busy", String(is));
  $("progress").hidden = !is;
}

async function answerTo(query, more, signal) {
  const given = { k: Number($("k").value), filter: state.filter, payload: true, ...more };
  const options = { method: "POST", signal };
  if (query.file) {
    const form = new FormData();
    form.append("image", query.file, query.file.name || "picture");
    for (const [name, value] of Object.entries(given)) form.append(name, typeof value === "string" ? value : JSON.stringify(value));
    options.body = form;
  } else {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify({ ...(query.id !== undefined ? { id: query.id } : { text: query.text }), ...given });
  }
  const response = await ask("v1/search", options);
  return { ...(await response.json()), channel: response.headers.get("Perdure-Channel") };
}

function setFilter(filter) {
  state.filter = filter;
  showFilters();
  if (state.query) search(state.query, { remember: false });
}

const again = () => state.query && search(state.query, { remember: false });

function fresh(query) {
  state.filter = {};
  search(query);
}

function searchByFile(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) notice("Not a picture", `${file.name || "That file"} is ${file.type || "of an unknown kind"}; drop a PNG, JPEG or WebP.`, "warn");
  else fresh({ file });
}

// -- where to begin ------------------------------------------------------------------------------------------------------

async function showExamples() {
  const items = await learnFields();
  const spread = items.filter((_, place) => place % Math.max(1, Math.floor(items.length / 12)) === 0);
  const shortest = (captions) => [...captions].sort((a, b) => a.length - b.length)[0];
  const texts = [...new Set(spread.map((item) => shortest(item.captions)).filter(Boolean))].slice(0, 4);
  const chips = texts.map((text) => {
    const chip = make("button", { type: "button", className: "chip", textContent: text });
    chip.addEventListener("click", () => fresh({ text }));
    return chip;
  });
  const strip = make("div", { className: "strip" });
  for (const item of spread.filter((one) => one.has_image).slice(0, 8)) {
    const image = make("img", { alt: "" });
    const button = make("button", { type: "button", title: `Search for items like this one: ${item.label}` }, image);
    button.setAttribute("aria-label", button.title);
    setPicture(image, item.id);
    button.addEventListener("click", () => fresh({ id: item.id }));
    strip.append(button);
  }
  $("examples").replaceChildren(...chips, strip);
}

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  if (asked.get("id")) return { id: asked.get("id") };
  if (asked.get("q")) return { text: asked.get("q") };
  return null;
}

function home() {
  state.query = null;
  state.filter = {};
  running?.abort();
  document.body.classList.remove("searched");
  $("grid").replaceChildren();
  $("summary").hidden = $("columns").hidden = $("more").hidden = true;
  busy(false);
  hideNotice();
  showQuery({ text: "" });
}

// -- events --------------------------------------------------------------------------------------------------------------

onFilter(setFilter);
onResults({ filter: setFilter, similar: (id) => search({ id }) });
onServing(showExamples);

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) search({ text });
  else again();
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { searchByFile($("file").files[0]); $("file").value = ""; });
$("drop-picture").addEventListener("click", () => { history.pushState(null, "", "./"); home(); $("text").focus(); });
$("k").addEventListener("change", again);
$("other").addEventListener("change", () => { state.other = $("other").value; again(); });
$("more").addEventListener("click", () => shown.cursor && search(state.query, { remember: false, cursor: shown.cursor }));
$("notice-close").addEventListener("click", hideNotice);
$("home").addEventListener("click", (event) => { event.preventDefault(); history.pushState(null, "", "./"); home(); });

addEventListener("popstate", () => {
  const query = fromAddress();
  if (query) search(query, { remember: false });
  else home();
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((candidate) => candidate.type.startsWith("image/"));
  if (file) { event.preventDefault(); searchByFile(file); }
});

let depth = 0;
addEventListener("dragenter", (event) => {
  if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
  event.preventDefault();
  depth += 1;
  $("dropzone").hidden = false;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) $("dropzone").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("dropzone").hidden = true;
  searchByFile(event.dataTransfer?.files[0]);
});

addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); $("text").select(); }
  if (event.key === "Escape") { closeReleases(); $("filter-box").open = false; }
  const cards = [...document.querySelectorAll("main .similar")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) {
    if (event.key === "ArrowDown" && event.target === $("text") && cards.length) { event.preventDefault(); cards[0].focus(); }
    return;
  }
  const columns = getComputedStyle(cards[at].closest(".grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  if (at + step < 0) $("text").focus();
  else cards[Math.min(at + step, cards.length - 1)].focus();
});

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("perdure-theme", root.dataset.theme);
});

const address = new URLSearchParams(location.search);
const theme = localStorage.getItem("perdure-theme") || address.get("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
if (address.get("filter")) {
  try { state.filter = JSON.parse(address.get("filter")); } catch { notice("Not a filter", "The filter in the address is not JSON.", "warn"); }
}

const first = fromAddress();
const begun = refresh().then(() => {
  state.other = address.get("with") || "";
  if (state.other) $("other").value = state.other;
  if (address.has("releases")) openReleases();
});
setInterval(() => { if (!document.hidden) refresh(); }, 4000);
if (first) {
  if (address.has("with")) begun.then(() => search(first, { remember: false }));
  else search(first, { remember: false });
}
