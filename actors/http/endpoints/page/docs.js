// Shows /openapi.json: each endpoint, with the fields of what it takes and answers.

const described = await (await fetch("/openapi.json")).json();

function element(kind, text, ...children) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function resolved(schema) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? { title: name, ...described.components.schemas[name] } : schema ?? {};
}

/** A type in a few words. */
function named(schema) {
  const ways = schema.anyOf ?? schema.oneOf;
  if (ways) return ways.map(named).filter((word) => word !== "null").join(" or ");
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${named(schema.items ?? {}) || "anything"}`;
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const range = schema.maximum === undefined ? "" : ` ${schema.minimum === undefined ? "above " : ""}${low} to ${schema.maximum}`;
  return `${schema.type ?? "anything"}${range}`;
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const required = (schema.required ?? []).includes(name) ? "required" : "";
    return element("tr", "", element("td", name), element("td", named(field)), element("td", required));
  });
  return element("table", "", element("tbody", "", ...rows));
}

function folded(title, schema) {
  const made = element("details", "", element("summary", `${title}: ${schema.title ?? named(schema)}`), fields(schema));
  return made;
}

for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const panel = element("section", "", element("h1", `${method.toUpperCase()} ${path}`), element("p", operation.summary));
    panel.className = "panel";
    const body = operation.requestBody?.content["application/json"].schema;
    const answer = operation.responses["200"].content?.["application/json"]?.schema;
    if (body) panel.append(folded("takes", resolved(body)));
    if (answer) panel.append(folded("answers", resolved(answer)));
    document.getElementById("endpoints").append(panel);
  }
}
