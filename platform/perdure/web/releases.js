// The releases: which is live, which is beside it, what was measured of each, and moving from one to another.

import { json, key, post, Problem } from "./api.js";
import { $, hideNotice, make, notice, percent, showProblem, state, version } from "./page.js";

let lastServing = null;
let changed = () => {};
export function onServing(given) { changed = given; }

export async function refresh() {
  try {
    if (key.needed && !key.value) throw new Problem("Key", "A key is needed", 401);
    const view = (state.view = await json("v1/releases"));
    const trouble = view.problem !== null;
    $("status").dataset.state = view.serving === null ? "bad" : trouble ? "warn" : "good";
    $("status-text").textContent = view.serving === null ? "Not ready" : trouble ? `${view.serving} · ${view.live} is not loaded` : `Serving ${view.serving}`;
    $("status").title = view.problem || `Searches are answered from ${view.serving}`;
    showReleases(view);
    showOthers(view);
    if (view.serving === null && !document.body.classList.contains("searched")) notice("Not ready", view.problem || "No release is loaded yet.", "warn");
    if (view.serving !== null && lastServing === null && $("notice-title").textContent === "Not ready") hideNotice();
    if (view.serving !== lastServing && view.serving !== null) changed();
    lastServing = view.serving;
  } catch (error) {
    $("status").dataset.state = "bad";
    $("status-text").textContent = error.status === 401 ? "A key is needed" : "No answer";
    $("status").title = error.message;
  }
}

// What can be compared: everything that the server holds, but for what answers anyway.
function showOthers(view) {
  const held = view.releases.filter((release) => release.held && !release.serving);
  const wanted = ["", ...held.map((release) => release.id)].join("\n");
  if ($("other").dataset.shown === wanted) return;
  $("other").dataset.shown = wanted;
  $("other").replaceChildren(make("option", { value: "", textContent: "nothing" }),
    ...held.map((release) => make("option", { value: release.id, textContent: release.id + (release.candidate ? " (candidate)" : "") })));
  $("other").value = held.some((release) => release.id === state.other) ? state.other : "";
}

function showReleases(view) {
  $("release-problem").hidden = view.problem === null;
  $("release-problem").textContent = view.problem ?? "";
  $("rollback").disabled = view.live === null;
  showCandidate(view.candidate, view);
  const list = $("release-list");
  if (list.contains(document.activeElement) || list.querySelector("details[open]")) return; // never pull what is used from under a hand
  list.replaceChildren(...view.releases.map((release) => row(release, view)));
  if (!view.releases.length) list.append(make("li", { className: "muted", textContent: "The registry holds no release yet. Learn one: python jobs/train.py CONFIG" }));
}

function row(release, view) {
  const head = make("h3", {}, release.id);
  if (release.live) head.append(tag("live", view.problem ? "bad" : ""));
  if (release.serving && !release.live) head.append(tag("serving", "serving"));
  if (release.candidate && !release.live) head.append(tag("candidate", "serving"));
  const segments = `${release.segments.length} segment${release.segments.length === 1 ? "" : "s"}`;
  const about = make("p", { textContent: `after task ${release.task} · ${release.policy} · ${segments} · encoder ${version(release.encoder)}` });
  const figures = make("p", { textContent: [numbers(release.metrics), when(release.created)].filter(Boolean).join(" · ") });
  const item = make("li", { className: `release${release.live ? " live" : ""}` }, head, about, figures);
  if (!release.live) item.append(actions(release, view));
  const measured = make("details", {}, make("summary", { textContent: "What was measured" }));
  measured.querySelector("summary").setAttribute("aria-label", `What was measured of ${release.id}`);
  measured.addEventListener("toggle", () => measured.open && showMeasured(measured, release.id));
  item.append(measured);
  return item;
}

function actions(release, view) {
  const button = (text, label, does, kind) => {
    const node = make("button", { type: "button", className: kind, textContent: text });
    node.setAttribute("aria-label", label);
    node.addEventListener("click", does);
    return node;
  };
  const path = `v1/releases/${encodeURIComponent(release.id)}/promote`;
  const promote = button("Promote", `Promote ${release.id}`, () => move(`Promote ${release.id}?`,
    `Searches move from ${view.live ?? "nothing"} to ${release.id} as soon as every replica has loaded it.`, path, {}), "outline");
  const beside = button("Try", `Put ${release.id} beside the live release as the candidate`, () => move(`Try ${release.id}?`,
    "Every replica loads it beside the live release. It answers who asks for it, and a tenth of the searches is put to it for comparison.",
    path, { channel: "candidate", shadow: 10 }), "outline");
  return make("div", { className: "actions" }, ...(release.candidate ? [promote] : [beside, promote]));
}

