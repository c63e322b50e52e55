// What every part of the page uses: its elements, the state of the search, and messages.

export const $ = (id) => document.getElementById(id);

export const state = {
  query: null, // {text} | {id} | {file}
  filter: {}, // as the API takes it
  other: "", // a release that is shown beside the one that answers; "" = none
  view: null, // the last /v1/releases
};

export function make(tag, attributes = {}, ...inside) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...inside.filter((one) => one !== null && one !== undefined && one !== ""));
  return node;
}

export function notice(title, text, kind = "bad") {
  $("notice").dataset.kind = kind;
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("notice").hidden = false;
}

export function hideNotice() {
  $("notice").hidden = true;
}

export function showProblem(error) {
  notice(error.title || "Error", error.message + (error.status >= 500 && error.requestId ? ` (request ${error.requestId})` : ""));
}

export const version = (encoder) => encoder.replace(/^encoder\//, "");
export const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")} %`;
