"use strict";

// The search page. No build step, no library, no request to anywhere but this server.

const $ = (id) => document.getElementById(id);
const state = { query: null, filter: {}, key: sessionStorage.getItem("perdure-key") || "", picture: null, running: null, needsKey: false };

// -- talking to the server -----------------------------------------------------------------------------------------------

class Problem extends Error {
  constructor(title, detail, status, requestId) {
    super(detail);
    Object.assign(this, { title, status, requestId });
  }
}

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("No answer", "The server cannot be reached. Is it running?", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    state.needsKey = true;
    if (await askForKey()) return ask(path, options);
  }
  let body = {};
  try { body = await response.json(); } catch { /* not every proxy on the way speaks problem+json */ }
  throw new Problem(body.title || `Error ${response.status}`, body.detail || response.statusText || "The server did not say why.", response.status, body.request_id);
}

let keyQuestion = null;
function askForKey() {
  keyQuestion ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key").value = "";
    dialog.returnValue = "no";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      keyQuestion = null;
      const given = dialog.returnValue === "yes" && $("key").value.trim();
      if (given) {
        state.key = given;
        sessionStorage.setItem("perdure-key", given);
      }
      resolve(Boolean(given));
    }, { once: true });
  });
  return keyQuestion;
}

// -- searching -----------------------------------------------------------------------------------------------------------

function showQuery(query) {
  $("text").value = query.text ?? "";
  const picture = query.file ? URL.createObjectURL(query.file) : query.id ? null : "";
  const frame = $("query-picture");
  frame.hidden = picture === "";
  if (query.file) $("query-image").src = picture;
  if (query.id) setPicture($("query-image"), query.id);
  $("text").placeholder = query.file ? "Searching by a picture" : query.id ? `Similar to ${query.id}` : "Describe what you are looking for…";
}

async function search(query, { remember = true } = {}) {
  state.query = query;
  showQuery(query);
  if (remember && !query.file) {
    const address = new URLSearchParams(query.id ? { id: query.id } : { q: query.text });
    history.pushState({ query, filter: state.filter }, "", `?${address}`);
  }
  state.running?.abort();
  const running = (state.running = new AbortController());
  const k = Number($("k").value);
  const grid = $("grid");
  grid.setAttribute("aria-busy", "true");
  document.body.classList.add("searched");
  const started = performance.now();
  try {
    const answer = await (await ask("v1/search", { method: "POST", signal: running.signal, ...body(query, k) })).json();
    if (state.running !== running) return;
    hideNotice();
    showHits(query, answer, performance.now() - started);
    if (answer.partial) notice("Incomplete", "A part of the index did not answer; what it holds is missing from this list.", "warn");
  } catch (error) {
    if (error.name === "AbortError") return;
    grid.replaceChildren();
    $("summary").hidden = true;
    showProblem(error);
  } finally {
    if (state.running === running) grid.setAttribute("aria-busy", "false");
  }
}

function body(query, k) {
  if (query.file) {
    const form = new FormData();
    form.append("image", query.file, query.file.name || "picture");
    form.append("k", String(k));
    form.append("filter", JSON.stringify(state.filter));
    return { body: form };
  }
  const asked = query.id !== undefined ? { id: query.id } : { text: query.text };
  return { body: JSON.stringify({ ...asked, k, filter: state.filter }), headers: { "Content-Type": "application/json" } };
}

function showHits(query, answer, tookMs) {
  const count = answer.hits.length;
  $("summary").hidden = false;
  $("summary-title").textContent = query.file ? `Pictures like ${query.file.name || "the one you gave"}` : query.id ? `Similar to ${query.id}` : `“${query.text}”`;
  const phases = Object.entries(answer.timings_ms).map(([name, ms]) => `${name.replace("_", " ")} ${ms.toFixed(1)}`);
  $("summary-detail").textContent = `${count} ${count === 1 ? "result" : "results"} from ${answer.release} in ${tookMs.toFixed(0)} ms` +
    (phases.length ? ` (${phases.join(" · ")} ms on the server)` : "");
  showFilters();
  const scores = answer.hits.map((hit) => hit.score);
  const best = Math.max(...scores), worst = Math.min(...scores);
  $("grid").replaceChildren(...answer.hits.map((hit, place) => card(hit, place, best > worst ? (hit.score - worst) / (best - worst) : 1)));
  if (!count) {
    const empty = document.createElement("li");
    empty.className = "empty";
    empty.textContent = Object.keys(state.filter).length ? "Nothing passes the filter. Remove it to see more." : "Nothing was found: the index of this release is empty.";
    $("grid").append(empty);
  }
}

