// The last steps in slow motion: what each actor and each stream did, one colour per step.
const LANE = 32, BAR = 17, AXIS = 28, LEFT = 112, EDGE = 10;
const STEP_WIDTH = 200, SECONDS_PER_STEP = 0.9, FADE_MS = 300, IDLE_S = 2;
const WORDS = { scheduler: "plan", compute: "step", detokenizer: "text", gateway: "sent" };
const STREAMS = ["h2d", "compute", "d2h"];

export class Timeline {
  constructor(canvas, motion, caption, pause) {
    Object.assign(this, { canvas, motion, caption, paper: canvas.getContext("2d") });
    this.shown = this.next = this.pointer = null;
    this.paused = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.left = this.before = this.shownAt = 0;
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.resize());
    canvas.addEventListener("pointermove", (event) => { this.pointer = [event.offsetX, event.offsetY]; this.ask(); });
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.ask(); });
    pause.addEventListener("click", () => { this.paused = !this.paused; this.tell(pause); this.ask(); });
    this.tell(pause);
  }

  tell(pause) {
    pause.textContent = this.paused ? "Play" : "Pause";
    pause.setAttribute("aria-pressed", String(this.paused));
  }

  // A new snapshot: its steps are shown when those before have passed, or at once if they go on from there.
  take(snapshot) {
    if (snapshot.last_step < 0) return;
    const known = this.next ?? this.shown;
    if (!known || snapshot.last_step !== known.last_step || snapshot.lanes_begin !== known.lanes_begin) this.next = snapshot;
    if (!this.shown || snapshot.lanes_age_s > IDLE_S) this.say(snapshot);
    this.ask();
  }

  // What the lanes show, in words.
  say(snapshot) {
    const { ahead, gap_us: gap, lanes_age_s: age } = snapshot;
    const planned = ahead === null ? "" :
      `${(100 * ahead).toFixed(0)} % of these steps were planned before the step before them had ended. `;
    const wait = gap < 1 ? "did not wait" : `waited ${gap < 1000 ? `${gap.toFixed(0)} µs` : `${(gap / 1000).toFixed(1)} ms`}`;
    const waited = gap === null ? "" : `Between two steps the device ${wait} (median). `;
    const idle = age > IDLE_S ? `Nothing to do; the last step ended ${age.toFixed(0)} s ago. ` : "";
    this.caption.textContent = `${idle}${planned}${idle ? "" : waited}One colour is one step.`;
    this.canvas.setAttribute("aria-label", `Timeline of steps ${snapshot.first_step} to ${snapshot.last_step}. ${this.caption.textContent}`);
  }

  resize() {
    const style = getComputedStyle(document.documentElement);
    this.colours = [0, 1, 2, 3].map((i) => style.getPropertyValue(`--step-${i}`));
    for (const name of ["panel", "ink", "quiet", "edge", "stream", "bad"]) this[name] = style.getPropertyValue(`--${name}`);
    const scale = devicePixelRatio;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = this.width * scale;
    this.canvas.height = this.height * scale;
    this.paper.setTransform(scale, 0, 0, scale, 0, 0);
    this.ask();
  }

  ask() {
    this.asked ??= requestAnimationFrame((now) => { this.asked = null; this.frame(now); });
  }

  frame(now) {
    this.turnPage(now);
    if (!this.shown || !this.width) return;
    const { lanes_begin: begin, lanes_span: span } = this.shown;
    const end = begin + span * 1.02 - this.view;
    const passed = Math.min(now - this.before, 100) / 1000;
    this.before = now;
    const moving = !this.paused && this.left < end;
    if (moving) this.left = Math.min(end, this.left + passed * this.speed);
    this.draw(Math.min(1, (now - this.shownAt) / FADE_MS));
    if (moving || now - this.shownAt < FADE_MS) this.ask();
  }

  // Go over to the newest steps: at the end of those that are shown, or without a jump if it can be.
  turnPage(now) {
    const next = this.next, shown = this.shown;
    if (!next || (this.paused && shown && !matchMedia("(prefers-reduced-motion: reduce)").matches)) return;
    const atEnd = !shown || this.left >= shown.lanes_begin + shown.lanes_span * 1.02 - this.view - 1;
    const goesOn = shown && this.left >= next.lanes_begin && this.left < next.lanes_begin + next.lanes_span - this.view;
    if (!atEnd && !goesOn) return;
    this.shown = next;
    this.next = null;
    this.say(next);
    const period = next.lanes_span / (next.last_step - next.first_step + 1);
    this.view = Math.min(next.lanes_span * 1.04, ((this.width - LEFT) / STEP_WIDTH) * period);
    this.speed = Math.min(1e6, period / SECONDS_PER_STEP);
    this.motion.textContent = this.speed < 1e6 ? `in slow motion, 1 : ${Math.round(1e6 / this.speed).toLocaleString("en")}` : "";
    if (!goesOn) {
      this.left = next.lanes_begin - 0.15 * period;
      this.shownAt = this.before = now;
    }
    if (this.paused) this.left = next.lanes_begin + next.lanes_span * 1.02 - this.view;
  }

  x(time) {
    return LEFT + ((this.shown.lanes_begin + time - this.left) / this.view) * (this.width - LEFT - EDGE);
  }

  colour(step) {
    return this.colours[((step % 4) + 4) % 4];
  }

  draw(opacity) {
    const { paper, width, height, shown } = this;
    const bottom = shown.lanes.length * LANE;
    paper.clearRect(0, 0, width, height);
    paper.textBaseline = "middle";
    const streams = shown.lanes.map((lane, row) => (STREAMS.includes(lane.track) ? row : -1)).filter((row) => row >= 0);
    paper.fillStyle = this.stream;
    paper.beginPath();
    paper.roundRect(0, streams[0] * LANE, width, streams.length * LANE, 5);
    paper.fill();
    const hovered = this.find();
    paper.save();
    paper.beginPath();
    paper.rect(LEFT, 0, width - LEFT, height);
    paper.clip();
    paper.globalAlpha = opacity;
    this.axis(bottom);
    this.links(hovered?.step);
    shown.lanes.forEach((lane, row) => this.lane(lane, row, hovered?.step, opacity));
    paper.restore();
    paper.textAlign = "right";
    shown.lanes.forEach((lane, row) => this.write(lane.title, LEFT - 14, (row + 0.5) * LANE, this.ink));
    if (hovered) this.tooltip(hovered);
  }

  lane(lane, row, chosen, opacity) {
    const { paper } = this, top = row * LANE + (LANE - BAR) / 2, middle = (row + 0.5) * LANE;
    if (lane.track === "compute") this.idle(lane.spans, top);
    paper.textAlign = "center";
    lane.spans.forEach(([step, begin, end], i) => {
      const left = this.x(begin), right = this.x(end), size = Math.max(right - left, 2);
      if (right < LEFT || left > this.width) return;
      paper.globalAlpha = opacity * (chosen === undefined || chosen === step ? 1 : 0.3);
      paper.fillStyle = this.colour(step);
      paper.beginPath();
      paper.roundRect(left, top, size, BAR, Math.min(3, size / 2));
      paper.fill();
      const word = WORDS[lane.track], following = lane.spans[i + 1];
      if (!word) return;
      const text = `${word} ${step}`, wide = paper.measureText(text).width;
      if (size > wide + 12) this.write(text, (left + right) / 2, middle, "#fff", "600 12px");
      else if (following?.[0] !== step && (!following || this.x(following[1]) > right + wide + 10))
        this.write(text, right + 5 + wide / 2, middle, this.quiet);
    });
    paper.globalAlpha = opacity;
  }

  // Where the device waits for the host.
  idle(spans, top) {
    const { paper } = this;
    for (let i = 1; i < spans.length; i++) {
      const left = this.x(spans[i - 1][2]), right = this.x(spans[i][1]);
      if (right - left < 3 || right < LEFT || left > this.width) continue;
      paper.save();
      paper.beginPath();
      paper.rect(left, top, right - left, BAR);
      paper.clip();
      paper.strokeStyle = this.bad;
      paper.lineWidth = 1.2;
      paper.beginPath();
      for (let x = left - BAR; x < right; x += 6) {
        paper.moveTo(x, top + BAR);
        paper.lineTo(x + BAR, top);
      }
      paper.stroke();
      paper.restore();
    }
  }

  // From the plan of a step down to its text.
  links(chosen) {
    const { paper, shown } = this;
    const places = new Map();
    shown.lanes.forEach((lane, row) => {
      for (const [step, begin, end] of lane.spans) {
        const path = places.get(step) ?? places.set(step, []).get(step);
        if (path.at(-1)?.row !== row) path.push({ row, begin, end });
      }
    });
    paper.lineWidth = 1.25;
    for (const [step, path] of places) {
      paper.strokeStyle = this.colour(step);
      paper.globalAlpha = chosen === undefined ? 0.45 : chosen === step ? 0.9 : 0.1;
      paper.beginPath();
      for (let i = 1; i < path.length; i++) {
        const from = path[i - 1], to = path[i];
        if (to.row !== from.row + 1 || to.begin < from.begin) continue;
        const x0 = this.x(Math.min(from.end, to.begin)), x1 = this.x(to.begin);
        const y0 = from.row * LANE + (LANE + BAR) / 2, y1 = to.row * LANE + (LANE - BAR) / 2;
        const bend = Math.min(24, (x1 - x0) / 2);
        paper.moveTo(x0, y0);
        paper.bezierCurveTo(x0 + bend, y1, x1 - bend, y0, x1, y1);
      }
      paper.stroke();
    }
    paper.globalAlpha = 1;
  }

  axis(y) {
    const { paper, shown } = this, perMs = 1000;
    const each = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000].find((ms) => this.view / perMs / ms <= 9) ?? 10000;
    paper.strokeStyle = this.edge;
    paper.lineWidth = 1;
    paper.textAlign = "center";
    const first = Math.ceil((this.left - shown.lanes_begin) / perMs / each);
    for (let tick = first; ; tick++) {
      const x = this.x(tick * each * perMs);
      if (x > this.width) break;
      paper.beginPath();
      paper.moveTo(Math.round(x) + 0.5, 0);
      paper.lineTo(Math.round(x) + 0.5, y + 5);
      paper.stroke();
      if (tick >= 0) this.write(`${+(tick * each).toFixed(1)} ms`, x, y + 16, this.quiet, "11px");
    }
  }

  // What lies under the pointer.
  find() {
    if (!this.pointer) return null;
    const [x, y] = this.pointer, lane = this.shown.lanes[Math.floor(y / LANE)];
    if (!lane || x < LEFT) return null;
    let best = null, nearest = 6;
    for (const [step, begin, end] of lane.spans) {
      const distance = Math.max(this.x(begin) - x, x - this.x(end), 0);
      if (distance < nearest) [nearest, best] = [distance, { lane, step, begin, end }];
    }
    return best;
  }

  tooltip({ lane, step, begin, end }) {
    const { paper } = this, took = end - begin;
    const text = `step ${step}, ${lane.title}: ${lane.does}, ${took < 1000 ? `${took.toFixed(0)} µs` : `${(took / 1000).toFixed(2)} ms`}`;
    paper.font = "12px system-ui, sans-serif";
    const wide = paper.measureText(text).width + 18, [x, y] = this.pointer;
    const left = Math.min(Math.max(x - wide / 2, 2), this.width - wide - 2), top = y > 44 ? y - 36 : y + 16;
    paper.fillStyle = this.ink;
    paper.beginPath();
    paper.roundRect(left, top, wide, 24, 5);
    paper.fill();
    paper.textAlign = "center";
    this.write(text, left + wide / 2, top + 12.5, this.panel);
  }

  write(text, x, y, colour, font = "12px") {
    this.paper.font = `${font} system-ui, sans-serif`;
    this.paper.fillStyle = colour;
    this.paper.fillText(text, x, y + 0.5);
  }
}
