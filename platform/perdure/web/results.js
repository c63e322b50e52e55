// Hits as cards: one list with pages, or two releases side by side.

import { setPicture } from "./api.js";
import { $, make, state, version } from "./page.js";

let actions = {};
export function onResults(given) { actions = given; }

export function card(hit, place, share, release, note) {
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
  part("encoder").textContent = version(hit.encoder);
  part("task").textContent = `task ${hit.task}`;
  part("task").addEventListener("click", () => actions.filter({ ...state.filter, task: hit.task }));
  for (const [field, value] of Object.entries(hit.payload ?? {}).slice(0, 3)) part("badges").append(make("span", { className: "badge", textContent: `${field} ${value}` }));
  if (note) part("badges").prepend(make("span", { className: "badge note", textContent: note }));
  const similar = part("similar");
  similar.setAttribute("aria-label", `Result ${place + 1}: ${name}, score ${hit.score.toFixed(3)}, task ${hit.task}, encoder ${version(hit.encoder)}. ${hit.text || ""} ${note || ""} Search for similar items`);
  similar.addEventListener("click", () => { scrollTo({ top: 0 }); actions.similar(hit.id); });
  setPicture(node.querySelector("img"), hit.id, release);
  return node;
}

const shares = (hits) => {
  const scores = hits.map((hit) => hit.score);
  const best = Math.max(...scores), worst = Math.min(...scores);
  return scores.map((score) => (best > worst ? (score - worst) / (best - worst) : 1));
};

export function titleOf(query) {
  return query.file ? `Pictures like ${query.file.name || "the one you gave"}` : query.id ? `Similar to ${query.id}` : `“${query.text}”`;
}

// One page; `from` is the number of cards that are there already.
export function showHits(query, answer, tookMs, from) {
  const all = shares(answer.hits), count = from + answer.hits.length;
  $("columns").hidden = true;
  $("grid").hidden = $("summary").hidden = false;
  $("summary-title").textContent = titleOf(query);
  const phases = Object.entries(answer.timings_ms).map(([name, ms]) => `${name.replace("_", " ")} ${ms.toFixed(1)}`);
  const channel = answer.channel === "candidate" ? ", the candidate," : "";
  $("summary-detail").textContent = `${count} ${count === 1 ? "result" : "results"} from ${answer.release}${channel} in ${tookMs.toFixed(0)} ms` +
    (phases.length ? ` (${phases.join(" · ")} ms on the server)` : "");
  const cards = answer.hits.map((hit, place) => card(hit, from + place, all[place], answer.release));
  if (from) $("grid").append(...cards);
  else $("grid").replaceChildren(...cards);
  if (from) document.querySelectorAll("#grid .similar")[from]?.focus();
  $("more").hidden = !answer.next;
  if (!count) $("grid").append(make("li", { className: "empty", textContent: nothing() }));
}

const nothing = () => Object.keys(state.filter).length ? "Nothing passes the filter. Remove it to see more." : "Nothing was found: the index of this release is empty.";

export function showColumns(query, answers, tookMs) {
  const [one, other] = answers;
  const places = answers.map((answer) => new Map(answer.hits.map((hit, place) => [hit.id, place + 1])));
  const common = one.hits.filter((hit) => places[1].has(hit.id)).length;
  $("grid").hidden = $("more").hidden = true;
  $("columns").hidden = $("summary").hidden = false;
  $("summary-title").textContent = titleOf(query);
  $("summary-detail").textContent = `${common} of ${Math.max(one.hits.length, other.hits.length)} results in common, in ${tookMs.toFixed(0)} ms for both`;
  $("columns").replaceChildren(...answers.map((answer, side) => {
    const all = shares(answer.hits);
    const list = make("ol", { className: "grid" }, ...answer.hits.map((hit, place) => {
      const elsewhere = places[1 - side].get(hit.id);
      const note = elsewhere === undefined ? "only here" : elsewhere === place + 1 ? "same place" : `there: ${elsewhere}`;
      return card(hit, place, all[place], answer.release, note);
    }));
    if (!answer.hits.length) list.append(make("li", { className: "empty", textContent: nothing() }));
    const column = make("section", { className: "column" }, make("h3", { textContent: answer.release }), roleOf(answer.release), list);
    column.setAttribute("aria-label", `Results of ${answer.release}`);
    return column;
  }));
}

function roleOf(release) {
  const known = state.view?.releases.find((one) => one.id === release.split("+")[0]);  // what was written since has its number behind a plus
  const roles = known ? [known.live && "live", known.candidate && !known.live && "candidate", `encoder ${version(known.encoder)}`].filter(Boolean) : [];
  return make("p", { className: "muted", textContent: roles.join(" · ") });
}