function card(hit, place, share) {
  const node = $("card").content.cloneNode(true);
  const part = (name) => node.querySelector(`.${name}`);
  const name = hit.label || hit.id;
  part("rank").textContent = place + 1;
  part("label").textContent = name;
  part("label").title = `${name} (id ${hit.id})`;
  part("score").textContent = hit.score.toFixed(3);
  part("text").textContent = hit.text || `id ${hit.id}`;
  part("text").title = hit.text || "";
  part("meter").firstElementChild.style.setProperty("--fill", `${Math.round(8 + 92 * share)}%`);
  part("encoder").textContent = hit.encoder.replace(/^encoder\//, "");
  part("task").textContent = `task ${hit.task}`;
  part("task").addEventListener("click", () => setFilter({ task: hit.task }));
  const similar = part("similar");
  similar.setAttribute("aria-label", `Result ${place + 1}: ${name}. ${hit.text || ""} Search for similar items`);
  similar.addEventListener("click", () => { scrollTo({ top: 0 }); search({ id: hit.id }); });
  setPicture(node.querySelector("img"), hit.id);
  return node;
}

// With a key, pictures are fetched with it, which an <img> cannot do by itself.
async function setPicture(image, id) {
  const address = `v1/items/${encodeURIComponent(id)}/image`;
  image.onerror = () => image.classList.add("none");
  image.onload = () => image.classList.remove("none");
  if (!state.key) {
    image.src = address;
    return;
  }
  try {
    const blob = await (await ask(address)).blob();
    image.src = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } catch {
    image.classList.add("none");
  }
}

function setFilter(filter) {
  state.filter = filter;
  if (state.query) search(state.query, { remember: false });
}

function showFilters() {
  $("filters").replaceChildren(...Object.entries(state.filter).map(([name, value]) => {
    const button = document.createElement("button");
    button.className = "filter";
    button.type = "button";
    button.textContent = `${name} ${value} ×`;
    button.setAttribute("aria-label", `Remove the filter ${name} ${value}`);
    button.addEventListener("click", () => setFilter({}));
    return button;
  }));
}

function searchByFile(file) {
  if (!file) return;
  search({ file });
}

// -- problems ------------------------------------------------------------------------------------------------------------

function notice(title, text, kind = "bad") {
  $("notice").dataset.kind = kind;
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("notice").hidden = false;
}

function hideNotice() {
  $("notice").hidden = true;
}

function showProblem(error) {
  notice(error.title || "Error", error.message + (error.status >= 500 && error.requestId ? ` (request ${error.requestId})` : ""));
}

// -- releases ------------------------------------------------------------------------------------------------------------

let lastServing = null;

async function refresh() {
  try {
    if (state.needsKey && !state.key) throw new Problem("Key", "A key is needed", 401);
    const view = await (await ask("v1/releases")).json();
    const trouble = view.problem !== null;
    $("status").dataset.state = view.serving === null ? "bad" : trouble ? "warn" : "good";
    $("status-text").textContent = view.serving === null ? "Not ready" : trouble ? `${view.serving} · ${view.live} is not loaded` : `Serving ${view.serving}`;
    $("status").title = view.problem || `Searches are answered from ${view.serving}`;
    showReleases(view);
    if (view.serving === null && !document.body.classList.contains("searched")) notice("Not ready", view.problem || "No release is loaded yet.", "warn");
    if (view.serving !== null && lastServing === null && $("notice-title").textContent === "Not ready") hideNotice();
    if (view.serving !== lastServing && view.serving !== null) showExamples();
    lastServing = view.serving;
  } catch (error) {
    $("status").dataset.state = "bad";
    $("status-text").textContent = error.status === 401 ? "A key is needed" : "No answer";
    $("status").title = error.message;
  }
}

function showReleases(view) {
  $("release-problem").hidden = view.problem === null;
  $("release-problem").textContent = view.problem ?? "";
  $("rollback").disabled = view.live === null;
  if ($("release-list").contains(document.activeElement)) return; // never pull a button from under the keyboard
  $("release-list").replaceChildren(...view.releases.map((release) => {
    const item = document.createElement("li");
    item.className = `release${release.live ? " live" : ""}`;
    const head = document.createElement("h3");
    head.append(release.id);
    if (release.live) head.append(tag("live", view.problem ? "bad" : ""));
    if (release.serving && !release.live) head.append(tag("serving", "serving"));
    const about = document.createElement("p");
    about.textContent = `after task ${release.task} · ${release.policy} · ${release.segments.length} segment${release.segments.length === 1 ? "" : "s"} · ${release.encoder.replace(/^encoder\//, "encoder ")}`;
    const measured = document.createElement("p");
    measured.textContent = [numbers(release.metrics), when(release.created)].filter(Boolean).join(" · ");
    item.append(head, about, measured);
    if (!release.live) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "outline";
      button.textContent = "Promote";
      button.setAttribute("aria-label", `Promote ${release.id}`);
      button.addEventListener("click", () => move(`Promote ${release.id}?`, `Searches move from ${view.live ?? "nothing"} to ${release.id} as soon as every replica has loaded it.`,
        `v1/releases/${encodeURIComponent(release.id)}/promote`));
      item.append(button);
    }
    return item;
  }));
  if (!view.releases.length) {
    const none = document.createElement("li");
    none.className = "muted";
    none.textContent = "The registry holds no release yet. Learn one: python jobs/train.py CONFIG";
    $("release-list").append(none);
  }
}

