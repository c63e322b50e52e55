"use strict";

// The API's routes, drawn from its own openapi.json, so that the page needs nothing from elsewhere.

const make = (tag, attributes = {}, ...inside) => {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...inside);
  return node;
};

function example(verb, path) {
  const key = sessionStorage.getItem("perdure-key") ? ' -H "Authorization: Bearer $KEY"' : "";
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const address = `${base}${path.replace("{item_id}", "ID").replace("{release_id}", "demo@v1")}`;
  if (path === "/v1/search") {
    return `curl ${address}${key} -H 'Content-Type: application/json' -d '{"text": "a striped circle", "k": 5}'\ncurl ${address}${key} -F image=@picture.png -F k=5`;
  }
  return `curl${verb === "POST" ? " -X POST" : ""} ${address}${key}`;
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const kinds = (field.anyOf ?? [field]).map((one) => one.type).filter((kind) => kind && kind !== "null");
    const limits = ["minimum", "maximum", "default"].filter((word) => field[word] !== undefined && field[word] !== null).map((word) => `${word} ${JSON.stringify(field[word])}`);
    return make("tr", {}, make("td", {}, make("code", { textContent: name })), make("td", { textContent: kinds.join(" or ") }),
      make("td", { textContent: [field.description, ...limits].filter(Boolean).join("; ") }));
  });
  return make("table", {}, make("tbody", {}, ...rows));
}

function route(path, verb, operation, schemas) {
  const what = make("div", { className: "what" }, make("p", { textContent: operation.description ?? "" }));
  const sent = Object.values(operation.requestBody?.content ?? {})[0]?.schema;
  const resolve = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema?.anyOf ? resolve(schema.anyOf[0]) : schema);
  if (resolve(sent)?.properties) what.append(fields(resolve(sent)));
  what.append(make("pre", {}, make("code", { textContent: example(verb, path) })));
  const head = make("summary", {}, make("span", { className: "verb", textContent: verb }), make("code", { textContent: path }));
  return make("details", { className: "route", open: path === "/v1/search" }, head, what);
}

async function draw() {
  const key = sessionStorage.getItem("perdure-key");
  const response = await fetch("openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  const place = document.getElementById("routes");
  if (!response.ok) {
    place.replaceChildren(make("p", { className: "warning", textContent: "This server wants a key for that too: give it on the search page first, then come back in the same tab." }));
    return;
  }
  const api = await response.json();
  const groups = new Map();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(verbs)) {
      const group = operation.tags?.[0] ?? "other";
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(route(path, verb.toUpperCase(), operation, api.components.schemas));
    }
  }
  const order = ["search", "items", "releases", "health", "other"].filter((name) => groups.has(name));
  place.replaceChildren(...order.flatMap((name) => [make("h2", { textContent: name }), ...groups.get(name)]));
}

draw();
