// The page: asks for a snapshot of the service twice a second, while it is looked at, and shows it.
import { Timeline } from "./timeline.js";
import { begin, headers, keep } from "./prompt.js";

const EVERY_MS = 500, POINTS = 80;
const byId = (id) => document.getElementById(id);
const timeline = new Timeline(byId("timeline"), byId("motion"), byId("caption"), byId("pause"));
const lines = { busy: [], tokens: [], running: [], kv: [] };

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;
const whole = (number) => Math.round(number).toLocaleString("en");
const ms = (value) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : whole(value));

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 86400 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} d`;
}

function show(snapshot) {
  byId("model").textContent = snapshot.model;
  status(snapshot.draining ? "draining" : snapshot.ready ? "ready" : "recovering", snapshot.ready && !snapshot.draining ? "good" : "");
  byId("busy").textContent = percent(snapshot.device_busy);
  byId("tokens").textContent = whole(snapshot.tokens_per_s);
  byId("running").textContent = snapshot.running;
  byId("waiting").textContent = `${whole(snapshot.waiting)} waiting`;
  byId("prompts").textContent = `and ${whole(snapshot.prompt_tokens_per_s)} of prompts`;
  byId("step").textContent = snapshot.step_ms === null ? "no steps" : `${ms(snapshot.step_ms)} ms a step`;
  byId("kv").textContent = percent(snapshot.kv_usage);
  byId("hits").textContent = snapshot.prefix_hit_rate === null ? "no prompts yet" : `${percent(snapshot.prefix_hit_rate)} prefix hits`;
  draw("busy", snapshot.device_busy, 1);
  draw("tokens", snapshot.tokens_per_s);
  draw("running", snapshot.running);
  draw("kv", snapshot.kv_usage, 1);
  for (const kind of ["ttft", "itl", "e2el"]) {
    const cells = byId(kind).querySelectorAll("td");
    ["p50", "p90", "p99"].forEach((name, i) => { cells[i].textContent = snapshot[kind] ? ms(snapshot[kind][name]) : "–"; });
  }
  byId("actors").tBodies[0].replaceChildren(...snapshot.actors.map((actor) => row(actor, snapshot.loads[actor.name])));
  byId("requests").textContent =
    `${whole(snapshot.accepted)} requests: ${whole(snapshot.finished)} finished, ${whole(snapshot.aborted)} aborted, ` +
    `${whole(snapshot.failed)} failed; ${whole(snapshot.refused)} more refused, ${whole(snapshot.preemptions)} preemptions`;
  timeline.take(snapshot);
}

function status(text, kind) {
  byId("status").textContent = text;
  byId("status").className = `pill ${kind}`;
}

function row(actor, load) {
  const made = document.createElement("tr");
  const cell = (text, kind = "number") => {
    const td = made.insertCell();
    td.textContent = text;
    td.className = kind;
  };
  cell(actor.name, "");
  const kind = actor.state === "ready" ? "good" : ["dead", "hung"].includes(actor.state) ? "bad" : "";
  cell(actor.state, `state ${kind}`);
  cell(load === undefined ? "–" : `${(100 * load).toFixed(0)} %`);
  cell(actor.mailbox_depth);
  cell(actor.restarts);
  cell(actor.state === "dead" ? "–" : duration(actor.uptime_s));
  cell(actor.pid);
  return made;
}

function draw(name, value, top) {
  const points = lines[name];
  points.push(value);
  if (points.length > POINTS) points.shift();
  const svg = byId(`${name}-line`), highest = top ?? Math.max(1, ...points) * 1.1;
  const at = points.map((point, i) => `${i},${(1 - Math.min(point / highest, 1)).toFixed(4)}`);
  svg.setAttribute("viewBox", `0 0 ${Math.max(points.length - 1, 1)} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  if (!svg.firstChild) {
    for (const kind of ["under", "over"]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", kind);
      svg.append(path);
    }
  }
  svg.firstChild.setAttribute("d", `M0,1L${at.join("L")}L${points.length - 1},1Z`);
  svg.lastChild.setAttribute("d", `M${at.join("L")}`);
}

async function look() {
  try {
    const answer = await fetch("dashboard/state", { headers: headers(), signal: AbortSignal.timeout(5000) });
    byId("key").hidden = answer.status !== 401;
    if (answer.ok) show(await answer.json());
    else status(answer.status === 401 ? "locked" : "unavailable", "bad");
  } catch {
    status("not reached", "bad");
  }
}

async function keepLooking() {
  for (;;) {
    if (document.hidden) await new Promise((shown) => document.addEventListener("visibilitychange", shown, { once: true }));
    await look();
    await new Promise((passed) => setTimeout(passed, EVERY_MS));
  }
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(new FormData(event.target).get("key"));
  look();
});
begin(byId("prompt"), byId("send"), byId("answer"), byId("told"));
keepLooking();