function tag(text, kind) {
  const node = document.createElement("span");
  node.className = `tag ${kind}`;
  node.textContent = text;
  return node;
}

// Whatever numbers a release carries at the first two levels, shortest names first; tables stay in the report.
function numbers(metrics) {
  const found = [];
  for (const [name, value] of Object.entries(metrics ?? {})) {
    if (typeof value === "number") found.push([name, value]);
    else if (value && typeof value === "object" && !Array.isArray(value)) {
      for (const [inner, number] of Object.entries(value)) if (typeof number === "number") found.push([inner, number]);
    }
  }
  return found.slice(0, 3).map(([name, value]) => `${name.replaceAll("_", " ")} ${Number.isInteger(value) ? value : value.toFixed(3)}`).join(" · ");
}

function when(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

async function move(title, text, path) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  const dialog = $("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  document.activeElement?.blur();
  try {
    const release = await (await ask(path, { method: "POST" })).json();
    notice("Done", `${release.id} is live now; searches follow within a moment.`, "info");
  } catch (error) {
    showProblem(error);
  }
  closeReleases();
  setTimeout(refresh, 300);
  setTimeout(refresh, 1600);
}

function openReleases() {
  $("releases").hidden = $("shade").hidden = false;
  $("open-releases").setAttribute("aria-expanded", "true");
  $("close-releases").focus();
  refresh();
}

function closeReleases() {
  if ($("releases").hidden) return;
  $("releases").hidden = $("shade").hidden = true;
  $("open-releases").setAttribute("aria-expanded", "false");
  $("open-releases").focus();
}

// -- where to begin ------------------------------------------------------------------------------------------------------

async function showExamples() {
  let items;
  try {
    items = await (await ask("v1/items?sample=12")).json();
  } catch {
    return; // the page works without examples
  }
  const texts = [...new Set(items.map((item) => shortest(item.captions)).filter(Boolean))].slice(0, 4);
  const chips = texts.map((text) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = text;
    chip.addEventListener("click", () => { state.filter = {}; search({ text }); });
    return chip;
  });
  const strip = document.createElement("div");
  strip.className = "strip";
  for (const item of items.filter((item) => item.has_image).slice(0, 8)) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `Search for items like this one: ${item.label}`;
    button.setAttribute("aria-label", button.title);
    const image = document.createElement("img");
    image.alt = "";
    setPicture(image, item.id);
    button.append(image);
    button.addEventListener("click", () => { state.filter = {}; search({ id: item.id }); });
    strip.append(button);
  }
  $("examples").replaceChildren(...chips, strip);
}

function shortest(captions) {
  return [...captions].sort((a, b) => a.length - b.length)[0];
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
  state.running?.abort();
  document.body.classList.remove("searched");
  $("grid").replaceChildren();
  $("summary").hidden = true;
  hideNotice();
  showQuery({ text: "" });
}

// -- events --------------------------------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) {
    state.filter = {};
    search({ text });
  } else if (state.query) {
    search(state.query, { remember: false });
  }
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { state.filter = {}; searchByFile($("file").files[0]); $("file").value = ""; });
$("drop-picture").addEventListener("click", () => { history.pushState(null, "", "./"); home(); $("text").focus(); });
$("k").addEventListener("change", () => state.query && search(state.query, { remember: false }));
$("notice-close").addEventListener("click", hideNotice);
$("open-releases").addEventListener("click", openReleases);
$("close-releases").addEventListener("click", closeReleases);
$("shade").addEventListener("click", closeReleases);
$("rollback").addEventListener("click", () => move("Roll back?", "The release that was live before becomes live again.", "v1/rollback"));
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
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); $("text").select(); }
  if (event.key === "Escape") closeReleases();
  const cards = [...document.querySelectorAll(".similar")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) {
    if (event.key === "ArrowDown" && event.target === $("text") && cards.length) { event.preventDefault(); cards[0].focus(); }
    return;
  }
  const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
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
const theme = localStorage.getItem("perdure-theme") || new URLSearchParams(location.search).get("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;

refresh().then(() => { if (new URLSearchParams(location.search).has("releases")) openReleases(); });
setInterval(() => { if (!document.hidden) refresh(); }, 4000);
const first = fromAddress();
if (first) search(first, { remember: false });
