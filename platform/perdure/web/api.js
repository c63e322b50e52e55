// Talking to the server this page came from, and to no other.

import { $ } from "./page.js";

export const key = { value: sessionStorage.getItem("perdure-key") || "", needed: false };

export class Problem extends Error {
  constructor(title, detail, status, requestId) {
    super(detail);
    Object.assign(this, { title, status, requestId });
  }
}

export async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("No answer", "The server cannot be reached. Is it running?", 0);
  }
  if (response.ok) return response;
  let body = {};
  try { body = await response.json(); } catch { /* not every proxy on the way speaks problem+json */ }
  if (response.status === 401) {
    key.needed = true;
    if (await askForKey("This server needs a key")) return ask(path, options);
  } else if (response.status === 403 && key.value && options.method === "POST" && await askForKey("This needs another key", body.detail)) {
    return ask(path, options);
  }
  throw new Problem(body.title || `Error ${response.status}`, body.detail || response.statusText || "The server did not say why.", response.status, body.request_id);
}

export const json = async (path, options) => (await ask(path, options)).json();
export const post = (path, body) => json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

let question = null;
function askForKey(title, why = "") {
  question ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-title").textContent = title;
    $("key-why").textContent = [why, "It is kept in this tab only and sent with each request."].filter(Boolean).join(" ");
    $("key").value = "";
    dialog.returnValue = "no";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      question = null;
      const given = dialog.returnValue === "yes" && $("key").value.trim();
      if (given) {
        key.value = given;
        sessionStorage.setItem("perdure-key", given);
      }
      resolve(Boolean(given));
    }, { once: true });
  });
  return question;
}

// With a key, pictures are fetched with it, which an <img> cannot do by itself.
export async function setPicture(image, id, release = "") {
  const address = `v1/items/${encodeURIComponent(id)}/image${release ? `?release=${encodeURIComponent(release)}` : ""}`;
  image.onerror = () => image.classList.add("none");
  image.onload = () => image.classList.remove("none");
  if (!key.value) {
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