function showCandidate(candidate, view) {
  const box = $("candidate");
  const shown = candidate !== null && candidate.release !== view.live;
  box.hidden = !shown;
  if (!shown || box.contains(document.activeElement)) return;
  const { shadows } = candidate;
  const found = shadows && shadows.compared ? `Shadow queries: ${shadows.compared} compared, overlap ${percent(shadows.overlap)}, same first hit ${percent(shadows.same_first)}, ` +
    `${shadows.live_ms} ms live and ${shadows.candidate_ms} ms candidate${shadows.failed ? `, ${shadows.failed} failed` : ""}.` : "No shadow query was compared yet.";
  const off = make("button", { type: "button", className: "outline", textContent: "Take it off" });
  off.addEventListener("click", () => move(`Take ${candidate.release} off?`, "No request is answered from it any more.",
    `v1/releases/${encodeURIComponent(view.live)}/promote`, { channel: "candidate" }));
  off.disabled = view.live === null;
  box.replaceChildren(
    make("h3", { textContent: `Candidate: ${candidate.release}` }),
    make("p", { className: candidate.problem ? "warning" : "muted", textContent: candidate.problem ?? `${candidate.share} % of the requests, ${candidate.shadow} % as shadows.` }),
    make("p", { className: "muted", textContent: found }), off);
}

async function showMeasured(details, release) {
  const summary = details.querySelector("summary");
  details.replaceChildren(summary, make("p", { className: "muted", textContent: "Reading…" }));
  try {
    const found = await json(`v1/releases/${encodeURIComponent(release)}/measured`);
    const { accuracy, compatibility, backfill } = found;
    const parts = [];
    if (accuracy) parts.push(matrix(`Accuracy: ${accuracy.metric}, percent`, "after task", "task", accuracy.matrix, 0));
    if (compatibility) {
      parts.push(matrix("Compatibility: recall@1, percent, where encoder i asks what encoder j indexed", "encoder", "gallery", compatibility.matrix, 1));
      if (typeof compatibility.AC === "number") parts.push(make("p", { className: "muted", textContent: `AC ${compatibility.AC.toFixed(3)}: share of the pairs where the newer encoder serves the older gallery as well as its own` }));
    } else if (found.no_compatibility) parts.push(make("p", { className: "muted", textContent: `Compatibility: ${found.no_compatibility}.` }));
    if (backfill) parts.push(...progressOf(backfill, release));
    for (const gate of found.gates) parts.push(make("p", { className: gate.passed ? "muted" : "warning", textContent: `Gate ${gate.name}: ${gate.passed ? "passed" : "failed"}` }));
    if (!accuracy && !compatibility && !backfill) parts.unshift(make("p", { className: "muted", textContent: "Nothing was measured of this release." }));
    details.replaceChildren(summary, ...parts);
  } catch (error) {
    details.replaceChildren(summary, make("p", { className: "warning", textContent: error.message }));
  }
}

function matrix(title, rowName, columnName, values, first) {
  const width = Math.max(...values.map((line) => line.length));
  const head = make("tr", {}, make("td"), ...Array.from({ length: width }, (_, j) => make("th", { scope: "col", textContent: `${columnName} ${j + first}` })));
  const lines = values.map((line, i) => make("tr", {}, make("th", { scope: "row", textContent: `${rowName} ${i + first}` }), ...line.map((value) => {
    const cell = make("td", { textContent: value === null ? "–" : (100 * value).toFixed(1) });
    if (value !== null) cell.style.setProperty("--share", `${Math.round(70 * value)}%`);
    return cell;
  })));
  const table = make("table", {}, make("caption", { textContent: title }), make("thead", {}, head), make("tbody", {}, ...lines));
  return make("div", { className: "matrix", tabIndex: 0 }, table);
}

function progressOf(backfill, release) {
  const point = backfill.points.find((one) => one.release === release) ?? backfill.points.at(-1);
  const last = backfill.points.at(-1);
  const bar = make("progress", { max: 1, value: last.fraction });
  bar.setAttribute("aria-label", "Old items moved to the new encoder");
  return [make("p", { className: "muted", textContent: `Backfill of ${backfill.start}: ${last.moved} of ${backfill.total} old items moved (this release: ${point.moved}), recall@1 ${percent(point["recall@1"])}, at its start ${percent(backfill.points[0]["recall@1"])}` }), bar];
}

const tag = (text, kind) => make("span", { className: `tag ${kind}`, textContent: text });

// Whatever numbers a release carries at the first two levels; tables stay below.
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

async function move(title, text, path, body) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  const dialog = $("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  document.activeElement?.blur();
  try {
    const release = await post(path, body);
    if (body.channel === "candidate") notice("Done", release.live ? "There is no candidate now." : `${release.id} is the candidate; it is compared as soon as it is loaded.`, "info");
    else notice("Done", `${release.id} is live now; searches follow within a moment.`, "info");
  } catch (error) {
    showProblem(error);
  }
  closeReleases();
  setTimeout(refresh, 300);
  setTimeout(refresh, 1600);
}

export function openReleases() {
  $("releases").hidden = $("shade").hidden = false;
  $("open-releases").setAttribute("aria-expanded", "true");
  $("close-releases").focus();
  refresh();
}

export function closeReleases() {
  if ($("releases").hidden) return;
  $("releases").hidden = $("shade").hidden = true;
  $("open-releases").setAttribute("aria-expanded", "false");
  $("open-releases").focus();
}

$("open-releases").addEventListener("click", openReleases);
$("close-releases").addEventListener("click", closeReleases);
$("shade").addEventListener("click", closeReleases);
$("rollback").addEventListener("click", () => move("Roll back?", "The release that was live before becomes live again.", "v1/rollback", {}));
